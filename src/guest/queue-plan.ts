/** How large the guest's queues and buffers must be for what was negotiated. */
import { VringError } from '../base/errors.ts';
import {
  NetHeader,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_F_GUEST_USO4,
  VIRTIO_NET_F_GUEST_USO6,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_TSO6,
  VIRTIO_NET_F_HOST_USO,
  VIRTIO_NET_F_MRG_RXBUF,
  netQueueName,
} from '../wire/virtio-net.ts';
import {
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_RING_PACKED,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
  hasFeature,
} from '../wire/virtio.ts';
import type { QueuePlan, RingFormat } from './guest-queue.ts';
import { MAX_RX_FRAME_BYTES } from './rx-frames.ts';

/** Ethernet header and one tag. */
const LINK_BYTES = 18;
/** A mergeable buffer: with header and a tag it holds a frame of the usual MTU. */
const MERGEABLE_BYTES = 2048;
/** Pieces of long buffers, as a Linux guest's pages. */
const SEGMENT_BYTES = 4096;
const CONTROL_RING_SIZE = 64;
/** Commands of at most this many bytes: a MAC table of some 150 entries. */
export const CONTROL_SLOT_BYTES = 1024;

export type PlanWishes = {
  readonly queuePairs: number;
  readonly ringSize: number;
  readonly mtu: number;
  readonly maxTxFrameBytes: number | null;
};

export type QueuePlans = {
  /** receiveq1, transmitq1, receiveq2, ... */
  readonly queues: readonly QueuePlan[];
  readonly control: QueuePlan;
  readonly maxTxFrameBytes: number;
};

export function planQueues(features: bigint, wishes: PlanWishes): QueuePlans {
  const any = (...bits: number[]): boolean => bits.some((bit) => hasFeature(features, bit));
  const packed = hasFeature(features, VIRTIO_F_RING_PACKED);
  checkRingSize(wishes.ringSize, packed);
  const format: RingFormat = {
    size: wishes.ringSize,
    packed,
    eventIdx: hasFeature(features, VIRTIO_RING_F_EVENT_IDX),
    indirect: hasFeature(features, VIRTIO_RING_F_INDIRECT_DESC),
    inOrder: hasFeature(features, VIRTIO_F_IN_ORDER),
  };
  const frameBytes = wishes.mtu + LINK_BYTES;
  const bigRx = any(
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6,
  );
  const bigTx = any(VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO);
  const mergeable = hasFeature(features, VIRTIO_NET_F_MRG_RXBUF);
  const wholeRx = bigRx ? MAX_RX_FRAME_BYTES : NetHeader.size + frameBytes;
  const rxBytes = mergeable ? MERGEABLE_BYTES : wholeRx;
  const maxTxFrameBytes =
    wishes.maxTxFrameBytes ?? (bigTx ? MAX_RX_FRAME_BYTES - NetHeader.size : frameBytes);
  const queues: QueuePlan[] = [];
  for (let index = 0; index < 2 * wishes.queuePairs; index++) {
    const receives = index % 2 === 0;
    queues.push({
      ...format,
      name: netQueueName(index, wishes.queuePairs),
      index,
      slots: wishes.ringSize,
      slotBytes: receives ? rxBytes : NetHeader.size + maxTxFrameBytes,
      segmentBytes: SEGMENT_BYTES,
      deviceWrites: receives,
    });
  }
  const control: QueuePlan = {
    ...format,
    size: CONTROL_RING_SIZE,
    name: 'controlq',
    index: 2 * wishes.queuePairs,
    slots: 1,
    slotBytes: CONTROL_SLOT_BYTES,
    segmentBytes: CONTROL_SLOT_BYTES,
    deviceWrites: true,
  };
  return { queues, control, maxTxFrameBytes };
}

function checkRingSize(size: number, packed: boolean): void {
  if (packed || Number.isInteger(Math.log2(size))) return;
  throw new VringError('ERR_VRING_RING_SIZE', `a split ring of ${size}: no power of two`);
}
