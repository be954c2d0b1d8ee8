/**
 * The NBD export of one disk. It is its image's: another image begins it anew, and a disk whose
 * export cannot be had is served all the same.
 */
import { messageOf } from '../../base/errors.ts';
import type { DiskExport } from './disk-types.ts';
import type { ServedUnit } from './served-unit.ts';

/** An export whose thread has ended begins again after so long. */
const RETRY_MS = 1000;

export type DiskExporterOptions = {
  readonly name: string;
  readonly report: (kind: string, message: string) => void;
  /** The export has ended by itself; it may be started again. */
  readonly onRetry: () => void;
};

export class DiskExporter {
  readonly #options: DiskExporterOptions;
  #uri: string | null = null;
  #timer: NodeJS.Timeout | null = null;

  constructor(options: DiskExporterOptions) {
    this.#options = options;
  }

  get uri(): string | null {
    return this.#uri;
  }

  /** Unless it is there. Where it cannot be had, that is said. */
  async start(unit: ServedUnit, wanted: DiskExport | null): Promise<void> {
    if (wanted === null || this.#uri !== null) return;
    try {
      this.#uri = await this.#begin(unit, wanted);
    } catch (error) {
      this.#options.report('export-failed', messageOf(error));
    }
  }

  /**
   * `after` instead of `before`; null is none.
   * @throws VringError of the new one; the old one goes on then.
   */
  async replace(
    unit: ServedUnit,
    before: DiskExport | null,
    after: DiskExport | null,
  ): Promise<void> {
    const old = this.#uri;
    if (after !== null && after.socket !== before?.socket) {
      this.#uri = await this.#begin(unit, after);
      return this.#end(unit, old);
    }
    // Two cannot have one socket.
    await this.#end(unit, old);
    this.#uri = null;
    if (after === null) return;
    try {
      this.#uri = await this.#begin(unit, after);
    } catch (error) {
      await this.start(unit, before);
      throw error;
    }
  }

  /** The image is closed, and the export with it. */
  ended(): void {
    this.#uri = null;
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
  }

  /** It ended by itself: whatever used it may end it again, so it waits. */
  lost(): void {
    this.ended();
    this.#timer = setTimeout(this.#options.onRetry, RETRY_MS).unref();
  }

  async #end(unit: ServedUnit, uri: string | null): Promise<void> {
    // One that is not there any more has ended by itself.
    if (uri !== null) await unit.image.control('unexport', { uri }).catch(() => undefined);
  }

  async #begin(unit: ServedUnit, { socket, readOnly }: DiskExport): Promise<string> {
    const options = { at: { socket, mode: 0o660 }, name: this.#options.name, readOnly };
    return ((await unit.image.control('export', options)) as { uri: string }).uri;
  }
}
