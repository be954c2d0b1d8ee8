/**
 * The file that remembers disks which the API added: whole, as the configuration would have them.
 * It is replaced as a whole, by a file that was synced before it got the name, so that a crash
 * leaves the old or the new one.
 */
import { mkdir, open, readFile, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { ConfigError, messageOf, VringError } from '../../base/errors.ts';
import { diskInput, parseDisk } from './disk-input.ts';
import type { DiskConfig } from './disk-types.ts';
import { adapterInput, parseAdapter, parseUnit, unitInput } from './scsi-input.ts';
import type { AdapterConfig, UnitConfig } from './scsi-types.ts';

/** 64 disks and 256 units with all their keys take less. */
const MAX_BYTES = 1024 * 1024;
/** With SCSI adapters: a program that knows none would lose them with its next change. */
const VERSION = 2;
/** Without. */
const VERSION_OF_DISKS = 1;

export type RememberedState = {
  readonly disks: readonly DiskConfig[];
  readonly adapters: readonly AdapterConfig[];
  /** Attached to adapters of the configuration. */
  readonly units: readonly { readonly adapter: string; readonly unit: UnitConfig }[];
};

const NOTHING: RememberedState = { disks: [], adapters: [], units: [] };

export const ERR_DISK_STATE = 'ERR_VRING_DISK_STATE';

export class DiskStateFile {
  readonly path: string;
  /** Why it must not be replaced: it has what we did not understand. */
  #unread: string | null = null;

  constructor(path: string) {
    this.path = path;
  }

  /**
   * None where there is no file.
   * @throws VringError ERR_VRING_DISK_STATE; the file stays as it is then, and `write` refuses.
   */
  async read(): Promise<RememberedState> {
    try {
      const text = await readFile(this.path, 'utf8');
      if (text.length > MAX_BYTES) throw new ConfigError(this.path, `has over ${MAX_BYTES} bytes`);
      return stateOf(this.path, JSON.parse(text) as Record<string, unknown>);
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return NOTHING;
      this.#unread = messageOf(cause);
      throw this.#refusal(cause);
    }
  }

  /** Durable when it resolves. @throws VringError ERR_VRING_DISK_STATE. */
  async write(state: RememberedState): Promise<void> {
    if (this.#unread !== null) throw this.#refusal();
    const text = `${JSON.stringify(written(state), null, 2)}\n`;
    const [folder, beside] = [dirname(this.path), `${this.path}.new`];
    try {
      // Or the next start could not read it, and would have none of them.
      if (text.length > MAX_BYTES) throw new ConfigError(this.path, `has over ${MAX_BYTES} bytes`);
      await makeFolder(folder);
      await writeSynced(beside, text);
      await rename(beside, this.path);
      await syncFolder(folder);
    } catch (cause) {
      await rm(beside, { force: true }).catch(() => undefined);
      const text = `${this.path} cannot be written: ${messageOf(cause)}`;
      throw new VringError(ERR_DISK_STATE, text, { cause });
    }
  }

  #refusal(cause?: unknown): VringError {
    const what = `${this.path} cannot be read: ${this.#unread}`;
    const text = `${what}; repair it or move it away, and restart`;
    return new VringError(ERR_DISK_STATE, text, cause === undefined ? {} : { cause });
  }
}

/** @throws ConfigError. */
function stateOf(path: string, read: Record<string, unknown>): RememberedState {
  const { version } = read;
  if (version !== VERSION && version !== VERSION_OF_DISKS) {
    const found = JSON.stringify(version);
    throw new ConfigError(path, `has version ${found}, this program knows up to ${VERSION}`);
  }
  const list = (name: string): Record<string, unknown>[] => {
    const found = read[name];
    if (!Array.isArray(found)) throw new ConfigError(path, `has no list of ${name}`);
    return found;
  };
  const disks = list('disks').map((disk) => parseDisk(disk));
  if (version === VERSION_OF_DISKS) return { ...NOTHING, disks };
  const adapters = list('scsi').map((adapter) => parseAdapter(adapter));
  const units = list('units').map(({ adapter, ...unit }) => {
    if (typeof adapter !== 'string') throw new ConfigError(path, 'has a unit without an adapter');
    return { adapter, unit: parseUnit(unit, adapter) };
  });
  return { disks, adapters, units };
}

function written({ disks, adapters, units }: RememberedState): Record<string, unknown> {
  const own = disks.map(diskInput);
  if (adapters.length + units.length === 0) return { version: VERSION_OF_DISKS, disks: own };
  const attached = units.map(({ adapter, unit }) => ({ adapter, ...unitInput(unit) }));
  return { version: VERSION, disks: own, scsi: adapters.map(adapterInput), units: attached };
}

/** One level: with `recursive`, Node's mkdir never returns below /proc. */
async function makeFolder(path: string): Promise<void> {
  await mkdir(path, { mode: 0o755 }).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'EEXIST') throw error;
  });
}

/** Key files are named in it, not their content; still it is nobody else's. */
async function writeSynced(path: string, text: string): Promise<void> {
  const file = await open(path, 'w', 0o600);
  try {
    await file.writeFile(text);
    await file.sync();
  } finally {
    await file.close();
  }
}

async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r');
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}
