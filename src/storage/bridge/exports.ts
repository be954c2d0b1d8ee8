/**
 * NBD exports of one disk, which are its storage thread's: `control` with the names `export`
 * (NbdExportOptions; answers NbdExportStatus), `exports` (all of them) and `unexport` (`{ uri }`).
 */
import { VringError } from '../../base/errors.ts';
import type { Layer } from '../layer/layer.ts';
import { NbdExport, type NbdExportOptions, type NbdExportStatus } from '../nbd/index.ts';

/** Exports of one disk at a time. */
export const MAX_EXPORTS = 8;

export class Exports {
  readonly #layer: Layer;
  readonly #open = new Map<string, NbdExport>();
  #starting = 0;

  constructor(layer: Layer) {
    this.#layer = layer;
  }

  /** `undefined`: no such name is known here. */
  control(name: string, payload: unknown): Promise<unknown> | undefined {
    if (name === 'export') return this.#start(payload as NbdExportOptions);
    if (name === 'exports') return Promise.resolve([...this.#open.values()].map(statusOf));
    if (name === 'unexport') return this.#end((payload as { uri: string }).uri);
    return undefined;
  }

  /** All of them; when it resolves none uses the layer. */
  async close(): Promise<void> {
    const open = [...this.#open.values()];
    this.#open.clear();
    await this.#hurried(async () => {
      await Promise.all(open.map((each) => each.close()));
    });
  }

  /** Nobody waits for limits of who has left. */
  async #hurried(work: () => Promise<void>): Promise<void> {
    this.#layer.hurry(true);
    try {
      await work();
    } finally {
      this.#layer.hurry(false);
    }
  }

  async #start(options: NbdExportOptions): Promise<NbdExportStatus> {
    if (this.#open.size + this.#starting >= MAX_EXPORTS) {
      const text = `a disk has ${MAX_EXPORTS} exports at most; end one first`;
      throw new VringError('ERR_VRING_DISK_EXPORTS', text);
    }
    this.#starting++;
    try {
      const started = await NbdExport.start(this.#layer, options);
      const status = started.status();
      this.#open.set(status.uri, started);
      return status;
    } finally {
      this.#starting--;
    }
  }

  async #end(uri: string): Promise<void> {
    const found = this.#open.get(uri);
    if (found === undefined) {
      const known = [...this.#open.keys()].join(', ') || 'none';
      throw new VringError('ERR_VRING_DISK_EXPORTS', `no export ${uri}; there is ${known}`);
    }
    this.#open.delete(uri);
    await this.#hurried(() => found.close());
  }
}

function statusOf(each: NbdExport): NbdExportStatus {
  return each.status();
}
