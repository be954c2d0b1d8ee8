/**
 * A disk whose layers run on a storage thread of its own. When that thread ends by an error, all
 * that is out fails with EIO, and what comes, until somebody has opened another image: repeating
 * requests here would end the next thread by the one that has ended this.
 */
import { VringError } from '../../base/errors.ts';
import { createEventfd, type Fd, signalEventfd } from '../../sys/index.ts';
import type { DiskImage } from '../disk-image.ts';
import type { StackSpec } from '../stack/stack-spec.ts';
import type { ZoneShape } from '../zoned/zone-types.ts';
import type { BridgeEngineSpec } from './bridge-engine.ts';
import { REQUEST_RING_BYTES, RequestRing } from './request-ring.ts';
import { StorageThread } from './storage-thread.ts';

export type LayeredImageOptions = {
  readonly stack: StackSpec;
  /** The last part of the stack, opened; closed with the image. Null: the thread opens it. */
  readonly source: DiskImage | null;
  readonly readOnly: boolean;
  /** As `StorageBoot.exportLimits`; none when left out. */
  readonly exportLimits?: readonly SharedArrayBuffer[];
  readonly onProblem: (message: string) => void;
  /** The thread has ended by itself: see `DiskImage.failure`. */
  readonly onCrash?: (error: Error) => void;
  readonly environment?: NodeJS.ProcessEnv;
};

export class LayeredImage implements DiskImage {
  readonly #thread: StorageThread;
  readonly #source: DiskImage | null;
  readonly #ring: SharedArrayBuffer;
  readonly #submit: Fd;
  readonly #completion: Fd;
  #failure: Error | null = null;

  /** @throws VringError of the layer that cannot be opened; nothing but `source` is left open. */
  static async open(options: LayeredImageOptions): Promise<LayeredImage> {
    const { stack, source, readOnly, exportLimits = [], onProblem } = options;
    const { onCrash, environment } = options;
    const ring = new SharedArrayBuffer(REQUEST_RING_BYTES);
    const submit = createEventfd('requests to a storage thread');
    const completion = createEventfd('completions of a storage thread');
    let image: LayeredImage | null = null;
    let failure: Error | null = null;
    try {
      const thread = await StorageThread.start({
        name: 'vring-storage',
        stack,
        source: source?.spec ?? null,
        readOnly,
        exportLimits,
        bridge: { ring, submitFd: submit.number, completionFd: completion.number },
        onProblem,
        onCrash: (cause) => {
          new RequestRing(ring).die();
          if (!completion.closed) signalEventfd(completion.number);
          failure = threadEnded(cause);
          if (image !== null) image.#failure = failure;
          onCrash?.(failure);
        },
        ...(environment === undefined ? {} : { environment }),
      });
      image = new LayeredImage(thread, source, ring, submit, completion);
      image.#failure = failure; // between its first message and us
      return image;
    } catch (error) {
      submit.close();
      completion.close();
      throw error;
    }
  }

  private constructor(
    thread: StorageThread,
    source: DiskImage | null,
    ring: SharedArrayBuffer,
    submit: Fd,
    completion: Fd,
  ) {
    this.#thread = thread;
    this.#source = source;
    this.#ring = ring;
    this.#submit = submit;
    this.#completion = completion;
  }

  get description(): string {
    return this.#thread.facts.description;
  }

  get readOnly(): boolean {
    return this.#thread.facts.readOnly;
  }

  get sizeBytes(): number {
    return this.#thread.sizeBytes;
  }

  get zones(): ZoneShape | null {
    return this.#thread.facts.zones;
  }

  get spec(): BridgeEngineSpec {
    const { sizeBytes, readOnly } = this;
    const fds = { submitFd: this.#submit.number, completionFd: this.#completion.number };
    return { kind: 'bridge', ring: this.#ring, ...fds, sizeBytes, readOnly };
  }

  get failure(): Error | null {
    return this.#failure;
  }

  measure(): Promise<number> {
    return this.#thread.request({ op: 'measure' });
  }

  resize(sizeBytes: number): Promise<void> {
    return this.#thread.request({ op: 'resize', payload: sizeBytes });
  }

  control(name: string, payload: unknown): Promise<unknown> {
    return this.#thread.request({ op: 'control', name, payload });
  }

  counters(): Promise<Record<string, number>> {
    return this.#thread.request({ op: 'counters' });
  }

  async close(): Promise<void> {
    try {
      await this.#thread.close();
    } finally {
      await this.#source?.close();
      this.#submit.close();
      this.#completion.close();
    }
  }
}

function threadEnded(cause: Error): VringError {
  const text = `the storage thread of the disk has ended: ${cause.message}`;
  return new VringError('ERR_VRING_STORAGE', text, { cause, recovery: 'retry' });
}
