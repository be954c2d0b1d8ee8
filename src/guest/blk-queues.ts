/**
 * The queues of the guest's block driver and the memory that they lie in: laid out for what was
 * negotiated, recovered when their device died.
 */
import { VringError } from '../base/errors.ts';
import { MAX_CHAIN_DESCRIPTORS } from '../base/limits.ts';
import type { VhostBackend } from '../base/vhost-backend.ts';
import { GuestMemory } from '../memory/index.ts';
import type { InflightRegion } from '../vhost-user/index.ts';
import { VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD } from '../wire/vhost-user.ts';
import { VIRTIO_BLK_SECTOR_BYTES } from '../wire/virtio-blk.ts';
import {
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_RING_PACKED,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
  hasFeature,
} from '../wire/virtio.ts';
import { asVhostUser, type DriverRing } from './attach.ts';
import type { BlkDeviceConfig } from './blk-config.ts';
import { submitReady } from './blk-driver.hot.ts';
import { BLK_OVERHEAD_SEGMENTS, BlkQueue, blkQueueBytes, type BlkQueuePlan } from './blk-queue.ts';
import { recoverBase } from './ring-recovery.ts';

const BASE_GPA = 0x4000_0000;
/** A slip of the keyboard must not take the machine's memory. */
const MAX_MEMORY_BYTES = 16 * 2 ** 30;

export type BlkQueueWishes = {
  readonly features: bigint;
  readonly config: BlkDeviceConfig;
  readonly queues: number;
  readonly ringSize: number;
  /** Most bytes of data of one request; less where the device takes less. */
  readonly requestBytes: number;
  /** Longest descriptor of data; less where the device takes less. Null: whole requests. */
  readonly segmentBytes: number | null;
  readonly hugePages: boolean;
};

export class BlkQueues {
  readonly all: readonly BlkQueue[];
  readonly memory: GuestMemory;
  /** Most bytes of data of one request. */
  readonly requestBytes: number;
  #inflight: InflightRegion | null = null;

  /** @throws VringError ERR_VRING_RING_SIZE, ERR_VRING_GUEST_REQUEST_SIZE; SysError ENOMEM. */
  constructor(wishes: BlkQueueWishes) {
    const plan = planBlkQueue(wishes);
    const plans = Array.from({ length: wishes.queues }, (_, index) => ({ ...plan, index }));
    const eachBytes = blkQueueBytes(plan);
    this.requestBytes = plan.dataBytes;
    if (plans.length * eachBytes > MAX_MEMORY_BYTES) {
      const text =
        `${plans.length} queues of ${plan.size} requests of ${plan.dataBytes} bytes need more ` +
        `than ${MAX_MEMORY_BYTES} bytes of guest memory: make fewer, shorter or smaller ones`;
      throw new VringError('ERR_VRING_GUEST_REQUEST_SIZE', text);
    }
    this.memory = GuestMemory.create(plans.length * eachBytes, {
      hugePages: wishes.hugePages,
      baseGpa: BASE_GPA,
    });
    try {
      this.all = plans.map((one, i) => new BlkQueue(one, this.memory, i * eachBytes));
    } catch (error) {
      this.memory.close();
      throw error;
    }
  }

  /** Kept across back-ends; null without INFLIGHT_SHMFD. */
  get inflight(): InflightRegion | null {
    return this.#inflight;
  }

  get outstanding(): number {
    let sum = 0;
    for (const queue of this.all) sum += queue.outstanding;
    return sum;
  }

  /** Where the first back-end offers it, the region that its successors will need. */
  async makeInflight(backend: VhostBackend): Promise<void> {
    const frontend = asVhostUser(backend);
    if (frontend?.has(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD) !== true) return;
    this.#inflight = await frontend.inflight.create(this.all.length, this.all[0].plan.size);
    await frontend.inflight.set(this.#inflight);
  }

  freshBases(): number[] {
    return this.all.map((queue) => queue.freshBase);
  }

  rings(bases: readonly number[], gpaAddresses: boolean): DriverRing[] {
    return this.all.map((queue, i) => {
      return { index: queue.index, vring: queue.vring(bases[i], gpaAddresses) };
    });
  }

  /**
   * Where the rings go on after their device died, when everything that it finished was taken.
   * With an inflight region the next device knows what is out. Without one, and whatever the ring
   * looks like, all that was not finished is given to it again, in an empty ring: a write that is
   * done twice is the same write.
   * @throws VringError ERR_VRING_GUEST_USED_IDX and the like: the device broke the ring first.
   */
  recoverBases(): number[] {
    return this.all.map((queue) => {
      if (this.#inflight === null) return this.#beginAgain(queue);
      const base = recoverBase(queue.queue.ring, true);
      if (base !== null) return base;
      const text = `${queue.queue.plan.name}: the back-end left a ring that makes no sense`;
      throw new VringError('ERR_VRING_GUEST_USED_IDX', text, { recovery: 'reset' });
    });
  }

  /** Of a device that stopped in order, or was reset: what it did not finish is given anew. */
  restartBases(stopped: readonly number[], wasReset: boolean): number[] {
    return this.all.map((queue, i) => {
      const goesOn = !wasReset && (queue.outstanding === 0 || this.#inflight !== null);
      return goesOn ? stopped[i]! : this.#beginAgain(queue);
    });
  }

  close(): void {
    for (const queue of this.all) queue.close();
    this.#inflight?.fd.close();
    this.memory.close();
  }

  #beginAgain(queue: BlkQueue): number {
    queue.startAnew();
    submitReady(queue);
    return queue.freshBase;
  }
}

/** 2.6: a chain is at most as long as the ring, also through a table. */
function planBlkQueue(wishes: BlkQueueWishes): BlkQueuePlan {
  const { features, config, ringSize } = wishes;
  const packed = hasFeature(features, VIRTIO_F_RING_PACKED);
  if (!packed && !Number.isInteger(Math.log2(ringSize))) {
    throw new VringError('ERR_VRING_RING_SIZE', `a split ring of ${ringSize}: no power of two`);
  }
  const mostSegments = Math.min(ringSize, MAX_CHAIN_DESCRIPTORS) - BLK_OVERHEAD_SEGMENTS;
  // 5.2.5: a driver must not exceed seg_max, which QEMU understands without header and status.
  const segments = Math.min(mostSegments, Math.max(1, config.segMax ?? mostSegments));
  if (segments < 1) {
    const text = `a ring of ${ringSize}: a request needs three descriptors or more`;
    throw new VringError('ERR_VRING_RING_SIZE', text);
  }
  const sizeMax = config.sizeMax === null || config.sizeMax === 0 ? Infinity : config.sizeMax;
  const segmentBytes = Math.min(wishes.segmentBytes ?? wishes.requestBytes, sizeMax);
  const most = Math.min(wishes.requestBytes, segments * segmentBytes);
  const dataBytes = Math.floor(most / config.blockBytes) * config.blockBytes;
  if (dataBytes < config.blockBytes || segmentBytes < VIRTIO_BLK_SECTOR_BYTES) {
    const text =
      `requests of ${wishes.requestBytes} bytes in at most ${segments} pieces of ` +
      `${segmentBytes}: the device's blocks have ${config.blockBytes} bytes`;
    throw new VringError('ERR_VRING_GUEST_REQUEST_SIZE', text);
  }
  return {
    size: ringSize,
    packed,
    eventIdx: hasFeature(features, VIRTIO_RING_F_EVENT_IDX),
    indirect: hasFeature(features, VIRTIO_RING_F_INDIRECT_DESC),
    inOrder: hasFeature(features, VIRTIO_F_IN_ORDER),
    index: 0,
    dataBytes,
    segmentBytes,
  };
}
