/**
 * The queues of the guest's net driver and the memory that they lie in: laid out for what was
 * negotiated, recovered when a device died, moved when the guest moves.
 */
import { VringError } from '../base/errors.ts';
import { GuestMemory } from '../memory/index.ts';
import type { InflightRegion } from '../vhost-user/index.ts';
import type { VhostBackend } from '../base/vhost-backend.ts';
import { VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD } from '../wire/vhost-user.ts';
import {
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_CTRL_VQ,
  VIRTIO_NET_F_HOST_USO,
  VIRTIO_NET_F_MQ,
  VIRTIO_NET_F_MRG_RXBUF,
} from '../wire/virtio-net.ts';
import { faultName } from '../virtqueue/index.ts';
import { hasFeature, PACKED_BASE_FRESH } from '../wire/virtio.ts';
import { asVhostUser, type DriverRing } from './attach.ts';
import { ControlQueue } from './control-queue.ts';
import { GuestQueue, queueBytes } from './guest-queue.ts';
import { GuestIommu, type AddressSpace } from './iommu.ts';
import type { LinkOffloads } from './link.ts';
import { refillRx } from './net-driver.hot.ts';
import { planQueues, type PlanWishes } from './queue-plan.ts';
import { recoverBase } from './ring-recovery.ts';
import { RxFrames } from './rx-frames.ts';

const BASE_GPA = 0x4000_0000;

export type QueueWishes = PlanWishes & {
  readonly features: bigint;
  readonly hugePages: boolean;
  readonly space: AddressSpace;
  readonly onFault: (error: Error) => void;
};

/** Memory that is to become the guest's, and what makes each queue's move. */
export type MemoryCopy = {
  readonly memory: GuestMemory;
  /** Of `GuestQueue.prepareMove`. */
  readonly moves: readonly (() => void)[];
};

export class NetQueues {
  readonly rx: GuestQueue[] = [];
  readonly tx: GuestQueue[] = [];
  readonly rxFrames: RxFrames[] = [];
  /** Null unless CTRL_VQ was negotiated. */
  readonly control: ControlQueue | null = null;
  readonly maxTxFrameBytes: number;
  /** Highest index of a data queue, and one. */
  readonly vrings: number;
  /** Rings that had to start anew, because their device died while it published. */
  restarted = 0;
  readonly space: AddressSpace;
  readonly #features: bigint;
  readonly #fresh: number;
  #memory: GuestMemory;
  #inflight: InflightRegion | null = null;

  constructor(wishes: QueueWishes) {
    const { features, space } = wishes;
    const plans = planQueues(features, wishes);
    const hasControl = hasFeature(features, VIRTIO_NET_F_CTRL_VQ);
    const all = [...plans.queues, ...(hasControl ? [plans.control] : [])];
    const bytes = all.reduce((sum, plan) => sum + queueBytes(plan), 0);
    this.#features = features;
    this.space = space;
    this.#fresh = plans.queues[0].packed ? PACKED_BASE_FRESH : 0;
    this.maxTxFrameBytes = plans.maxTxFrameBytes;
    this.vrings = plans.queues.length;
    this.#memory = GuestMemory.create(bytes, { hugePages: wishes.hugePages, baseGpa: BASE_GPA });
    if (space instanceof GuestIommu) space.setMemory(this.#memory);
    let at = 0;
    for (const plan of all) {
      const queue = new GuestQueue(plan, this.#memory, at, space);
      at += queueBytes(plan);
      if (plan === plans.control) this.control = new ControlQueue(queue, wishes.onFault);
      else (plan.index % 2 === 0 ? this.rx : this.tx).push(queue);
    }
    const mergeable = hasFeature(features, VIRTIO_NET_F_MRG_RXBUF);
    for (const queue of this.rx) this.rxFrames.push(new RxFrames(mergeable ? queue.slotBytes : 0));
  }

  /** What a frame that is sent may leave to the device. */
  get offloads(): LinkOffloads {
    const has = (bit: number): boolean => hasFeature(this.#features, bit);
    const uso = this.maxTxFrameBytes >= 65535 && has(VIRTIO_NET_F_HOST_USO);
    return { csum: has(VIRTIO_NET_F_CSUM), uso };
  }

  /** receiveq1, transmitq1, ..., controlq. */
  get all(): readonly GuestQueue[] {
    const data = this.rx.flatMap((queue, i) => [queue, this.tx[i]]);
    return this.control === null ? data : [...data, this.control.queue];
  }

  get memory(): GuestMemory {
    return this.#memory;
  }

  /** Kept across back-ends; null without INFLIGHT_SHMFD. */
  get inflight(): InflightRegion | null {
    return this.#inflight;
  }

  /** Fills the receive rings; the bases of rings that nobody has touched. */
  begin(maxPairs: number): number[] {
    this.control?.setIndex(hasFeature(this.#features, VIRTIO_NET_F_MQ) ? 2 * maxPairs : 2);
    for (const queue of this.rx) refillRx(queue);
    return this.all.map(() => this.#fresh);
  }

  /** Where the first back-end offers it, the region that its successors will need. */
  async makeInflight(backend: VhostBackend): Promise<void> {
    const frontend = asVhostUser(backend);
    if (frontend === null || !frontend.has(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD)) return;
    const size = Math.max(...this.all.map(({ plan }) => plan.size));
    this.#inflight = await frontend.inflight.create(this.all.at(-1)!.index + 1, size);
    await frontend.inflight.set(this.#inflight);
  }

  rings(bases: readonly number[], gpaAddresses: boolean): DriverRing[] {
    return this.all.map((queue, i) => {
      return { index: queue.index, vring: queue.vring(bases[i], gpaAddresses) };
    });
  }

  /** Of rings whose device died, after everything received was taken. */
  recoverBases(): number[] {
    // The rest of a frame in several buffers will not come: its sender is gone.
    for (const frames of this.rxFrames) frames.mergeLeft = 0;
    return this.all.map((queue) => {
      const base = recoverBase(queue.ring, this.#inflight !== null);
      if (base !== null) return base;
      this.restarted++;
      queue.startAnew();
      if (this.rx.includes(queue)) refillRx(queue);
      return this.#fresh;
    });
  }

  /** Goes on in a copy of the memory, and returns the old one. */
  moveTo({ memory, moves }: MemoryCopy): GuestMemory {
    const old = this.#memory;
    for (const move of moves) move();
    this.#memory = memory;
    if (this.space instanceof GuestIommu) this.space.setMemory(memory);
    return old;
  }

  close(): void {
    this.control?.close();
    for (const queue of this.all) queue.close();
    for (const frames of this.rxFrames) frames.close();
    this.#inflight?.fd.close();
    this.#memory.close();
  }
}

/** The back-end broke virtio in a queue. */
export function faultError(backend: VhostBackend, { plan }: GuestQueue, fault: number): VringError {
  const name = faultName(fault);
  const text = `${backend.description} broke virtio in ${plan.name}: ${name}`;
  return new VringError(`ERR_VRING_GUEST_${name}`, text, { recovery: 'reset' });
}
