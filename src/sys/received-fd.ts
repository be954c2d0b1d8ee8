/**
 * Descriptors that a stranger sent us. What they lead to is the stranger's choice: on FUSE or a
 * network file system even close(2) waits for a server that may never answer.
 */
import { readFileSync } from 'node:fs';
import { Fd, fdStat, fdTarget } from './fd.ts';
import { native } from './native.ts';

/** File systems whose close(2) nobody outside the kernel has a say in. */
const LOCAL = new Set(
  (
    'ext2 ext3 ext4 xfs btrfs f2fs zfs overlay squashfs erofs ' +
    'tmpfs ramfs hugetlbfs devtmpfs devpts proc sysfs cgroup2 mqueue'
  ).split(' '),
);

export class ReceivedFd extends Fd {
  /**
   * Never waits: what might is closed aside, by a thread of its own. With all of those held by
   * others, the descriptor stays open.
   * @syscalls close
   */
  override close(): void {
    if (this.closed) return;
    const number = this.take();
    if (closeMayWait(number)) native.closeAside(number);
    else native.close(number);
  }
}

/** Whether close(2) depends on somebody else. Asks only /proc, which never does. */
export function closeMayWait(number: number): boolean {
  const target = fdTarget(number);
  if (/^(socket|pipe|anon_inode):/.test(target)) return false;
  if (fdStat(number).kind === 'memfd-like') return false;
  const type = fileSystemOf(number);
  return type === null || !LOCAL.has(type);
}

/** Type of the file system that an fd is on; null: not one of our mount namespace. */
function fileSystemOf(number: number): string | null {
  const id = /^mnt_id:\s*(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${number}`, 'utf8'))?.[1];
  for (const line of readFileSync('/proc/self/mountinfo', 'utf8').split('\n')) {
    // proc(5): mount id first; type first behind the separator.
    if (line.startsWith(`${id} `)) return line.split(' - ')[1]?.split(' ')[0] ?? null;
  }
  return null;
}
