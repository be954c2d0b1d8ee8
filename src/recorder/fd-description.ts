/** What an fd leads to, as a recording tells it. */
import { fstatSync, readFileSync } from 'node:fs';
import { messageOf } from '../base/errors.ts';
import { fdStat, fdTarget } from '../sys/index.ts';
import type { FdDescription } from './recorded-event.ts';

const SYSTEM_PAGE_BYTES = 4096;

/** Never throws: an fd that cannot be looked at is `other`. */
export function describeFd(fd: number): FdDescription {
  try {
    return describe(fd);
  } catch (error) {
    return { kind: 'other', identity: messageOf(error), inode: 0 };
  }
}

/** An eventfd, as the kernel names it; a peer may send anything as one. */
export function isEventfd(fd: number): boolean {
  return fdTarget(fd) === 'anon_inode:[eventfd]';
}

function describe(fd: number): FdDescription {
  const target = fdTarget(fd);
  const { ino: inode, dev } = fstatSync(fd);
  if (target === 'anon_inode:[eventfd]') {
    const info = readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8');
    const field = (name: string, radix: number): number | null => {
      const text = new RegExp(`^${name}:\\s*(\\w+)`, 'm').exec(info)?.[1];
      return text === undefined ? null : Number.parseInt(text, radix);
    };
    // All eventfds have one inode; the kernel numbers them since 5.2.
    const identity = `eventfd:${field('eventfd-id', 10) ?? `unknown-${fd}`}`;
    return { kind: 'eventfd', identity, inode, count: field('eventfd-count', 16) ?? 0 };
  }
  if (target.startsWith('anon_inode:[userfaultfd]')) {
    return { kind: 'userfaultfd', identity: target, inode };
  }
  const stat = fdStat(fd);
  const identity = `${dev}:${inode}`;
  if (target.startsWith('pipe:')) return { kind: 'pipe', identity, inode };
  if (stat.kind === 'socket' || stat.kind === 'char' || stat.kind === 'other') {
    return { kind: stat.kind, identity, inode };
  }
  const { sizeBytes, pageSizeBytes } = stat;
  const isMemory = stat.kind === 'memfd-like' ? 'memfd' : 'file';
  const kind = pageSizeBytes > SYSTEM_PAGE_BYTES ? 'hugetlbfs' : isMemory;
  return { kind, identity, inode, sizeBytes, pageSizeBytes };
}
