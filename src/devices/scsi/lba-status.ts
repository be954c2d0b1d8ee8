/** GET LBA STATUS, SBC-3 5.5: which blocks are mapped, as far as the engine knows. */
import { type Extent, EXTENTS_BYTES, IO_EXTENTS, readExtents } from '../../storage/index.ts';
import * as scsi from '../../wire/scsi.ts';
import type { Command } from './command.ts';
import { MAX_STATUS_BYTES } from './limits.ts';
import type { ByteRange, Scratch, Steps } from './medium-job.ts';

const DESCRIPTOR_BYTES = 16;

// PROVISIONING STATUS.
const MAPPED = 0;
const DEALLOCATED = 1;

type Run = { readonly lba: number; readonly blocks: number; readonly status: number };

export function getLbaStatus(command: Command): void {
  const { unit } = command;
  const lba = command.u64(2);
  const allocated = command.u32(10);
  const left = unit.blocks[0]! - lba;
  if (left <= 0) return command.fail(scsi.SENSE_LBA, 2);
  const sizeBytes = Math.min(left * unit.blockBytes, MAX_STATUS_BYTES);
  const range = { at: lba * unit.blockBytes, sizeBytes };
  command.begin({ steps: (copy, scratch) => lookUp(copy, scratch, range, allocated) });
}

function* lookUp(
  command: Command,
  { offset }: Scratch,
  { at, sizeBytes }: ByteRange,
  allocated: number,
): Steps {
  const { blockBytes, blocks } = command.unit;
  const status = yield { op: IO_EXTENTS, at, sizeBytes, segments: [[offset, EXTENTS_BYTES]] };
  const extents = status === 0 ? readExtents(offset, EXTENTS_BYTES, at) : [];
  const lba = at / blockBytes;
  const runs = runsOf(extents, lba, blockBytes);
  // Nothing is known of any: all of them are mapped.
  if (runs.length === 0) runs.push({ lba, blocks: blocks[0]! - lba, status: MAPPED });
  command.answer(encode(runs), allocated);
}

/** A block is deallocated if all of it is a hole; what is not whole at the end is left out. */
function runsOf(extents: readonly Extent[], lba: number, blockBytes: number): Run[] {
  const runs: Run[] = [];
  let next = lba;
  const add = (end: number, status: number): void => {
    if (end > next) runs.push({ lba: next, blocks: end - next, status });
    next = Math.max(next, end);
  };
  let known = lba * blockBytes;
  for (const { at, sizeBytes, kind } of extents) {
    known = at + sizeBytes;
    if (kind !== 'hole') continue;
    const first = Math.ceil(at / blockBytes);
    const end = Math.floor(known / blockBytes);
    if (end <= first) continue;
    add(first, MAPPED);
    add(end, DEALLOCATED);
  }
  add(Math.floor(known / blockBytes), MAPPED);
  return runs;
}

function encode(runs: readonly Run[]): Uint8Array {
  const bytes = new Uint8Array(8 + DESCRIPTOR_BYTES * runs.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, bytes.length - 4);
  for (const [i, { lba, blocks, status }] of runs.entries()) {
    const at = 8 + DESCRIPTOR_BYTES * i;
    view.setBigUint64(at, BigInt(lba));
    view.setUint32(at + 8, Math.min(blocks, 0xffff_ffff));
    bytes[at + 12] = status;
  }
  return bytes;
}
