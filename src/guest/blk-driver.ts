/**
 * The software guest's virtio-blk driver: a front-end with memory and driver-side rings of its own.
 *
 * Theory of operation: `start` negotiates, reads what the disk is, lays out one memfd (rings, slots
 * with headers and data) and hands all to the back-end. A request is made in a slot of a queue and
 * put at the end of the queue's `ready` list; `submit` moves what has room into the ring. What
 * comes back goes to `onDone`, batch by batch, in whatever order the device finishes: noticed by
 * the call eventfd ('interrupt'), by looking every turn of the event loop ('poll'), or, while
 * somebody has claimed the guest, when they call `reap`. blk-requests.ts makes promises of that.
 *
 * A back-end that breaks virtio ends the guest: `failure` is set and `closed` resolves with it. So
 * does one that goes away, unless `reconnect` says how to find it again: then requests stay where
 * they are, and whoever answers next finishes them: from the inflight region where there is one,
 * else they are put into an empty ring again (blk-queues.ts).
 */
import { assert } from '../base/assert.ts';
import { VringError } from '../base/errors.ts';
import type { VhostBackend } from '../base/vhost-backend.ts';
import { drainEventfd, pollFd, signalEventfd, type Poll } from '../sys/index.ts';
import { startVring, stopVring } from '../vhost-user/index.ts';
import { disableCalls, enableCalls, needsKick } from '../virtqueue/driver/index.ts';
import { faultName } from '../virtqueue/index.ts';
import { VIRTIO_ID_BLOCK } from '../wire/virtio.ts';
import { RUNNING, introduceAgain, type DriverSetup, type ReconnectOptions } from './attach.ts';
import { BackendKeeper } from './backend-keeper.ts';
import { readBlkConfig, type BlkDeviceConfig } from './blk-config.ts';
import { reapBlk, releaseBlk, submitReady } from './blk-driver.hot.ts';
import type { BlkQueue } from './blk-queue.ts';
import { BlkQueues } from './blk-queues.ts';
import { BlkRequests } from './blk-requests.ts';
import { agreeBlk, type BlkAgreement } from './blk-start.ts';
import { NO_CHOICE, type FeatureChoice } from './features.ts';
import type { LinkEvent } from './net-options.ts';

export type BlkGuestOptions = {
  readonly queues?: number;
  /** Descriptors of each ring; default 128. */
  readonly ringSize?: number;
  readonly packed?: boolean;
  readonly features?: FeatureChoice;
  /** Most bytes of data of one request; default 64 KiB. Longer transfers are several requests. */
  readonly requestBytes?: number;
  /** Longest piece of data that one descriptor covers. Default: as long as the device takes. */
  readonly segmentBytes?: number | null;
  readonly hugePages?: boolean;
  readonly notify?: 'interrupt' | 'poll';
};

/** Called with each batch that came back: the `done` columns. The slots are free afterwards. */
export type DoneHandler = (queue: BlkQueue) => void;

const BATCHES_PER_TURN = 8; // per turn of the event loop
const DRAIN_MS = 10_000;
const CLOSE_DRAIN_MS = 1000;

export class BlkGuest {
  readonly offered: bigint;
  readonly features: bigint;
  readonly packed: boolean;
  /** Requests as promises. */
  readonly requests: BlkRequests;
  onLink: ((event: LinkEvent) => void) | null = null;
  /** Why the guest does not run any more. */
  failure: Error | null = null;
  /** Resolves with `failure`, or null after `close`. */
  readonly closed: Promise<Error | null>;

  readonly #notify: 'interrupt' | 'poll';
  readonly #queues: BlkQueues;
  readonly #keeper: BackendKeeper;
  readonly #end = Promise.withResolvers<Error | null>();
  readonly #polls: Poll[] = [];
  #config: BlkDeviceConfig;
  #onDone: DoneHandler;
  #claimed = false;
  #bases: number[] = [];
  #running = false;
  /** A stop waits for what is under way: nothing new goes into the rings. */
  #holding = false;
  /** Whether the back-end has the rings; whether the next one got them already. */
  #attached = false;
  #handed = false;
  #ended = false;
  #turn: NodeJS.Immediate | null = null;
  /** Ends a `waitForCalls` before its time. */
  #wake: (() => void) | null = null;

  /**
   * Negotiates with the back-end and starts the rings. The back-end becomes the guest's: it is
   * closed with it, also when this throws.
   * @throws VringError ERR_VRING_GUEST_FEATURE, ERR_VRING_GUEST_QUEUES, ERR_VRING_GUEST_CONFIG;
   *   what the back-end throws.
   */
  static async start(
    backend: VhostBackend,
    options: BlkGuestOptions = {},
    reconnect: ReconnectOptions | null = null,
  ): Promise<BlkGuest> {
    let guest: BlkGuest | null = null;
    try {
      const agreement = await agreeBlk(backend, {
        choice: options.features ?? NO_CHOICE,
        packed: options.packed ?? false,
        queues: options.queues ?? 1,
      });
      guest = new BlkGuest(backend, options, reconnect, agreement);
      await guest.#begin();
      return guest;
    } catch (error) {
      if (guest !== null) await guest.close();
      else await backend.close();
      throw error;
    }
  }

  private constructor(
    backend: VhostBackend,
    options: BlkGuestOptions,
    reconnect: ReconnectOptions | null,
    { offered, features, config }: BlkAgreement,
  ) {
    this.offered = offered;
    this.features = features;
    this.#config = config;
    this.packed = options.packed ?? false;
    this.#notify = options.notify ?? 'interrupt';
    this.#queues = new BlkQueues({
      features,
      config,
      queues: options.queues ?? 1,
      ringSize: options.ringSize ?? 128,
      requestBytes: options.requestBytes ?? 65536,
      segmentBytes: options.segmentBytes ?? null,
      hugePages: options.hugePages ?? false,
    });
    this.requests = new BlkRequests(this);
    this.#onDone = (queue) => this.requests.done(queue);
    this.closed = this.#end.promise;
    this.#keeper = new BackendKeeper(backend, reconnect, {
      setup: () => this.setup,
      lost: (reason) => {
        this.#attached = false;
        this.onLink?.({ kind: 'lost', reason });
      },
      restored: async (milliseconds) => {
        await this.#settle();
        this.onLink?.({ kind: 'restored', milliseconds });
      },
      failed: (error) => this.#fail(error),
    });
  }

  get backend(): VhostBackend {
    return this.#keeper.backend;
  }

  get reconnects(): number {
    return this.#keeper.reconnects;
  }

  /** The back-end is gone, and the next one is being looked for. */
  get searching(): boolean {
    return this.#keeper.searching;
  }

  get queues(): readonly BlkQueue[] {
    return this.#queues.all;
  }

  /** What the disk is, as of the start or of the last `refreshConfig`. */
  get config(): BlkDeviceConfig {
    return this.#config;
  }

  /** Most bytes of data of one request. */
  get requestBytes(): number {
    return this.#queues.requestBytes;
  }

  get hasInflight(): boolean {
    return this.#queues.inflight !== null;
  }

  /** Requests in the rings. */
  get outstanding(): number {
    return this.#queues.outstanding;
  }

  /** False before the rings start, between `stop` and `resume`, and after the end. */
  get running(): boolean {
    return this.#running;
  }

  /** It failed, or was closed. */
  get ended(): boolean {
    return this.#ended;
  }

  /** Reads the configuration space again: a disk may have been resized. */
  async refreshConfig(): Promise<BlkDeviceConfig> {
    this.#config = await readBlkConfig(this.backend, this.features);
    return this.#config;
  }

  /** What is ready goes into the ring, as far as there is room. Returns how many did. */
  submit(queue: BlkQueue): number {
    if (!this.#running || this.#holding) return 0;
    const count = submitReady(queue);
    if (count > 0 && needsKick(queue.queue.ring)) {
      queue.queue.kicks++;
      this.#kick(queue);
    }
    return count;
  }

  /** Takes one batch of what came back. Returns how many, 0 also when that ended the guest. */
  reap(queue: BlkQueue): number {
    if (this.#ended) return 0;
    const count = reapBlk(queue);
    if (count < 0) return this.#broken(queue, count);
    if (count === 0) return 0;
    this.#onDone(queue);
    releaseBlk(queue);
    if (queue.readyCount > 0) this.submit(queue); // there is room in the ring again
    return count;
  }

  /**
   * Until the function that is returned is called, only the caller makes requests, looks for what
   * came back, and hears of it. Nothing may be under way at both moments.
   */
  claim(onDone: DoneHandler): () => void {
    assert(!this.#claimed && this.requests.pending === 0, 'the guest is idle');
    const before = this.#onDone;
    this.#claimed = true;
    this.#onDone = onDone;
    for (const { queue } of this.queues) disableCalls(queue.ring);
    return () => {
      this.#claimed = false;
      this.#onDone = before;
      if (this.#running) this.#startPolling();
      for (const queue of this.queues) this.#drain(queue);
    };
  }

  /** For a claimed guest: resolves when something came back, or after `timeoutMs`. */
  async waitForCalls(timeoutMs: number): Promise<void> {
    let isThere = false;
    for (const { queue } of this.queues) if (enableCalls(queue.ring)) isThere = true;
    if (!isThere && !this.#ended) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, timeoutMs);
        this.#wake = (): void => {
          clearTimeout(timer);
          resolve();
        };
      });
      this.#wake = null;
    }
    for (const { queue } of this.queues) disableCalls(queue.ring);
  }

  /**
   * Lets what is under way finish, for `drainMs` at most, and stops the rings. `resume` goes on.
   * Returns the bases.
   */
  async stop(drainMs = DRAIN_MS): Promise<number[]> {
    if (!this.#running) return this.#bases;
    this.#holding = true;
    const deadline = performance.now() + drainMs;
    while (this.outstanding > 0 && !this.#ended && performance.now() < deadline) {
      this.#reapAll();
      if (this.outstanding > 0) await new Promise((resolve) => setTimeout(resolve, 1));
    }
    this.#holding = false;
    this.#running = false;
    this.#stopPolling();
    if (!this.#attached) return this.#bases;
    this.#attached = false;
    const bases: number[] = [];
    for (const queue of this.queues) bases.push(await stopVring(this.backend, queue.index));
    this.#reapAll();
    this.#bases = bases;
    return bases;
  }

  /** Starts the rings where `stop` found them; with nobody there, as soon as somebody is. */
  async resume(): Promise<void> {
    if (this.#running || this.#ended) return;
    if (this.#keeper.searching) {
      this.#running = true;
      return this.#startPolling();
    }
    const { backend } = this;
    if (backend.restartsWhole) await introduceAgain(backend, this.setup);
    this.#bases = this.#queues.restartBases(this.#bases, backend.restartsWhole);
    await this.#startRings();
    if (backend.restartsWhole) await backend.setStatus(RUNNING);
    this.#kickAll();
  }

  /** Idempotent. Stops the rings if somebody still answers, and releases everything. */
  async close(): Promise<void> {
    if (this.#ended && this.failure === null) return;
    this.#keeper.abort();
    try {
      if (this.failure === null && this.#attached) await this.stop(CLOSE_DRAIN_MS);
    } catch {
      // The back-end went away: nothing of ours runs there any more.
    }
    this.#ended = true;
    this.#running = false;
    this.#stopPolling();
    await this.#keeper.close();
    this.requests.end(new VringError('ERR_VRING_CLOSED', 'the guest is closed'));
    this.#queues.close();
    this.#end.resolve(this.failure);
  }

  /** What another back-end must offer and be told to go on with this guest. */
  get setup(): DriverSetup {
    const { protocolFeatures, gpaAddresses } = this.#keeper;
    return {
      deviceId: VIRTIO_ID_BLOCK,
      features: this.features,
      protocolFeatures,
      vrings: this.queues.length,
      regions: () => [this.#queues.memory.backendRegion()],
      rings: () => {
        this.#handed = this.#running;
        if (!this.#running) return [];
        this.#reapAll();
        return this.#queues.rings(this.#queues.recoverBases(), gpaAddresses);
      },
      inflight: this.#queues.inflight,
    };
  }

  async #begin(): Promise<void> {
    await this.backend.setMemTable([this.#queues.memory.backendRegion()]);
    await this.#queues.makeInflight(this.backend);
    this.#bases = this.#queues.freshBases();
    await this.#startRings();
    await this.backend.setStatus(RUNNING);
    this.#kickAll();
  }

  async #startRings(): Promise<void> {
    for (const { queue } of this.queues) disableCalls(queue.ring);
    this.#running = true;
    try {
      for (const { index, vring } of this.#queues.rings(this.#bases, this.#keeper.gpaAddresses)) {
        await startVring(this.backend, index, vring);
      }
    } catch (error) {
      this.#running = false;
      throw error;
    }
    this.#attached = true;
    this.#startPolling();
  }

  /**
   * The back-end may have said "no kick" before it looked, or died: one kick each. What it finished
   * may lack its call.
   */
  #kickAll(): void {
    for (const queue of this.queues) {
      this.submit(queue);
      this.#kick(queue);
      if (!this.#claimed) this.#drain(queue);
    }
  }

  #kick(queue: BlkQueue): void {
    const device = this.backend.inThread;
    if (device === undefined) signalEventfd(queue.queue.kick.number);
    else device.kicked(queue.index);
  }

  #startPolling(): void {
    this.#stopPolling();
    if (this.#notify === 'poll' && !this.#claimed) this.#pollTurn();
    for (const queue of this.queues) {
      const { call } = queue.queue;
      this.#polls.push(pollFd(call.number, { read: true }, () => this.#called(queue)));
    }
  }

  /** After a search, during which the guest may have been stopped or resumed. */
  async #settle(): Promise<void> {
    this.#attached = this.#handed;
    if (this.#running && this.#handed) this.#kickAll();
    else if (this.#running) {
      this.#reapAll();
      this.#bases = this.#queues.recoverBases();
      await this.#startRings();
      this.#kickAll();
    } else if (this.#handed) {
      this.#running = true;
      await this.stop();
    }
  }

  #called(queue: BlkQueue): void {
    if (drainEventfd(queue.queue.call.number) > 0) queue.queue.calls++;
    if (this.#claimed) this.#wake?.();
    else this.#drain(queue);
  }

  /** Works through what has come; asks for a call when there is no more. */
  #drain(queue: BlkQueue): void {
    for (let i = 0; this.#running && i < BATCHES_PER_TURN; i++) {
      if (this.reap(queue) > 0) continue;
      if (!this.#running || this.#notify === 'poll') return;
      if (!enableCalls(queue.queue.ring)) return;
    }
    if (!this.#running || this.#claimed) return;
    setImmediate(() => {
      if (!this.#claimed) this.#drain(queue);
    });
  }

  #pollTurn(): void {
    for (const queue of this.queues) if (this.#running) this.reap(queue);
    if (this.#running && !this.#claimed) this.#turn = setImmediate(() => this.#pollTurn());
  }

  #reapAll(): void {
    for (const queue of this.queues) {
      for (let left = queue.outstanding; left > 0 && this.reap(queue) > 0; left--);
    }
  }

  #broken(queue: BlkQueue, fault: number): number {
    const name = faultName(fault);
    const text = `${this.backend.description} broke virtio in ${queue.queue.plan.name}: ${name}`;
    this.#fail(new VringError(`ERR_VRING_GUEST_${name}`, text, { recovery: 'reset' }));
    return 0;
  }

  #fail(error: Error): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#running = false;
    this.failure = error;
    this.#stopPolling();
    this.requests.end(error);
    this.#end.resolve(error);
  }

  #stopPolling(): void {
    for (const poll of this.#polls.splice(0)) poll.close();
    if (this.#turn !== null) clearImmediate(this.#turn);
    this.#turn = null;
    this.#wake?.();
  }
}
