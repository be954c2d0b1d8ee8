/**
 * A driver of numbered requests over any back-end that answers them (`slow-device.ts`): what a
 * block driver is to a disk, without a disk. It outlives its back-end: rings, memory and the
 * inflight region stay, whoever comes next goes on, and every completion is counted by its number.
 */
import assert from 'node:assert/strict';
import { BackendKeeper } from '../../src/guest/backend-keeper.ts';
import { introduceDriver, startRings, type DriverSetup } from '../../src/guest/attach.ts';
import { GuestQueue, queueBytes, type QueuePlan } from '../../src/guest/guest-queue.ts';
import { recoverBase } from '../../src/guest/ring-recovery.ts';
import { GuestMemory } from '../../src/memory/index.ts';
import { drainEventfd, pollFd, signalEventfd, type Poll } from '../../src/sys/index.ts';
import {
  stopVring,
  VhostUserFrontend,
  type FrontendOptions,
  type InflightRegion,
} from '../../src/vhost-user/index.ts';
import {
  addChains,
  enableCalls,
  needsKick,
  publish,
  reapUsed,
} from '../../src/virtqueue/driver/index.ts';
import {
  featureSet,
  PACKED_BASE_FRESH,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
} from '../../src/wire/virtio.ts';

const DEVICE_ID = 42;
const REQUEST_BYTES = 8;
const REPLY_AT = 16;
const REPLY_BYTES = 8;
const BASE_GPA = 0x4000_0000;

export type RequestDriverOptions = {
  readonly socket: string;
  readonly packed: boolean;
  readonly indirect?: boolean;
  readonly ringSize?: number;
  /** Of FrontendOptions. */
  readonly protocolFeatures?: bigint;
};

export class RequestDriver {
  readonly queue: GuestQueue;
  /** How often each request completed, by its number, and who answered it last. */
  readonly completions: number[] = [];
  readonly answeredBy = new Set<number>();
  /** Why there is no back-end any more. */
  failure: Error | null = null;
  submitted = 0;
  completed = 0;
  readonly #memory: GuestMemory;
  readonly #features: bigint;
  readonly #options: RequestDriverOptions;
  readonly #numberOfSlot: Int32Array;
  #keeper!: BackendKeeper;
  #inflight: InflightRegion | null = null;
  #poll: Poll | null = null;
  #fresh = true;
  #base: number | null = null;
  #wake: (() => void) | null = null;

  static async start(options: RequestDriverOptions): Promise<RequestDriver> {
    const driver = new RequestDriver(options);
    try {
      await driver.#begin();
    } catch (error) {
      driver.#release();
      throw error;
    }
    return driver;
  }

  private constructor(options: RequestDriverOptions) {
    const { packed, indirect = false, ringSize = 64 } = options;
    this.#options = options;
    this.#features = featureSet(
      VIRTIO_F_VERSION_1,
      VIRTIO_RING_F_EVENT_IDX,
      ...(packed ? [VIRTIO_F_RING_PACKED] : []),
      ...(indirect ? [VIRTIO_RING_F_INDIRECT_DESC] : []),
    );
    const plan: QueuePlan = {
      size: ringSize,
      packed,
      eventIdx: true,
      indirect,
      inOrder: false,
      name: 'requestq',
      index: 0,
      slots: ringSize >> 1, // a request without a table takes two descriptors
      slotBytes: 64,
      segmentBytes: 64,
      deviceWrites: true,
    };
    this.#memory = GuestMemory.create(queueBytes(plan), { baseGpa: BASE_GPA });
    this.queue = new GuestQueue(plan, this.#memory, 0);
    this.#numberOfSlot = new Int32Array(plan.slots).fill(-1);
  }

  get reconnects(): number {
    return this.#keeper.reconnects;
  }

  get frontend(): VhostUserFrontend {
    return this.#keeper.backend as VhostUserFrontend;
  }

  /** Requests under way. */
  get outstanding(): number {
    return this.submitted - this.completed;
  }

  /** One more request, held for so long; false: the ring is full. */
  submit(holdMs: number): boolean {
    const { queue } = this;
    if (queue.freeCount === 0) return false;
    const slot = queue.freeSlots[queue.freeCount - 1]!;
    const at = queue.slotOffset[slot]!;
    const gpa = queue.slotGpa[slot]!;
    queue.arena.setUint32(at, this.submitted, true);
    queue.arena.setUint32(at + 4, holdMs, true);
    queue.arena.setUint32(at + REPLY_AT, 0xffff_ffff, true);
    queue.batch.clear();
    const reply = { gpa: gpa + REPLY_AT, len: REPLY_BYTES };
    queue.batch.addChain([{ gpa, len: REQUEST_BYTES }], [reply], queue.plan.indirect);
    if (addChains(queue.ring, queue.batch, 0, 1) === 0) return false;
    queue.freeCount--;
    queue.slotOfId[queue.batch.id[0]!] = slot;
    this.#numberOfSlot[slot] = this.submitted;
    this.completions[this.submitted++] = 0;
    publish(queue.ring);
    if (needsKick(queue.ring)) signalEventfd(queue.kick.number);
    return true;
  }

  /** Resolves at the next completions. */
  async progress(): Promise<void> {
    await new Promise<void>((resolve) => (this.#wake = resolve));
    this.#wake = null;
  }

  /** Resolves when nothing is under way. */
  async settled(): Promise<void> {
    while (this.outstanding > 0 && this.failure === null) await this.progress();
    if (this.failure !== null) throw this.failure;
  }

  /** GET_VRING_BASE, and what it says is where the next back-end is told to begin. */
  async stop(): Promise<number> {
    this.#base = await stopVring(this.frontend, 0);
    return this.#base;
  }

  async close(): Promise<void> {
    await this.#keeper.close();
    this.#release();
  }

  #release(): void {
    this.#poll?.close();
    this.#inflight?.fd.close();
    this.queue.close();
    this.#memory.close();
  }

  async #connect(): Promise<VhostUserFrontend> {
    const { protocolFeatures } = this.#options;
    const options: FrontendOptions = protocolFeatures === undefined ? {} : { protocolFeatures };
    return VhostUserFrontend.connect(this.#options.socket, options);
  }

  async #begin(): Promise<void> {
    const backend = await this.#connect();
    this.#keeper = new BackendKeeper(
      backend,
      { connect: () => this.#connect() },
      {
        setup: () => this.#setup(),
        lost: () => undefined,
        restored: async () => this.#look(true),
        failed: (error) => {
          this.failure = error;
          this.#wake?.();
        },
      },
    );
    await introduceDriver(backend, this.#setup());
    this.#inflight = await backend.inflight.create(1, this.queue.plan.size);
    await backend.inflight.set(this.#inflight);
    await startRings(backend, this.#setup());
    this.#fresh = false;
    this.#poll = pollFd(this.queue.call.number, { read: true }, () => {
      drainEventfd(this.queue.call.number);
      this.#look(false);
    });
    this.#look(true);
  }

  #setup(): DriverSetup {
    return {
      deviceId: DEVICE_ID,
      features: this.#features,
      protocolFeatures: this.#keeper.protocolFeatures,
      vrings: 1,
      regions: () => [this.#memory.backendRegion()],
      rings: () => [{ index: 0, vring: this.queue.vring(this.#nextBase()) }],
      inflight: this.#inflight,
    };
  }

  #nextBase(): number {
    if (this.#fresh) return this.queue.plan.packed ? PACKED_BASE_FRESH : 0;
    const stopped = this.#base;
    this.#base = null;
    const base = stopped ?? recoverBase(this.queue.ring, true);
    assert.notEqual(base, null, 'the ring is sound');
    return base!;
  }

  /** Takes what came back; with another back-end both sides may have missed a notification. */
  #look(kick: boolean): void {
    if (kick) signalEventfd(this.queue.kick.number);
    do this.#reap();
    while (enableCalls(this.queue.ring));
    this.#wake?.();
  }

  #reap(): void {
    const { queue } = this;
    for (;;) {
      const count = reapUsed(queue.ring, queue.used, queue.used.capacity);
      assert.ok(count >= 0, `the back-end broke the ring: ${count}`);
      if (count === 0) return;
      for (let i = 0; i < count; i++) {
        const slot = queue.slotOfId[queue.used.id[i]!]!;
        const number = this.#numberOfSlot[slot]!;
        const at = queue.slotOffset[slot]! + REPLY_AT;
        assert.equal(queue.used.len[i], REPLY_BYTES);
        assert.equal(queue.arena.getUint32(at, true), number, 'the answer is that of the request');
        this.answeredBy.add(queue.arena.getUint32(at + 4, true));
        this.completions[number]!++;
        this.completed++;
        this.#numberOfSlot[slot] = -1;
        queue.freeSlots[queue.freeCount++] = slot;
      }
    }
  }
}
