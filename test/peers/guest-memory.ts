/**
 * The memory of two QEMUs, compared page by page: what a migration must have made equal. While
 * neither runs every page that differs was written and not copied again.
 */
import { closeSync, fstatSync, openSync, readdirSync, readlinkSync, readSync } from 'node:fs';

const PAGE_BYTES = 4096;
const PIECE_BYTES = 2 ** 20;

/** Guest-physical addresses of pages that differ (memory below 4 GiB, one piece from 0 on). */
export function differingPages(pid: number, otherPid: number, sizeBytes: number): number[] {
  const fds = [pid, otherPid].map((one) => openMemory(one, sizeBytes));
  try {
    const [one, other] = fds.map(() => Buffer.alloc(PIECE_BYTES)) as [Buffer, Buffer];
    const found: number[] = [];
    for (let at = 0; at < sizeBytes; at += PIECE_BYTES) {
      const bytes = readSync(fds[0]!, one, 0, PIECE_BYTES, at);
      readSync(fds[1]!, other, 0, PIECE_BYTES, at);
      if (one.equals(other)) continue;
      for (let page = 0; page < bytes; page += PAGE_BYTES) {
        const end = page + PAGE_BYTES;
        if (one.compare(other, page, end, page, end) !== 0) found.push(at + page);
      }
    }
    return found;
  } finally {
    for (const fd of fds) closeSync(fd);
  }
}

/** The memfd of that size that a QEMU has its guest's memory in. */
function openMemory(pid: number, sizeBytes: number): number {
  const folder = `/proc/${pid}/fd`;
  for (const name of readdirSync(folder)) {
    if (!readlinkSync(`${folder}/${name}`).includes('memfd:memory-backend-memfd')) continue;
    const fd = openSync(`${folder}/${name}`, 'r');
    if (fstatSync(fd).size === sizeBytes) return fd;
    closeSync(fd);
  }
  throw new Error(`process ${pid} has no memfd of ${sizeBytes} bytes`);
}
