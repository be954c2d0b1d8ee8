import { BATCH } from '../base/limits.ts';
import { PrivateMemory } from '../memory/index.ts';
import { CopyPlan } from '../sys/index.ts';

/** Longest frame of a device with its virtio-net header: 64 KiB of IP, Ethernet, a tag. */
export const MAX_RX_FRAME_BYTES = 65535 + 18 + 12;
/** Mergeable buffers of one frame; QEMU and Linux would need 18 pages for 64 KiB. */
export const MAX_RX_BUFFERS = 64;

/** The frames of one `reapRx`, in columns, and where frames of several buffers are gathered. */
export class RxFrames {
  readonly capacity = BATCH;
  count = 0;
  /** Arena offset of the Ethernet header; the virtio-net header stands 12 bytes in front. */
  readonly offset = new Float64Array(BATCH);
  readonly len = new Int32Array(BATCH);
  /** Slots to be given back. */
  readonly slots = new Int32Array(BATCH);
  slotCount = 0;

  /** Buffers that the frame under way still needs, and where it lies in the bounce area. */
  mergeLeft = 0;
  partialAt = 0;
  partialLen = 0;
  bounceUsed = 0;
  readonly bounceOffset: number;
  readonly maxBuffers = MAX_RX_BUFFERS;
  readonly maxFrameBytes = MAX_RX_FRAME_BYTES;
  readonly plan = new CopyPlan(BATCH);
  readonly #bounce: PrivateMemory;

  /** `slotBytes`: the longest buffer; a batch of them and a partial frame must fit. */
  constructor(slotBytes: number) {
    const most = Math.min(slotBytes, MAX_RX_FRAME_BYTES) * BATCH + MAX_RX_FRAME_BYTES;
    this.#bounce = PrivateMemory.allocate(most);
    this.bounceOffset = this.#bounce.offset;
  }

  close(): void {
    this.#bounce.close();
  }
}
