/**
 * What a storage target remembers, and when: a change is in the file before it is made, so that
 * what cannot be remembered is not made.
 */
import { messageOf, VringError } from '../../base/errors.ts';
import { DiskStateFile, ERR_DISK_STATE, type RememberedState } from './disk-state-file.ts';
import type { MediumConfig } from './disk-types.ts';
import { Turns } from './turns.ts';

export type DiskMemoryOptions = {
  readonly path: string;
  readonly report: (kind: string, disk: string, message: string) => void;
  /** All that is to be remembered; `as` says what a disk is about to be. */
  readonly state: (as: <C extends MediumConfig>(config: C) => C) => RememberedState;
  /** That is in the file now. */
  readonly onWritten: () => void;
};

export class DiskMemory {
  /** Of the set of disks, and of the file. */
  readonly turns = new Turns();
  readonly #options: DiskMemoryOptions;
  readonly #file: DiskStateFile;
  /** What a disk is about to be, by name: as the file has it already. */
  readonly #planned = new Map<string, MediumConfig>();

  constructor(options: DiskMemoryOptions) {
    this.#options = options;
    this.#file = new DiskStateFile(options.path);
  }

  /** A file that cannot be read is said, and is not written over. */
  async read(): Promise<RememberedState> {
    try {
      return await this.#file.read();
    } catch (error) {
      this.#options.report('disk-state-unread', '', messageOf(error));
      return { disks: [], adapters: [], units: [] };
    }
  }

  /** In a turn. @throws VringError ERR_VRING_DISK_STATE: `consequence`, for people. */
  async rememberOr(consequence: string): Promise<void> {
    try {
      await this.#remember();
    } catch (cause) {
      throw new VringError(ERR_DISK_STATE, `${messageOf(cause)}; ${consequence}`, { cause });
    }
  }

  /** Makes a change once it is remembered. @throws ERR_VRING_DISK_STATE, and what it throws. */
  async change(planned: MediumConfig, make: () => Promise<void>): Promise<void> {
    const { name } = planned;
    this.#planned.set(name, planned);
    try {
      await this.turns.run(() => this.rememberOr('nothing was changed'));
      await make();
    } catch (error) {
      this.#planned.delete(name);
      await this.#forget(name, error);
      throw error;
    }
    this.#planned.delete(name);
  }

  /** A change that was remembered has failed by `error`. */
  async #forget(name: string, error: unknown): Promise<void> {
    if (error instanceof VringError && error.code === ERR_DISK_STATE) return; // it was not
    await this.turns
      .run(() => this.#remember())
      .catch((problem: unknown) => {
        const text = 'it has a change that failed, which is in force after a restart';
        this.#options.report('disk-state-behind', name, `${messageOf(problem)}; ${text}`);
      });
  }

  async #remember(): Promise<void> {
    const { state, onWritten } = this.#options;
    const as = <C extends MediumConfig>(config: C): C => {
      return (this.#planned.get(config.name) as C | undefined) ?? config;
    };
    await this.#file.write(state(as));
    onWritten();
  }
}
