/**
 * The rings of a VDUSE device: from what the driver set up to what a target runs.
 *
 * Theory of operation. At DRIVER_OK every queue is looked up. One that is ready is translated and
 * started; one that is not may be made ready later without a word to us, but for its first kick,
 * so we listen to that. A ring whose areas are not mapped (any more) waits until mappings change.
 * Rings are stopped, with their positions kept, when memory changes, and started where they were.
 *
 * Where a ring goes on, in this order: where we stopped it; where a predecessor left it
 * (`resumed`), which the used index says for devices that keep the order, and the inflight record
 * for others; where
 * the driver has it begin.
 */
import { assert } from '../base/assert.ts';
import { VringError } from '../base/errors.ts';
import { arena, createEventfd, drainEventfd, type Fd, pollFd, type Poll } from '../sys/index.ts';
import type { VduseChannel, VduseQueueInfo } from '../vhost-kernel/index.ts';
import {
  type BackendTarget,
  isPacked,
  ringAreas,
  type RingOffsets,
  type StartVring,
} from '../vhost-user/index.ts';
import type { VduseInflight } from './vduse-inflight.ts';
import type { VduseMemory } from './vduse-memory.ts';

type Ring = {
  readonly index: number;
  kick: Fd | null;
  /** A queue that is not ready: we listen, not the data plane. */
  poll: Poll | null;
  running: boolean;
  /** Where it was stopped; null: it has not run since the driver set it up. */
  base: number | null;
};

export type VduseRingsOptions = {
  readonly device: VduseChannel;
  readonly target: BackendTarget;
  readonly memory: VduseMemory;
  /** Null: the target uses chains in the order of the ring. */
  readonly inflight: VduseInflight | null;
  readonly onProblem: (text: string) => void;
  /** A queue that was not ready was kicked; to be answered by `startAll`, in its turn. */
  readonly onLateKick: () => void;
};

export class VduseRings {
  readonly #options: VduseRingsOptions;
  readonly #rings: Ring[] = [];

  constructor(options: VduseRingsOptions) {
    this.#options = options;
    for (let index = 0; index < options.target.queueCount; index++) {
      this.#rings.push({ index, kick: null, poll: null, running: false, base: null });
    }
  }

  get running(): number {
    return this.#rings.filter((ring) => ring.running).length;
  }

  isRunning(index: number): boolean {
    return this.#rings[index]?.running ?? false;
  }

  /**
   * Starts what does not run and can. Called again, it starts what has become possible.
   * @param features of the driver, ACCESS_PLATFORM not among them.
   * @param resumed a predecessor may have run the rings.
   * @throws VringError: a ring is impossible as the driver set it up, or cannot be gone on with.
   */
  async startAll(features: bigint, resumed: boolean): Promise<void> {
    const { device } = this.#options;
    const packed = isPacked(features);
    for (const ring of this.#rings) {
      if (ring.running) continue;
      const info = device.queueInfo(ring.index, packed);
      if (info.ready) await this.#start(ring, info, features, resumed);
      else this.#listen(ring);
    }
  }

  /** Nobody touches rings and memory afterwards. Where they stand is kept. */
  async stopAll(): Promise<void> {
    await Promise.all(this.#rings.map((ring) => this.#stop(ring)));
  }

  /** The driver starts over: positions are its business again. No ring runs. */
  forget(): void {
    for (const ring of this.#rings) {
      assert(!ring.running, 'a ring that runs is forgotten');
      ring.base = null;
    }
    this.#options.inflight?.clear();
  }

  /** Where a ring stands, exactly; one that runs stands still for the answer. */
  async position(index: number, features: bigint): Promise<number> {
    const ring = this.#rings[index];
    if (ring === undefined) {
      const { name } = this.#options.device;
      const count = this.#rings.length;
      const text = `VDUSE device ${name} was asked for vring ${index}, it has ${count}`;
      throw new VringError('ERR_VRING_VDUSE_REQUEST', text);
    }
    const wasRunning = ring.running;
    await this.#stop(ring);
    const info = this.#options.device.queueInfo(index, isPacked(features));
    if (wasRunning) await this.#start(ring, info, features, false);
    return ring.base ?? info.base;
  }

  /** Interrupts all rings that run. False: the kernel does not let us yet. */
  interruptAll(): boolean {
    const { device } = this.#options;
    return this.#rings.every((ring) => !ring.running || device.injectInterrupt(ring.index));
  }

  async #start(
    ring: Ring,
    info: VduseQueueInfo,
    features: bigint,
    resumed: boolean,
  ): Promise<void> {
    const { device, target, memory, inflight } = this.#options;
    const { index } = ring;
    const offsets = this.#translate(index, info, features);
    if (offsets === null) return; // `startAll` comes again when mappings change
    const base = ring.base ?? this.#baseOf(index, info, features, offsets, resumed);
    this.#release(ring);
    const kick = createEventfd(`kick of vring ${index} of VDUSE device ${device.name}`);
    ring.kick = kick;
    ring.running = true; // whatever becomes of it, it is stopped before its kick is closed
    device.setKick(index, kick);
    const start: StartVring = {
      size: info.size,
      packed: isPacked(features),
      base,
      ...offsets,
      features,
      enabled: true,
      kick,
      call: device.callFd,
      injectedQueue: index,
      err: null,
      map: memory.iotlb.snapshot(),
      iotlb: true,
      log: null,
      inflight: inflight?.of(index) ?? null,
      bigEndian: false,
    };
    await target.startVring(index, start);
  }

  async #stop(ring: Ring): Promise<void> {
    if (ring.running) {
      ring.base = await this.#options.target.stopVring(ring.index);
      ring.running = false;
    }
    this.#release(ring);
  }

  /** The kernel keeps its own hold of the eventfd until it is given another one. */
  #release(ring: Ring): void {
    ring.poll?.close();
    ring.poll = null;
    ring.kick?.close();
    ring.kick = null;
  }

  #listen(ring: Ring): void {
    if (ring.poll !== null) return;
    const { device, onLateKick } = this.#options;
    const kick = createEventfd(`first kick of vring ${ring.index} of ${device.name}`);
    ring.kick = kick;
    device.setKick(ring.index, kick);
    ring.poll = pollFd(kick.number, { read: true }, () => {
      drainEventfd(kick.number);
      onLateKick();
    });
  }

  /** Null: not all of it is mapped. */
  #translate(index: number, info: VduseQueueInfo, features: bigint): RingOffsets | null {
    const { device, target, memory, onProblem } = this.#options;
    const { size } = info;
    const packed = isPacked(features);
    const max = target.queueSizeMax ?? 32768;
    if (size < 1 || size > max || (!packed && (size & (size - 1)) !== 0)) {
      const expected = packed ? `1..${max}` : `a power of two up to ${max}`;
      throw new VringError(
        'ERR_VRING_RING_SIZE',
        `vring ${index} of VDUSE device ${device.name} has ${size} descriptors, ` +
          `expected ${expected}`,
      );
    }
    const iovas = [info.descIova, info.driverIova, info.deviceIova];
    const offsets: number[] = [];
    for (const [i, { bytes, permissions, align, name }] of ringAreas(size, features).entries()) {
      const iova = iovas[i]!;
      const offset = memory.iotlb.translate(Number(iova), bytes, permissions);
      if (offset < 0) {
        onProblem(`vring ${index} waits: its ${name} 0x${iova.toString(16)} is not mapped`);
        return null;
      }
      if (iova % BigInt(align) !== 0n || offset % align !== 0) {
        throw new VringError(
          'ERR_VRING_RING_ALIGNMENT',
          `vring ${index} of VDUSE device ${device.name}: ${name} 0x${iova.toString(16)} is not ` +
            `a multiple of ${align}`,
        );
      }
      offsets.push(offset);
    }
    return { descOffset: offsets[0]!, availOffset: offsets[1]!, usedOffset: offsets[2]! };
  }

  #baseOf(
    index: number,
    info: VduseQueueInfo,
    features: bigint,
    offsets: RingOffsets,
    resumed: boolean,
  ): number {
    // A packed ring's position is found from its record, or by the device from the ring itself
    // (virtqueue/recover-packed.ts); the base only says where it began.
    const { inflight, device } = this.#options;
    if (!resumed || inflight?.knows(index) === true) return info.base;
    const packed = isPacked(features);
    const used = packed ? info.base : usedIndex(offsets.usedOffset);
    if (inflight === null || (!packed && used === info.base)) return used;
    const text =
      `vring ${index} of VDUSE device ${device.name} was run by another process and ` +
      `${inflight.path} says nothing of it: which requests are done is not known. The driver ` +
      'must reset the device; for virtio_vdpa: vring vdpa bind NAME virtio';
    throw new VringError('ERR_VRING_VDUSE_INFLIGHT', text, { recovery: 'reset' });
  }
}

/** `idx` of a split ring's used ring, as the driver sees it. */
function usedIndex(usedOffset: number): number {
  return Atomics.load(new Uint16Array(arena().buffer, usedOffset, 2), 1);
}
