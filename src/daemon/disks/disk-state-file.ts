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

/** 64 disks with all their keys take less. */
const MAX_BYTES = 1024 * 1024;
const VERSION = 1;

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
  async read(): Promise<DiskConfig[]> {
    try {
      const text = await readFile(this.path, 'utf8');
      if (text.length > MAX_BYTES) throw new ConfigError(this.path, `has over ${MAX_BYTES} bytes`);
      const { version, disks } = JSON.parse(text) as { version?: unknown; disks?: unknown };
      if (version !== VERSION) {
        const found = JSON.stringify(version);
        throw new ConfigError(this.path, `has version ${found}, this program knows ${VERSION}`);
      }
      if (!Array.isArray(disks)) throw new ConfigError(this.path, 'has no list of disks');
      return disks.map((disk) => parseDisk(disk));
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return [];
      this.#unread = messageOf(cause);
      throw this.#refusal(cause);
    }
  }

  /** Durable when it resolves. @throws VringError ERR_VRING_DISK_STATE. */
  async write(disks: readonly DiskConfig[]): Promise<void> {
    if (this.#unread !== null) throw this.#refusal();
    const text = `${JSON.stringify({ version: VERSION, disks: disks.map(diskInput) }, null, 2)}\n`;
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
