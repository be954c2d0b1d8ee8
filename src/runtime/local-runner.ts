/**
 * Runs a data plane in the calling thread: no worker, no mailbox, no other processor.
 *
 * Theory of operation. The plane's descriptors are in an epoll instance, edge-triggered as a
 * worker's are, and this thread's event loop waits for that instance as for any other descriptor.
 * So idle sources cost nothing, whatever their number. A *turn* takes what became readable and
 * makes rounds until no source is awake, ROUNDS_PER_TURN at most; what is left goes on in the next
 * turn of the event loop, behind everybody else.
 *
 * A driver in the same thread does not have to go through the event loop: `kicked` is its trap.
 * The work that the kick asks for is done before it returns, as in a VMM that handles the exit of
 * its guest in user space. An empty source is armed at once: who spins in the driver's own thread
 * only keeps the driver from adding something.
 *
 * Requests are carried out when they are made, between two rounds.
 */
import { assert } from '../base/assert.ts';
import { messageOf, VringError } from '../base/errors.ts';
import { Epoll, type Poll, pollFd } from '../sys/index.ts';
import type { IotlbUpdate } from '../vhost-user/index.ts';
import {
  type CreatePlane,
  type DataPlane,
  DRAINING,
  type PlaneEvent,
  type VringAttach,
} from './data-plane.ts';
import type { PlaneRunner } from './plane-runner.ts';

export type LocalRunnerOptions = {
  readonly createPlane: CreatePlane;
  readonly planeOptions: unknown;
  /** Never called from within a call to the runner. */
  readonly onEvent: (event: PlaneEvent) => void;
  /** The plane threw. Nothing of it works afterwards. */
  readonly onCrash: (error: Error) => void;
};

export type LocalRunnerCounters = {
  readonly turns: number;
  /** Of the turns, those that a driver's kick made. */
  readonly kicks: number;
  readonly polls: number;
  readonly emptyPolls: number;
  readonly work: number;
};

/** A ring of 256 is emptied in four rounds; with a flood behind it others wait no longer. */
const ROUNDS_PER_TURN = 16;
const TOKENS_PER_WAIT = 64;
/** An empty source is armed in its first empty round. */
const SPIN_MS = 0;

type Draining = {
  readonly device: number;
  readonly index: number;
  readonly answer: PromiseWithResolvers<number>;
};

export class LocalRunner implements PlaneRunner {
  readonly #options: LocalRunnerOptions;
  readonly #epoll = new Epoll();
  readonly #poll: Poll;
  readonly #tokens = new Int32Array(TOKENS_PER_WAIT);
  readonly #tokenOf = new Map<number, number>();
  readonly #plane: DataPlane;
  readonly #draining: Draining[] = [];
  #next: NodeJS.Immediate | null = null;
  #working = false;
  #ended: Error | null = null;
  #turns = 0;
  #kicks = 0;
  #polls = 0;
  #emptyPolls = 0;
  #work = 0;

  constructor(options: LocalRunnerOptions) {
    this.#options = options;
    try {
      this.#plane = options.createPlane({
        watch: (fd, token) => {
          this.#epoll.add(fd, token, { edge: true });
          this.#tokenOf.set(fd, token);
        },
        unwatch: (fd) => {
          this.#tokenOf.delete(fd);
          this.#epoll.remove(fd);
        },
        emit: (event) => queueMicrotask(() => this.#ended ?? options.onEvent(event)),
        spinMs: SPIN_MS,
        options: options.planeOptions,
      });
      this.#poll = pollFd(this.#epoll.fd, { read: true }, () => this.turn());
    } catch (error) {
      this.#epoll.close();
      throw error;
    }
  }

  get counters(): LocalRunnerCounters {
    return {
      turns: this.#turns,
      kicks: this.#kicks,
      polls: this.#polls,
      emptyPolls: this.#emptyPolls,
      work: this.#work,
    };
  }

  /** What became readable, and all that there is to do, within the limit of a turn. */
  turn(): void {
    this.#safely(() => {
      const nowMs = performance.now();
      const count = this.#epoll.wait(this.#tokens, 0);
      for (let i = 0; i < count; i++) this.#plane.ready(this.#tokens[i]!, nowMs);
      this.#rounds();
    });
  }

  /** The driver kicks, and waits. `fd` is the kick descriptor, which need not be signalled. */
  kicked(fd: number): void {
    const token = this.#tokenOf.get(fd);
    if (token === undefined) return; // the ring is not attached: nobody would hear a signal either
    this.#kicks++;
    this.#safely(() => {
      this.#plane.ready(token, performance.now());
      this.#rounds();
    });
  }

  attachVring(vring: VringAttach): Promise<void> {
    return this.#ask((plane) => plane.attachVring(vring));
  }

  detachVring(device: number, index: number): Promise<number> {
    return this.#ask((plane) => {
      const base = plane.detachVring(device, index);
      if (base !== DRAINING) return base;
      const answer = Promise.withResolvers<number>();
      this.#draining.push({ device, index, answer });
      this.#later();
      return answer.promise;
    });
  }

  enableVring(device: number, index: number, enabled: boolean): Promise<void> {
    return this.#ask((plane) => plane.enableVring(device, index, enabled));
  }

  setCallFd(device: number, index: number, callFd: number): Promise<void> {
    return this.#ask((plane) => plane.setCallFd(device, index, callFd));
  }

  setErrFd(device: number, index: number, errFd: number): Promise<void> {
    return this.#ask((plane) => plane.setErrFd(device, index, errFd));
  }

  resetDevice(device: number): Promise<void> {
    return this.#ask((plane) => plane.resetDevice(device));
  }

  updateIotlb(device: number, entry: IotlbUpdate): Promise<void> {
    return this.#ask((plane) => plane.updateIotlb(device, entry));
  }

  invalidateIotlb(device: number, iova: number, sizeBytes: number): Promise<void> {
    return this.#ask((plane) => plane.invalidateIotlb(device, iova, sizeBytes));
  }

  request<T>(op: string, payload: unknown): Promise<T> {
    return this.#ask((plane) => plane.command(op, payload) as T);
  }

  /** Idempotent. The plane's descriptors are their owners' to close, and may be closed then. */
  async close(): Promise<void> {
    this.#end(new VringError('ERR_VRING_CLOSED', 'the data plane of this thread was closed'));
  }

  async #ask<T>(what: (plane: DataPlane) => T | Promise<T>): Promise<T> {
    if (this.#ended !== null) throw this.#ended;
    const result = what(this.#plane);
    if (this.#plane.awake > 0) this.#later();
    return result;
  }

  /** Runs plane code; what it throws is the end of the plane. Never one within the other. */
  #safely(body: () => void): void {
    if (this.#ended !== null) return;
    assert(!this.#working, 'nothing that a plane calls comes back to its runner');
    this.#working = true;
    try {
      this.#turns++;
      body();
    } catch (cause) {
      const text = `the data plane of this thread ended: ${messageOf(cause)}`;
      const error = new VringError('ERR_VRING_WORKER', text, { cause });
      this.#end(error);
      this.#options.onCrash(error);
    } finally {
      this.#working = false;
    }
  }

  #rounds(): void {
    const plane = this.#plane;
    for (let round = 0; plane.awake > 0 && round < ROUNDS_PER_TURN; round++) {
      const done = plane.poll(performance.now());
      this.#polls++;
      if (done === 0) this.#emptyPolls++;
      this.#work += done;
    }
    if (this.#draining.length > 0) this.#detachDrained();
    if (plane.awake > 0 || this.#draining.length > 0) this.#later();
  }

  #detachDrained(): void {
    for (let i = this.#draining.length - 1; i >= 0; i--) {
      const { device, index, answer } = this.#draining[i]!;
      const base = this.#plane.detachVring(device, index);
      if (base === DRAINING) continue;
      this.#draining.splice(i, 1);
      answer.resolve(base);
    }
  }

  #later(): void {
    this.#next ??= setImmediate(() => {
      this.#next = null;
      this.turn();
    });
  }

  #end(reason: Error): void {
    if (this.#ended !== null) return;
    this.#ended = reason;
    if (this.#next !== null) clearImmediate(this.#next);
    this.#next = null;
    this.#poll.close();
    this.#epoll.close();
    this.#plane.close?.();
    this.#tokenOf.clear();
    for (const { answer } of this.#draining.splice(0)) answer.reject(reason);
  }
}
