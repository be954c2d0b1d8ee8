/** The control half of a storage thread: starts it, asks it things, ends it. */
import { MessageChannel, type MessagePort, Worker } from 'node:worker_threads';
import { VringError } from '../../base/errors.ts';
import { closeRecordedFds, FD_RECORD_BYTES } from '../../sys/index.ts';
import type {
  LayerFacts,
  StorageBoot,
  StorageFailure,
  StorageReply,
  StorageRequest,
} from './storage-worker.ts';

type Pending = { resolve(value: unknown): void; reject(error: Error): void };

export type StorageThreadOptions = Omit<StorageBoot, 'mailbox' | 'fds'> & {
  /** A request failed: which disk, what, where, why. */
  readonly onProblem: (message: string) => void;
  /** The thread ended without being asked to: nothing that is out comes back. */
  readonly onCrash: (error: Error) => void;
  /** Of the thread, so that unbuilt TypeScript finds its compile cache. */
  readonly environment?: NodeJS.ProcessEnv;
};

/** What a stack may take to open: servers elsewhere answer late, and key derivation is slow. */
const OPEN_MS = 120_000;

export class StorageThread {
  readonly facts: LayerFacts;
  /** Kept current by answers. */
  sizeBytes: number;
  readonly #worker: Worker;
  readonly #port: MessagePort;
  /** Nothing of it is open any more, however it ended. */
  readonly #exited: Promise<void>;
  readonly #pending = new Map<number, Pending>();
  #nextId = 1;
  #ended: Error | null = null;

  /**
   * Resolves when all layers are open.
   * @throws VringError: what the layer that could not be opened said.
   */
  static async start(options: StorageThreadOptions): Promise<StorageThread> {
    const { onProblem, onCrash, environment, ...boot } = options;
    const { port1, port2 } = new MessageChannel();
    const fds = new SharedArrayBuffer(FD_RECORD_BYTES);
    const isUnbuilt = import.meta.url.endsWith('.ts');
    const entry = new URL(`./storage-worker.${isUnbuilt ? 'ts' : 'js'}`, import.meta.url);
    const worker = new Worker(entry, {
      workerData: { ...boot, mailbox: port2, fds } satisfies StorageBoot,
      transferList: [port2],
      name: boot.name,
      env: environment ?? process.env,
      execArgv: [],
    });
    const exited = new Promise<void>((resolve) => {
      worker.once('exit', () => {
        closeRecordedFds(fds);
        resolve();
      });
    });
    try {
      const facts = await opened(worker, port1);
      const thread = new StorageThread(worker, port1, exited, facts);
      thread.#listen(onProblem, onCrash);
      return thread;
    } catch (error) {
      await worker.terminate();
      await exited;
      port1.close();
      throw error;
    }
  }

  private constructor(worker: Worker, port: MessagePort, exited: Promise<void>, facts: LayerFacts) {
    this.#worker = worker;
    this.#port = port;
    this.#exited = exited;
    this.facts = facts;
    this.sizeBytes = facts.sizeBytes;
  }

  request<T>(request: Omit<StorageRequest, 'id'>): Promise<T> {
    if (this.#ended !== null) return Promise.reject(this.#ended);
    const id = this.#nextId++;
    return new Promise<T>((resolve, reject) => {
      this.#pending.set(id, { resolve: resolve as Pending['resolve'], reject });
      if (this.#pending.size === 1) this.#port.ref();
      this.#port.postMessage({ id, ...request } satisfies StorageRequest);
    });
  }

  /**
   * Idempotent; once no data plane uses it.
   * @throws VringError: what the layers could not finish.
   */
  async close(): Promise<void> {
    if (this.#ended !== null) return this.#exited;
    const closed = this.request<void>({ op: 'close' });
    this.#ended = new VringError('ERR_VRING_CLOSED', 'the storage thread was closed');
    this.#worker.ref();
    try {
      await closed;
      this.#port.close();
      await this.#exited;
    } catch (error) {
      // What it could not finish may keep its loop alive: it would never end by itself.
      this.#port.close();
      await this.#worker.terminate();
      await this.#exited;
      throw error;
    }
  }

  #listen(onProblem: (message: string) => void, onCrash: (error: Error) => void): void {
    this.#port.on('message', (reply: StorageReply) => {
      if ('problem' in reply) onProblem(reply.problem);
      else if ('id' in reply) this.#settle(reply);
    });
    this.#port.unref();
    this.#worker.unref();
    const end = (error: Error): void => {
      for (const pending of this.#pending.values()) pending.reject(error);
      this.#pending.clear();
      if (this.#ended !== null) return;
      this.#ended = error;
      onCrash(error);
    };
    this.#worker.once('error', (error) => end(error as Error));
    this.#worker.once('exit', (code) => end(new Error(`a storage thread ended with ${code}`)));
  }

  #settle(reply: Extract<StorageReply, { id: number }>): void {
    const pending = this.#pending.get(reply.id);
    this.#pending.delete(reply.id);
    if (this.#pending.size === 0) this.#port.unref();
    if ('error' in reply) return pending?.reject(errorOf(reply.error));
    this.sizeBytes = reply.sizeBytes;
    pending?.resolve(reply.result);
  }
}

function errorOf({ code, message, recovery }: StorageFailure): VringError {
  return new VringError(code, message, { recovery });
}

/** The first message says whether the layers could be opened. */
function opened(worker: Worker, port: MessagePort): Promise<LayerFacts> {
  return new Promise((resolve, reject) => {
    const late = new VringError('ERR_VRING_STORAGE', `the disk was not open after ${OPEN_MS} ms`);
    const timer = setTimeout(() => settle(() => reject(late)), OPEN_MS);
    const settle = (how: () => void): void => {
      clearTimeout(timer);
      worker.removeAllListeners('error');
      how();
    };
    worker.once('error', (error) => settle(() => reject(error as Error)));
    port.once('message', (reply: StorageReply) => {
      if ('opened' in reply) settle(() => resolve(reply.opened));
      else if ('error' in reply) settle(() => reject(errorOf(reply.error)));
    });
  });
}
