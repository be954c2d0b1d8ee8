/** What the segments of a slot hold: private copies, both ways. */
import { arena } from '../../sys/index.ts';
import { type RequestRing, SLOT_SEGMENTS } from './request-ring.ts';

export class SlotData {
  readonly #ring: RequestRing;
  readonly #memory = arena().bytes;

  constructor(ring: RequestRing) {
    this.#ring = ring;
  }

  /**
   * The first `size` bytes; a copy: the guest may change its memory while the layers look at it.
   */
  gather(slot: number, size: number): Buffer {
    const bytes = Buffer.allocUnsafeSlow(size);
    const ring = this.#ring;
    let at = 0;
    for (let s = slot * SLOT_SEGMENTS; at < size; s++) {
      const offset = ring.segOffset[s]!;
      const len = Math.min(ring.segLen[s]!, size - at);
      bytes.set(this.#memory.subarray(offset, offset + len), at);
      at += len;
    }
    return bytes;
  }

  /** `bytes`, from byte `skip` of the segments on. */
  scatter(slot: number, bytes: Uint8Array, skip: number): void {
    const ring = this.#ring;
    let from = -skip;
    for (let s = slot * SLOT_SEGMENTS; from < bytes.length; s++) {
      const len = ring.segLen[s]!;
      const first = Math.max(0, from);
      const part = bytes.subarray(first, Math.max(first, from + len));
      this.#memory.set(part, ring.segOffset[s]! + (first - from));
      from += len;
    }
  }
}
