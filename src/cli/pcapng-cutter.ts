/**
 * Cuts a pcapng stream at block borders: what was passed on is a valid file at any moment, and it
 * ends after a number of frames. Formats: draft-ietf-opsawg-pcapng, section 3.
 */
import { VringError } from '../base/errors.ts';

const ENHANCED_PACKET = 6;
const SIMPLE_PACKET = 3;
const MIN_BLOCK_BYTES = 12;
/** A block holds one frame of at most 262144 bytes and its options. */
const MAX_BLOCK_BYTES = 1024 * 1024;

export class PcapngCutter {
  /** Frames passed on. */
  frames = 0;
  readonly #maxFrames: number;
  #rest: Buffer = Buffer.alloc(0);

  constructor(maxFrames = Number.POSITIVE_INFINITY) {
    this.#maxFrames = maxFrames;
  }

  get done(): boolean {
    return this.frames >= this.#maxFrames;
  }

  /** Returns the complete blocks of what came so far, up to the last frame wanted. */
  push(chunk: Buffer): Buffer {
    const bytes = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
    let end = 0;
    while (!this.done && bytes.length - end >= 8) {
      const type = bytes.readUInt32LE(end);
      const size = bytes.readUInt32LE(end + 4);
      if (size < MIN_BLOCK_BYTES || size > MAX_BLOCK_BYTES || size % 4 !== 0) {
        throw new VringError('ERR_VRING_CAPTURE', `the capture has a block of ${size} bytes`);
      }
      if (bytes.length - end < size) break;
      end += size;
      if (type === ENHANCED_PACKET || type === SIMPLE_PACKET) this.frames++;
    }
    this.#rest = this.done ? Buffer.alloc(0) : bytes.subarray(end);
    return bytes.subarray(0, end);
  }
}
