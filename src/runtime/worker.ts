/**
 * A data-plane worker: the thread that runs one `DataPlane`.
 *
 * The loop polls while any source is awake and sleeps in `epoll_wait` when none is. Control
 * requests arrive through a message port, announced by an eventfd that is watched like any other
 * descriptor, so an idle worker costs nothing and a busy one looks for requests every
 * EVENT_CHECK_MS. The thread never returns to its own event loop while it runs.
 *
 * Started by `DataPlaneWorker`; `workerData` is a `WorkerBoot`.
 */
import { flushCompileCache } from 'node:module';
import { type MessagePort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import { assert } from '../base/assert.ts';
import { messageOf, VringError } from '../base/errors.ts';
import { Epoll } from '../sys/epoll.ts';
import { drainEventfd } from '../sys/eventfd.ts';
import { heedLockAlarm } from '../sys/lock-wait.ts';
import { locksHeld } from '../sys/ticket-lock.hot.ts';
import {
  pauseWatch,
  pinThread,
  setThreadName,
  threadCpuSeconds,
  watchThread,
  yieldThread,
} from '../sys/thread.ts';
import type { IotlbUpdate } from '../vhost-user/index.ts';
import {
  type CreatePlane,
  type DataPlane,
  DRAINING,
  type PlaneEvent,
  type VringAttach,
  type WorkerCounters,
} from './data-plane.ts';

export type WorkerBoot = {
  readonly name: string;
  readonly planeModule: string;
  readonly mailbox: MessagePort;
  readonly mailboxFd: number;
  readonly spinMs: number;
  /** The one that the thread runs on; null: any. */
  readonly core: number | null;
  /** Raised when a thread ended with which it shares locks. */
  readonly alarm: Int32Array | null;
  /** Not 0: the owner wants to hear when there is work again (balance-timer.ts). */
  readonly quiet: Int32Array | null;
  readonly options: unknown;
};

export type WorkerRequest = { readonly id: number; readonly op: string; readonly payload: unknown };
export type WorkerReply =
  | { readonly id: number; readonly result: unknown }
  | { readonly id: number; readonly error: { readonly code: string; readonly message: string } }
  | { readonly event: PlaneEvent }
  | { readonly busy: true };

/**
 * How long descriptors may go unlooked at while queues keep the worker busy, milliseconds. One
 * `epoll_wait` costs 0.5 us, and what the kernel leaves of caches and branch predictors costs more:
 * with 0.2 ms a reflecting port had 12 % more frames, a pair 10 %, with 1 ms a pair 7 % more again
 * (64 bytes, interleaved). So a plane that can peek at its sleeping queues itself does so, and the
 * rest, requests and commands of drivers, waits for RARE_CHECK_MS.
 */
const EVENT_CHECK_MS = 0.05;
const RARE_CHECK_MS = 1;

/** Longest that a descriptor shared with a stranger can hold the worker, milliseconds. */
const WATCH_MS = 20;

/**
 * A queue that is empty now and was not so long ago is looked at again at once, milliseconds: a
 * driver that works at this moment is heard half a microsecond earlier than after a system call
 * (block device, null engine, depth 32: 3 to 10 per cent more requests, interleaved).
 */
const PAUSE_MS = 0.02;

/**
 * Work after which the clock is read, however many rounds a plane would do without: a reading is a
 * double on the heap, and with the collector's part 3 % of a busy worker with one reading a round
 * (64 bytes, one port and pairs, interleaved).
 */
const CLOCK_WORK = 256;

/** Some 20 ns each: the processor does nothing meanwhile, and reads no line of the driver's. */
function pause(times: number): void {
  for (let i = 0; i < times; i++) Atomics.pause();
}

const MAILBOX_TOKEN = 0x7fff_ffff;
const TOKENS_PER_WAIT = 64;

class WorkerLoop {
  readonly #mailbox: MessagePort;
  readonly #mailboxFd: number;
  readonly #epoll = new Epoll();
  readonly #tokens = new Int32Array(TOKENS_PER_WAIT);
  readonly #plane: DataPlane;
  readonly #quiet: Int32Array;
  /** `detachVring` requests of rings whose requests are under way; answered when they are done. */
  readonly #draining: { id: number; device: number; index: number }[] = [];
  #running = true;
  #polls = 0;
  #emptyPolls = 0;
  #sleeps = 0;
  #wakeups = 0;
  #work = 0;
  /** What `#work` was when `#quiet` was looked at. */
  #workSaid = 0;
  #busyMs = 0;

  constructor(boot: WorkerBoot, createPlane: CreatePlane) {
    this.#mailbox = boot.mailbox;
    this.#mailboxFd = boot.mailboxFd;
    this.#quiet = boot.quiet ?? new Int32Array(1);
    this.#epoll.add(boot.mailboxFd, MAILBOX_TOKEN, { edge: true });
    this.#plane = createPlane({
      watch: (fd, token) => {
        assert(token !== MAILBOX_TOKEN);
        this.#epoll.add(fd, token, { edge: true });
      },
      unwatch: (fd) => this.#epoll.remove(fd),
      emit: (event) => this.#mailbox.postMessage({ event } satisfies WorkerReply),
      spinMs: boot.spinMs,
      options: boot.options,
    });
  }

  run(): void {
    const plane = this.#plane;
    watchThread(WATCH_MS);
    let checkedMs = performance.now();
    let startedMs = checkedMs;
    let workedMs = checkedMs;
    let peekedMs = checkedMs;
    const { roundsOfClock = 1 } = plane;
    let rounds = 0; // with work, since the clock was read
    let worked = 0;
    while (this.#running) {
      const work = plane.poll(startedMs);
      this.#polls++;
      if (work > 0) {
        worked += work;
        if (++rounds < roundsOfClock && worked < CLOCK_WORK) continue;
      }
      const nowMs = performance.now();
      if (rounds > 0) {
        this.#work += worked;
        this.#busyMs += nowMs - startedMs;
        workedMs = nowMs;
        rounds = worked = 0;
      }
      if (work === 0) {
        this.#emptyPolls++;
        if (nowMs - workedMs < PAUSE_MS) pause(plane.lull ?? 1);
        else yieldThread(); // whoever fills our queues may wait for this very processor
      }
      startedMs = nowMs;
      if (this.#draining.length > 0) this.#detachDrained();
      if (plane.awake === 0) {
        this.#sleeps++;
        this.#sayBusy();
        pauseWatch(); // a sleeping worker is not woken for nothing
        this.#handleEvents(-1, nowMs);
        watchThread(WATCH_MS);
        startedMs = checkedMs = performance.now();
      } else if (nowMs - peekedMs > EVENT_CHECK_MS) {
        peekedMs = nowMs;
        this.#sayBusy();
        const isCovered = plane.peek?.(nowMs) === true;
        if (isCovered && nowMs - checkedMs < RARE_CHECK_MS) continue;
        this.#handleEvents(0, nowMs);
        checkedMs = nowMs;
      }
    }
    watchThread(0);
    this.#epoll.close();
    plane.close?.();
    this.#mailbox.close();
  }

  /** One of all workers does, for work since it looked last. */
  #sayBusy(): void {
    if (this.#work === this.#workSaid) return;
    this.#workSaid = this.#work;
    if (Atomics.load(this.#quiet, 0) === 0 || Atomics.exchange(this.#quiet, 0, 0) === 0) return;
    this.#mailbox.postMessage({ busy: true } satisfies WorkerReply);
  }

  #handleEvents(timeoutMs: number, nowMs: number): void {
    const count = this.#epoll.wait(this.#tokens, timeoutMs);
    if (timeoutMs !== 0) {
      this.#wakeups++;
      nowMs = performance.now(); // how long it slept says what a next spin is worth
    }
    for (let i = 0; i < count; i++) {
      const token = this.#tokens[i];
      if (token === MAILBOX_TOKEN) this.#handleRequests();
      else this.#plane.ready(token, nowMs);
    }
  }

  #handleRequests(): void {
    drainEventfd(this.#mailboxFd);
    for (;;) {
      const received = receiveMessageOnPort(this.#mailbox);
      if (received === undefined) return;
      const { id, op, payload } = received.message as WorkerRequest;
      try {
        const result = this.#handle(op, payload);
        if (op === 'detachVring' && result === DRAINING) {
          const { device, index } = payload as { device: number; index: number };
          this.#draining.push({ id, device, index });
          continue;
        }
        this.#mailbox.postMessage({ id, result } satisfies WorkerReply);
      } catch (thrown) {
        // A lock that was not let go of is nobody's any more: this thread ends, and who waits for
        // that lock hears of it (lock-wait.ts).
        if (locksHeld() > 0) throw thrown;
        const code = thrown instanceof VringError ? thrown.code : 'ERR_VRING_WORKER';
        const error = { code, message: messageOf(thrown) };
        this.#mailbox.postMessage({ id, error } satisfies WorkerReply);
      }
    }
  }

  #detachDrained(): void {
    for (let i = this.#draining.length - 1; i >= 0; i--) {
      const { id, device, index } = this.#draining[i]!;
      const result = this.#plane.detachVring(device, index);
      if (result === DRAINING) continue;
      this.#draining.splice(i, 1);
      this.#mailbox.postMessage({ id, result } satisfies WorkerReply);
    }
  }

  #handle(op: string, payload: unknown): unknown {
    switch (op) {
      case 'attachVring':
        return this.#plane.attachVring(payload as VringAttach);
      case 'detachVring': {
        const { device, index } = payload as { device: number; index: number };
        return this.#plane.detachVring(device, index);
      }
      case 'enableVring': {
        const { device, index, enabled } = payload as VringAttach;
        return this.#plane.enableVring(device, index, enabled);
      }
      case 'setCallFd': {
        const { device, index, callFd } = payload as VringAttach;
        return this.#plane.setCallFd(device, index, callFd);
      }
      case 'setErrFd': {
        const { device, index, errFd } = payload as VringAttach;
        return this.#plane.setErrFd(device, index, errFd);
      }
      case 'resetDevice':
        return this.#plane.resetDevice((payload as VringAttach).device);
      case 'updateIotlb': {
        const { device, entry } = payload as { device: number; entry: IotlbUpdate };
        return this.#plane.updateIotlb(device, entry);
      }
      case 'invalidateIotlb': {
        const { device, iova, sizeBytes } = payload as IotlbUpdate & { device: number };
        return this.#plane.invalidateIotlb(device, iova, sizeBytes);
      }
      case 'counters':
        return this.#counters();
      case 'stop':
        this.#running = false;
        return undefined;
      default:
        return this.#plane.command(op, payload);
    }
  }

  #counters(): WorkerCounters {
    return {
      polls: this.#polls,
      emptyPolls: this.#emptyPolls,
      sleeps: this.#sleeps,
      wakeups: this.#wakeups,
      work: this.#work,
      busyMs: this.#busyMs,
      cpuSeconds: threadCpuSeconds(),
    };
  }
}

const boot = workerData as WorkerBoot;
setThreadName(boot.name);
if (boot.core !== null) pinThread(boot.core);
if (boot.alarm !== null) heedLockAlarm(boot.alarm);
const { createPlane } = (await import(boot.planeModule)) as { createPlane: CreatePlane };
flushCompileCache(); // for the next worker; this one never returns to where Node would write it
new WorkerLoop(boot, createPlane).run();
