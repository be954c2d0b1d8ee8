/**
 * A disk that the data plane drives directly. A storage thread is started the first time that it is
 * asked for something that needs one, such as an NBD export, over the same bytes.
 */
import { StorageThread } from '../bridge/storage-thread.ts';
import type { DiskImage, EngineSpec } from '../disk-image.ts';
import type { StackSpec } from './stack-spec.ts';

export type DirectImageOptions = {
  readonly image: DiskImage;
  readonly stack: StackSpec;
  /** As `StorageBoot.exportLimits`. */
  readonly exportLimits: readonly SharedArrayBuffer[];
  readonly onProblem: (message: string) => void;
  /** The thread has ended, and the exports with it. */
  readonly onExportsLost?: (error: Error) => void;
  readonly environment?: NodeJS.ProcessEnv;
};

export class DirectImage implements DiskImage {
  readonly #options: DirectImageOptions;
  readonly #image: DiskImage;
  #thread: Promise<StorageThread> | null = null;

  constructor(options: DirectImageOptions) {
    this.#options = options;
    this.#image = options.image;
  }

  get description(): string {
    return this.#image.description;
  }

  get readOnly(): boolean {
    return this.#image.readOnly;
  }

  get sizeBytes(): number {
    return this.#image.sizeBytes;
  }

  get spec(): EngineSpec {
    return this.#image.spec;
  }

  measure(): Promise<number> {
    return this.#image.measure();
  }

  async resize(sizeBytes: number): Promise<void> {
    await this.#image.resize(sizeBytes);
    if (this.#thread === null) return;
    await (await this.#thread).request({ op: 'resize', payload: sizeBytes });
  }

  async control(name: string, payload: unknown): Promise<unknown> {
    return (await this.#start()).request({ op: 'control', name, payload });
  }

  counters(): Promise<Record<string, number>> {
    return this.#image.counters();
  }

  async close(): Promise<void> {
    try {
      if (this.#thread !== null) await (await this.#thread).close();
    } finally {
      await this.#image.close();
    }
  }

  #start(): Promise<StorageThread> {
    this.#thread ??= this.#open();
    return this.#thread;
  }

  async #open(): Promise<StorageThread> {
    const { stack, exportLimits, onProblem, onExportsLost, environment } = this.#options;
    const { spec: source, readOnly } = this.#image;
    try {
      return await StorageThread.start({
        name: 'vring-storage',
        stack,
        source,
        readOnly,
        exportLimits,
        bridge: null,
        onProblem,
        onCrash: (error) => {
          this.#thread = null;
          onProblem(`the storage thread of ${this.description} ended: ${error.message}`);
          onExportsLost?.(error);
        },
        ...(environment === undefined ? {} : { environment }),
      });
    } catch (error) {
      this.#thread = null;
      throw error;
    }
  }
}
