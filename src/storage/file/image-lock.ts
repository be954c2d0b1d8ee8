/**
 * Who else uses an image: the locks that QEMU's file driver takes (block/file-posix.c), so that a
 * server of ours, another one, and QEMU with its tools refuse each other.
 *
 * A byte from 100 on is locked for what one does with the image, one from 200 on for what one does
 * not let others do; all locks are shared ones, and go with the open file. Having taken its own, an
 * opener looks whether anybody forbids what it does, or does what it forbids. Two that come at once
 * may refuse each other; they never both go on.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { SysError, VringError } from '../../base/errors.ts';
import { type Fd, isByteLocked, shareByte, unlockByte } from '../../sys/index.ts';

const DOES_AT = 100;
const FORBIDS_AT = 200;

// Bits of QEMU's BLK_PERM_*: numbers of bytes here.
const CONSISTENT_READ = 0;
const WRITE = 1;
const RESIZE = 3;
const NAMES: Readonly<Record<number, string>> = {
  [CONSISTENT_READ]: 'reads',
  [WRITE]: 'writes',
  [RESIZE]: 'may resize',
};

/** What file systems say that have no such locks. */
const NO_LOCKS: ReadonlySet<string> = new Set(['ENOLCK', 'EOPNOTSUPP', 'ENOSYS', 'EINVAL']);

/**
 * How long a lock is waited for: of a server that was killed, requests may be in the kernel still,
 * and hold its files open, and so its locks, until they are done. Whoever came sooner would see
 * them reach the medium behind its own writes.
 */
const LOCK_WAIT_MS = 300;
const LOCK_TRY_MS = 5;

/**
 * Locks an image for as long as the file is open: for writing, or for reading beside others who
 * only read. A file system without such locks is left as it is.
 * @throws VringError ERR_VRING_DISK_LOCKED.
 */
export function lockImage(file: Fd, readOnly: boolean): Promise<void> {
  return patiently(() => tryLockImage(file, readOnly));
}

/** The same, without waiting for whoever is about to go. */
export function tryLockImage(file: Fd, readOnly: boolean): void {
  try {
    shareLock(file, readOnly);
    checkOthers(file, readOnly);
  } catch (error) {
    if (error instanceof SysError && NO_LOCKS.has(error.errnoName)) return;
    for (const at of bytesOf(readOnly)) unlockByte(file, at);
    throw error;
  }
}

/** Repeats what is refused for a lock; what is refused for longer is refused. */
export async function patiently<T>(attempt: () => T): Promise<T> {
  for (const deadlineMs = performance.now() + LOCK_WAIT_MS; ; await sleep(LOCK_TRY_MS)) {
    try {
      return attempt();
    } catch (error) {
      const isInUse = error instanceof VringError && error.code === 'ERR_VRING_DISK_LOCKED';
      if (!isInUse || performance.now() > deadlineMs) throw error;
    }
  }
}

/**
 * The same locks for a second open file of an image that is locked: requests that go
 * through it outlive a server that is killed, too.
 * @throws VringError ERR_VRING_DISK_LOCKED.
 */
export function lockBeside(file: Fd, readOnly: boolean): void {
  try {
    shareLock(file, readOnly);
  } catch (error) {
    if (!(error instanceof SysError) || !NO_LOCKS.has(error.errnoName)) throw error;
  }
}

const CHANGES = [WRITE, RESIZE];

/**
 * For a while, beside what `lockImage(file, true)` has taken: it is written, too. Who reads it may
 * have forbidden that. Undone by `unlockChanges`.
 * @throws VringError ERR_VRING_DISK_LOCKED.
 */
export function lockChanges(file: Fd): void {
  try {
    for (const bit of CHANGES) {
      if (!shareByte(file, DOES_AT + bit)) throw inUse(file, 'has it for itself alone');
    }
    if (!CHANGES.some((bit) => isByteLocked(file, FORBIDS_AT + bit))) return;
    throw inUse(file, 'uses it, and lets it not be written by others');
  } catch (error) {
    if (error instanceof SysError && NO_LOCKS.has(error.errnoName)) return;
    unlockChanges(file);
    throw error;
  }
}

/** Idempotent. */
export function unlockChanges(file: Fd): void {
  for (const bit of CHANGES) unlockByte(file, DOES_AT + bit);
}

function doesOf(readOnly: boolean): readonly number[] {
  return readOnly ? [CONSISTENT_READ] : [CONSISTENT_READ, WRITE, RESIZE];
}

const FORBIDS = [WRITE, RESIZE];

function bytesOf(readOnly: boolean): number[] {
  const does = doesOf(readOnly).map((bit) => DOES_AT + bit);
  return [...does, ...FORBIDS.map((bit) => FORBIDS_AT + bit)];
}

function shareLock(file: Fd, readOnly: boolean): void {
  for (const at of bytesOf(readOnly)) {
    if (!shareByte(file, at)) throw inUse(file, 'has it for itself alone');
  }
}

function checkOthers(file: Fd, readOnly: boolean): void {
  for (const bit of doesOf(readOnly)) {
    if (!isByteLocked(file, FORBIDS_AT + bit)) continue;
    const verb = bit === CONSISTENT_READ ? 'read' : 'write';
    throw inUse(file, `lets nobody else ${verb} it`);
  }
  for (const bit of FORBIDS) {
    if (isByteLocked(file, DOES_AT + bit)) throw inUse(file, `${NAMES[bit]!} it`);
  }
}

function inUse(file: Fd, how: string): VringError {
  const text =
    `${file.what} is in use: another process ${how}; end it (fuser -v ${file.what}), or turn the ` +
    `lock off if you know that it does no harm (lock: false, or file:PATH,lock=off)`;
  return new VringError('ERR_VRING_DISK_LOCKED', text, { recovery: 'retry' });
}
