/**
 * Which parts of a file have data, by SEEK_DATA and SEEK_HOLE: system calls on what the file system
 * has in memory as a rule, as `fallocate` is. What was zeroed and still has its place is a hole to
 * ext4 and xfs; what is dirty in the page cache is data.
 */
import { seekFile } from '../../sys/index.ts';
import { SEEK_DATA, SEEK_END, SEEK_HOLE } from '../../wire/linux.ts';
import { type Extent, MAX_EXTENTS } from '../layer/layer.ts';

const ENXIO = 6; // uapi/asm-generic/errno-base.h: behind the last data

/** As `Layer.extents`. A file system that does not know, a block device and errors: data. */
export function fileExtents(fd: number, at: number, sizeBytes: number): Extent[] {
  const fileEnd = seekFile(fd, 0, SEEK_END);
  const end = at + sizeBytes;
  const extents: Extent[] = [];
  for (let place = at; place < end && extents.length < MAX_EXTENTS;) {
    let data = seekFile(fd, place, SEEK_DATA);
    // What a file that became shorter lacks can not be read, and is no hole.
    if (data === -ENXIO && place < fileEnd) data = fileEnd;
    if (data > place) {
      const until = Math.min(data, end);
      extents.push({ at: place, sizeBytes: until - place, kind: 'hole' });
      place = until;
      continue;
    }
    const hole = data === place ? seekFile(fd, place, SEEK_HOLE) : -1;
    const until = hole > place ? Math.min(hole, end) : end;
    extents.push({ at: place, sizeBytes: until - place, kind: 'data' });
    place = until;
  }
  return extents;
}
