/**
 * `chain.json`: which files an overlay is made of, from the bottom up. Replaced whole, by a rename,
 * so that it says one thing or the other, whenever a process or a machine ends.
 */
import { constants } from 'node:fs';
import { open, readdir, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { messageOf, VringError } from '../../base/errors.ts';

/** Files of one overlay: each costs every read of what it does not hold a look. */
export const MAX_FILES = 64;

const CHAIN = 'chain.json';
/** Nothing is in it: who has the folder has it locked. */
export const LOCK = 'lock';
const MAX_CHAIN_BYTES = 2 ** 16;
const FILE_NAME = /^\d{6}\.qcow2$/;
const SNAPSHOT_NAME = /^[\w.-]{1,64}$/;

export type ChainFile = {
  readonly file: string;
  /** The file is as it was when this was taken; null: of the top, and of what is being merged. */
  readonly snapshot: string | null;
  /** When the snapshot was taken; else when the file was made. */
  readonly createdAtMs: number;
};

export type Chain = {
  readonly version: 1;
  /** Number of the next file. */
  readonly next: number;
  /** The last one is written to. */
  readonly files: readonly ChainFile[];
  /** What this file holds is being copied into the one below it, or the base. */
  readonly merging: string | null;
  /** What that becomes part of is merged next, down to the base. */
  readonly isToBase: boolean;
};

export class OverlayError extends VringError {
  constructor(folder: string, problem: string, options: { cause?: unknown } = {}) {
    super('ERR_VRING_OVERLAY', `overlay ${folder}: ${problem}`, options);
  }
}

export function fileName(number: number): string {
  return `${String(number).padStart(6, '0')}.qcow2`;
}

/** @throws OverlayError. */
export function checkSnapshotName(folder: string, name: unknown, chain: Chain): string {
  if (typeof name !== 'string' || !SNAPSHOT_NAME.test(name)) {
    const expected = 'expected 1 to 64 letters, digits, dots, dashes and underscores';
    throw new OverlayError(folder, `${JSON.stringify(name)} is no name of a snapshot: ${expected}`);
  }
  if (chain.files.some(({ snapshot }) => snapshot === name)) {
    throw new OverlayError(folder, `there is a snapshot ${name} already; delete it first`);
  }
  return name;
}

/** Null: the folder is empty. @throws OverlayError, or what node:fs throws. */
export async function readChain(folder: string): Promise<Chain | null> {
  let text: string;
  try {
    text = await readFile(join(folder, CHAIN), 'utf8');
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') throw cause;
    const others = (await readdir(folder)).filter((name) => name !== LOCK && !isOurs(name));
    if (others.length === 0) return null;
    const problem = `holds ${others[0]} and no ${CHAIN}: name an empty folder, or an overlay's`;
    throw new OverlayError(folder, problem, { cause });
  }
  return parseChain(folder, text);
}

/**
 * Durable when it resolves. Null, or what failed once the new chain was in its place: it is the
 * chain then, if perhaps not durably.
 */
export async function writeChain(folder: string, chain: Chain): Promise<unknown> {
  const temporary = join(folder, `${CHAIN}.tmp`);
  const file = await open(temporary, 'w', 0o600);
  try {
    await file.writeFile(JSON.stringify(chain, null, 2) + '\n');
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(temporary, join(folder, CHAIN));
  try {
    await syncFolder(folder);
    return null;
  } catch (error) {
    return error;
  }
}

/** What was made in the folder is in it after a power cut. */
export async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** Removes files that no chain names: a change was not finished, or left them behind. */
export async function removeStrays(folder: string, chain: Chain): Promise<void> {
  const known = new Set(chain.files.map(({ file }) => file));
  for (const name of await readdir(folder)) {
    if (isOurs(name) && !known.has(name)) await rm(join(folder, name), { force: true });
  }
}

function isOurs(name: string): boolean {
  return FILE_NAME.test(name) || name === `${CHAIN}.tmp`;
}

function parseChain(folder: string, text: string): Chain {
  const wrong = (problem: string, cause?: unknown): OverlayError =>
    new OverlayError(folder, `${CHAIN} ${problem}`, { cause });
  if (text.length > MAX_CHAIN_BYTES) throw wrong(`has more than ${MAX_CHAIN_BYTES} bytes`);
  let chain: Chain;
  try {
    chain = JSON.parse(text) as Chain;
  } catch (cause) {
    throw wrong(`is no JSON: ${messageOf(cause)}`, cause);
  }
  if (typeof chain !== 'object' || chain === null) throw wrong('is no object');
  const { version, next, files, merging, isToBase } = chain;
  if (version !== 1) throw wrong(`has version ${JSON.stringify(version)}, expected 1`);
  if (!Number.isSafeInteger(next) || next < 1 || next > 999_999) {
    throw wrong(`next is ${JSON.stringify(next)}, expected 1 to 999999`);
  }
  if (!Array.isArray(files) || files.length === 0 || files.length > MAX_FILES) {
    throw wrong(`files are no list of 1 to ${MAX_FILES}`);
  }
  const names = new Set<string>();
  for (const [i, entry] of (files as ChainFile[]).entries()) {
    const { file, snapshot, createdAtMs } = entry ?? {};
    const isNamed =
      snapshot === null || (typeof snapshot === 'string' && SNAPSHOT_NAME.test(snapshot));
    if (typeof file !== 'string' || !FILE_NAME.test(file) || names.has(file)) {
      throw wrong(
        `files[${i}].file is ${JSON.stringify(file)}, expected a new name like 000001.qcow2`,
      );
    }
    if (!isNamed || typeof createdAtMs !== 'number') {
      throw wrong(`files[${i}] has no snapshot name or null, and the time of it`);
    }
    names.add(file);
  }
  names.delete(files.at(-1)!.file);
  if (merging !== null && (typeof merging !== 'string' || !names.has(merging))) {
    throw wrong(`merging is ${JSON.stringify(merging)}, expected a file below the last, or null`);
  }
  if (typeof isToBase !== 'boolean') throw wrong('isToBase is neither true nor false');
  return chain;
}
