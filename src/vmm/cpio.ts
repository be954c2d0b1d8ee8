/**
 * A writer for the cpio format `newc`, which the kernel unpacks as its initramfs. Format:
 * Linux, Documentation/driver-api/early-userspace/buffer-format.rst. Pure.
 */

const REGULAR = 0o100000;
const DIRECTORY = 0o040000;
const SYMLINK = 0o120000;
const CHARACTER = 0o020000;

export type CpioEntry =
  | {
      readonly kind: 'file';
      readonly path: string;
      readonly mode: number;
      readonly bytes: Uint8Array;
    }
  | { readonly kind: 'directory'; readonly path: string; readonly mode: number }
  | { readonly kind: 'symlink'; readonly path: string; readonly target: string }
  | {
      readonly kind: 'character';
      readonly path: string;
      readonly mode: number;
      readonly major: number;
      readonly minor: number;
    };

/**
 * The archive, trailer included. Paths are relative (`bin/sh`); a folder must come before what it
 * holds. Owner is root, time is zero: the same entries always give the same bytes.
 */
export function writeCpio(entries: readonly CpioEntry[]): Uint8Array {
  const parts: Uint8Array[] = [];
  entries.forEach((entry, index) => pushEntry(parts, entry, index + 1));
  pushRecord(parts, 'TRAILER!!!', 0, 0, new Uint8Array(0), 0, 0);
  return Buffer.concat(parts);
}

function pushEntry(parts: Uint8Array[], entry: CpioEntry, inode: number): void {
  const none = new Uint8Array(0);
  switch (entry.kind) {
    case 'file':
      return pushRecord(parts, entry.path, REGULAR | entry.mode, inode, entry.bytes, 0, 0);
    case 'directory':
      return pushRecord(parts, entry.path, DIRECTORY | entry.mode, inode, none, 0, 0);
    case 'symlink':
      return pushRecord(parts, entry.path, SYMLINK | 0o777, inode, Buffer.from(entry.target), 0, 0);
    case 'character': {
      const { path, mode, major, minor } = entry;
      return pushRecord(parts, path, CHARACTER | mode, inode, none, major, minor);
    }
  }
}

function pushRecord(
  parts: Uint8Array[],
  path: string,
  mode: number,
  inode: number,
  bytes: Uint8Array,
  major: number,
  minor: number,
): void {
  const name = Buffer.from(`${path}\0`);
  const linkCount = (mode & DIRECTORY) === DIRECTORY ? 2 : 1;
  // c_magic, then ino mode uid gid nlink mtime filesize maj min rmaj rmin namesize check
  const fields = [
    inode,
    mode,
    0,
    0,
    linkCount,
    0,
    bytes.length,
    0,
    0,
    major,
    minor,
    name.length,
    0,
  ];
  const header = `070701${fields.map((f) => f.toString(16).padStart(8, '0')).join('')}`;
  parts.push(Buffer.from(header), name, padding(header.length + name.length));
  parts.push(bytes, padding(bytes.length));
}

/** The header with its name, and the data, each end on a multiple of four bytes. */
function padding(lengthBytes: number): Uint8Array {
  return new Uint8Array(-lengthBytes & 3);
}
