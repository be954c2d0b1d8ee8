import { MessageChannel, type MessagePort, Worker } from 'node:worker_threads';
import { VringError } from '../base/errors.ts';
import { createEventfd, signalEventfd } from '../sys/eventfd.ts';
import type { Fd } from '../sys/fd.ts';
import type { IotlbUpdate } from '../vhost-user/index.ts';
import { workerEnvironment } from './compile-cache.ts';
import type { PlaneEvent, VringAttach, WorkerCounters } from './data-plane.ts';
import type { PlaneRunner } from './plane-runner.ts';
import type { WorkerBoot, WorkerReply, WorkerRequest } from './worker.ts';

export type DataPlaneWorkerOptions = {
  /** Thread name, at most 15 bytes; shown by `top -H`. */
  readonly name: string;
  /** URL of the module that exports `createPlane`. */
  readonly planeModule: URL;
  /** Passed to the plane; structured clone. */
  readonly planeOptions: unknown;
  readonly spinMs: number;
  /** The one that the thread runs on; absent: any. */
  readonly core?: number | null;
  /** Of the threads with which it shares locks: lock-wait.ts. */
  readonly alarm?: Int32Array | null;
  /** Set to other than 0, it asks for one call of `onBusy`, at the next work. */
  readonly quiet?: Int32Array | null;
  readonly onBusy?: () => void;
  readonly onEvent: (event: PlaneEvent) => void;
  /** The thread ended without being asked to. Nothing of it works afterwards. */
  readonly onCrash: (error: Error) => void;
};

type Pending = { resolve(value: unknown): void; reject(error: Error): void };

/**
 * A process that exits joins its threads, and one that sleeps in epoll_wait does not notice. One
 * listener for all workers: with more than ten Node warns of a leak.
 */
const stopsAtExit = new Set<() => void>();

function stopAll(): void {
  for (const stop of stopsAtExit) stop();
}

/** The control half of a data-plane worker: starts it, asks it things, stops it. */
export class DataPlaneWorker implements PlaneRunner {
  readonly #worker: Worker;
  readonly #port: MessagePort;
  readonly #mailboxFd: Fd;
  readonly #pending = new Map<number, Pending>();
  readonly #options: DataPlaneWorkerOptions;
  readonly #stopAtExit: () => void;
  #nextId = 1;
  #ended: Error | null = null;
  readonly #exited: Promise<void>;

  constructor(options: DataPlaneWorkerOptions) {
    this.#options = options;
    this.#mailboxFd = createEventfd('worker mailbox');
    const { port1, port2 } = new MessageChannel();
    this.#port = port1;
    const boot: WorkerBoot = {
      name: options.name,
      planeModule: options.planeModule.href,
      mailbox: port2,
      mailboxFd: this.#mailboxFd.number,
      spinMs: options.spinMs,
      core: options.core ?? null,
      alarm: options.alarm ?? null,
      quiet: options.quiet ?? null,
      options: options.planeOptions,
    };
    const isUnbuilt = import.meta.url.endsWith('.ts');
    const entry = new URL(isUnbuilt ? './worker.ts' : './worker.js', import.meta.url);
    this.#worker = new Worker(entry, {
      workerData: boot,
      transferList: [port2],
      name: options.name,
      env: workerEnvironment(isUnbuilt),
      // Some of the process's own options (--input-type) are refused for a worker, and V8's are
      // the process's anyway.
      execArgv: [],
    });
    this.#port.on('message', (reply: WorkerReply) => this.#receive(reply));
    this.#port.unref();
    this.#worker.unref();
    this.#exited = new Promise((resolve) => {
      this.#worker.once('exit', () => resolve());
    });
    this.#worker.once('error', (error) => this.#end(error as Error));
    this.#worker.once('exit', (code) => this.#end(new Error(`exit code ${code}`)));
    this.#stopAtExit = () => {
      this.#port.postMessage({ id: 0, op: 'stop', payload: undefined } satisfies WorkerRequest);
      signalEventfd(this.#mailboxFd.number);
    };
    if (stopsAtExit.size === 0) process.once('exit', stopAll);
    stopsAtExit.add(this.#stopAtExit);
  }

  attachVring(vring: VringAttach): Promise<void> {
    return this.request('attachVring', vring);
  }

  detachVring(device: number, index: number): Promise<number> {
    return this.request('detachVring', { device, index });
  }

  enableVring(device: number, index: number, enabled: boolean): Promise<void> {
    return this.request('enableVring', { device, index, enabled });
  }

  setCallFd(device: number, index: number, callFd: number): Promise<void> {
    return this.request('setCallFd', { device, index, callFd });
  }

  setErrFd(device: number, index: number, errFd: number): Promise<void> {
    return this.request('setErrFd', { device, index, errFd });
  }

  resetDevice(device: number): Promise<void> {
    return this.request('resetDevice', { device });
  }

  updateIotlb(device: number, entry: IotlbUpdate): Promise<void> {
    return this.request('updateIotlb', { device, entry });
  }

  invalidateIotlb(device: number, iova: number, sizeBytes: number): Promise<void> {
    return this.request('invalidateIotlb', { device, iova, sizeBytes });
  }

  counters(): Promise<WorkerCounters> {
    return this.request('counters', undefined);
  }

  /** Asks the plane. Requests are carried out in the order in which they were made. */
  request<T>(op: string, payload: unknown): Promise<T> {
    const ended = this.#ended;
    // An answer says that nobody touches what it is about: so does this one.
    if (ended !== null) return this.#exited.then(() => Promise.reject(ended));
    const id = this.#nextId++;
    return new Promise<T>((resolve, reject) => {
      this.#pending.set(id, { resolve: resolve as Pending['resolve'], reject });
      if (this.#pending.size === 1) this.#port.ref();
      this.#port.postMessage({ id, op, payload } satisfies WorkerRequest);
      signalEventfd(this.#mailboxFd.number);
    });
  }

  /** Idempotent; resolves when the thread has ended. */
  async close(): Promise<void> {
    if (this.#ended === null) {
      const stopped = this.request('stop', undefined);
      this.#ended = new VringError('ERR_VRING_CLOSED', 'the data-plane worker was closed');
      await stopped.catch(() => undefined);
    }
    this.#worker.ref();
    await this.#exited;
    stopsAtExit.delete(this.#stopAtExit);
    if (stopsAtExit.size === 0) process.removeListener('exit', stopAll);
    this.#port.close();
    this.#mailboxFd.close();
  }

  #receive(reply: WorkerReply): void {
    if ('event' in reply) {
      this.#options.onEvent(reply.event);
      return;
    }
    if ('busy' in reply) {
      this.#options.onBusy?.();
      return;
    }
    const pending = this.#pending.get(reply.id);
    if (pending === undefined) return;
    this.#pending.delete(reply.id);
    if (this.#pending.size === 0) this.#port.unref();
    if ('error' in reply) pending.reject(new VringError(reply.error.code, reply.error.message));
    else pending.resolve(reply.result);
  }

  #end(cause: Error): void {
    if (this.#ended === null) {
      this.#ended = new VringError(
        'ERR_VRING_WORKER',
        `data-plane worker "${this.#options.name}" ended: ${cause.message}`,
        { cause },
      );
      this.#options.onCrash(this.#ended);
    }
    for (const pending of this.#pending.values()) pending.reject(this.#ended);
    this.#pending.clear();
  }
}
