import { setTimeout as sleep } from 'node:timers/promises';
import { type CaptureRing, CaptureRingReader, createCaptureRing } from './capture-ring.ts';
import {
  enhancedPacketBytes,
  interfaceDescription,
  interfaceStatistics,
  putEnhancedPacket,
  sectionHeader,
} from './pcapng.ts';

/** How often the ring is looked at while it is empty. */
const POLL_MS = 5;
/** Bytes of blocks handed out at once, a little more when the last frame is large. */
const CHUNK_BYTES = 256 * 1024;

export type CaptureStreamOptions = {
  /** `if_name` of the capture's interface. */
  readonly interfaceName: string;
  /** Most bytes of each frame. */
  readonly snapLen: number;
  /** Called once, when the stream was closed or its reader stopped: take the tap off. */
  readonly onClose?: () => void;
  readonly ringBytes?: number;
};

/**
 * A capture of one port as pcapng bytes: a valid file after every chunk. Made by the control
 * thread; its `ring` goes to a CaptureTap in the worker. Iterate once. Ends after `close`, with
 * what was captured until then and the statistics.
 */
export class CaptureStream {
  readonly ring: CaptureRing;
  readonly #reader: CaptureRingReader;
  readonly #options: CaptureStreamOptions;
  readonly #startTime = BigInt(Date.now()) * 1_000_000n;
  readonly #closing = new AbortController();

  /** @throws ConfigError for a `snapLen` that is no positive number. */
  constructor(options: CaptureStreamOptions) {
    this.#options = options;
    this.ring = createCaptureRing(options.snapLen, options.ringBytes);
    this.#reader = new CaptureRingReader(this.ring);
  }

  /** Frames that passed and are not in the capture: it was read too slowly. */
  get lost(): number {
    return this.#reader.lost;
  }

  /** Idempotent. */
  close(): void {
    if (this.#closing.signal.aborted) return;
    this.#closing.abort();
    this.#options.onClose?.();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array, void> {
    const { interfaceName } = this.#options;
    const { signal } = this.#closing;
    try {
      const description = interfaceDescription(interfaceName, this.ring.snapLen);
      yield Buffer.concat([sectionHeader('vring'), description]);
      for (;;) {
        const ending = signal.aborted; // asked before reading: nothing is left behind
        const chunk = this.#chunk();
        if (chunk !== null) yield chunk;
        else if (ending) break;
        else await sleep(POLL_MS, undefined, { signal }).catch(() => undefined);
      }
      yield interfaceStatistics({
        startTime: this.#startTime,
        endTime: BigInt(Date.now()) * 1_000_000n,
        received: BigInt(this.#reader.seen),
        dropped: BigInt(this.#reader.lost),
      });
    } finally {
      this.close();
    }
  }

  /** Blocks of the frames that wait, or null. */
  #chunk(): Buffer | null {
    const reader = this.#reader;
    const blocks: Buffer[] = [];
    let bytes = 0;
    while (bytes < CHUNK_BYTES) {
      const frame = reader.peek();
      if (frame === null) break;
      const block = Buffer.alloc(enhancedPacketBytes(frame.capturedBytes));
      reader.take(frame, block, putEnhancedPacket(block, 0, frame));
      blocks.push(block);
      bytes += block.length;
    }
    return blocks.length === 0 ? null : Buffer.concat(blocks, bytes);
  }
}
