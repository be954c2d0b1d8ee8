/** A disk whose layers run on a storage thread of its own. */
import { createEventfd, type Fd, signalEventfd } from '../../sys/index.ts';
import type { DiskImage } from '../disk-image.ts';
import type { StackSpec } from '../stack/stack-spec.ts';
import type { BridgeEngineSpec } from './bridge-engine.ts';
import { REQUEST_RING_BYTES, RequestRing } from './request-ring.ts';
import { StorageThread } from './storage-thread.ts';

export type LayeredImageOptions = {
  readonly stack: StackSpec;
  /** The last part of the stack, opened; closed with the image. Null: the thread opens it. */
  readonly source: DiskImage | null;
  readonly readOnly: boolean;
  readonly onProblem: (message: string) => void;
  readonly environment?: NodeJS.ProcessEnv;
};

export class LayeredImage implements DiskImage {
  readonly #thread: StorageThread;
  readonly #source: DiskImage | null;
  readonly #ring: SharedArrayBuffer;
  readonly #submit: Fd;
  readonly #completion: Fd;

  /** @throws VringError of the layer that cannot be opened; nothing but `source` is left open. */
  static async open(options: LayeredImageOptions): Promise<LayeredImage> {
    const { stack, source, readOnly, onProblem, environment } = options;
    const ring = new SharedArrayBuffer(REQUEST_RING_BYTES);
    const submit = createEventfd('requests to a storage thread');
    const completion = createEventfd('completions of a storage thread');
    try {
      const thread = await StorageThread.start({
        name: 'vring-storage',
        stack,
        source: source?.spec ?? null,
        readOnly,
        bridge: { ring, submitFd: submit.number, completionFd: completion.number },
        onProblem,
        onCrash: (error) => {
          new RequestRing(ring).die(); // what is out fails, and what comes
          if (!completion.closed) signalEventfd(completion.number);
          onProblem(`the storage thread ended: ${error.message}; restart what serves this disk`);
        },
        ...(environment === undefined ? {} : { environment }),
      });
      return new LayeredImage(thread, source, ring, submit, completion);
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

  get spec(): BridgeEngineSpec {
    const { sizeBytes, readOnly } = this;
    const fds = { submitFd: this.#submit.number, completionFd: this.#completion.number };
    return { kind: 'bridge', ring: this.#ring, ...fds, sizeBytes, readOnly };
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
