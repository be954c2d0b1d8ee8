/**
 * Commands about blocks that are no plain READ or WRITE. SBC-3 5: UNMAP, WRITE SAME, VERIFY, ...
 */
import { arena } from '../../sys/index.ts';
import { IO_FUA, IO_READ, IO_UNMAP, IO_WRITE, IO_ZEROES } from '../../storage/index.ts';
import * as scsi from '../../wire/scsi.ts';
import type { Command } from './command.ts';
import {
  MAX_COMPARE_BLOCKS,
  MAX_TRANSFER_BYTES,
  MAX_UNMAP_BYTES,
  MAX_UNMAP_RANGES,
  MAX_WRITE_SAME_BYTES,
  WORK_BYTES,
} from './limits.ts';
import type { ByteRange, Scratch, Steps } from './medium-job.ts';
import { repeated } from './medium-work.ts';
import { IN_PARAMETERS, NONE, senseOfErrno } from './sense.ts';
import { COUNT_UNMAP } from './scsi-vring.ts';

const RANGE_BYTES = 16;

/** LBPRZ is promised, so it is zeros that are asked for, and that space may be given back. */
export function unmap(command: Command): void {
  const { unit } = command;
  command.kind = COUNT_UNMAP;
  const length = command.u16(7);
  if ((command.u8(1) & 1) !== 0) return command.fail(scsi.SENSE_CDB_FIELD, 1); // ANCHOR
  if (length === 0) return;
  if (length < 8) return command.fail(scsi.SENSE_PARAMETER_LENGTH);
  const head = command.parameters(8);
  if (head === null) return;
  const rangesBytes = Math.min((head[2]! << 8) | head[3]!, length - 8);
  const ranges = Math.floor(rangesBytes / RANGE_BYTES);
  if (ranges > MAX_UNMAP_RANGES) return command.fail(scsi.SENSE_PARAMETER, IN_PARAMETERS | 2);
  const list = command.parameters(8 + ranges * RANGE_BYTES);
  if (list === null) return;
  const view = new DataView(list.buffer);
  const wanted: [lba: number, blocks: number][] = [];
  for (let at = 8; at < list.length; at += RANGE_BYTES) {
    const [lba, blocks] = [Number(view.getBigUint64(at)), view.getUint32(at + 8)];
    if (!command.checkRange(lba, blocks, true, IN_PARAMETERS | at)) return;
    if (blocks * unit.blockBytes > MAX_UNMAP_BYTES) {
      return command.fail(scsi.SENSE_PARAMETER, IN_PARAMETERS | (at + 8));
    }
    if (blocks > 0) wanted.push([lba, blocks]);
  }
  for (const [lba, blocks] of wanted) if (!zero(command, lba, blocks, IO_UNMAP)) return;
}

export function writeSame(command: Command): void {
  const { unit } = command;
  const isLong = command.u8(0) === scsi.WRITE_SAME_16;
  const options = command.u8(1);
  const [lba, blocks] = isLong
    ? [command.u64(2), command.u32(10)]
    : [command.u32(2), command.u16(7)];
  const [isUnmap, hasNoData] = [(options & 8) !== 0, isLong && (options & 1) !== 0];
  const lengthAt = isLong ? 10 : 7;
  if ((options & 0xf0) !== 0) return command.fail(scsi.SENSE_CDB_FIELD, 1); // WRPROTECT, ANCHOR
  if (blocks === 0) return command.fail(scsi.SENSE_CDB_FIELD, lengthAt); // WSNZ
  if (!command.checkRange(lba, blocks, true)) return;
  const sizeBytes = blocks * unit.blockBytes;
  if (sizeBytes > MAX_WRITE_SAME_BYTES) return command.fail(scsi.SENSE_CDB_FIELD, lengthAt);
  const block = hasNoData ? new Uint8Array(0) : command.parameters(unit.blockBytes);
  if (block === null) return;
  if (block.every((byte) => byte === 0)) {
    zero(command, lba, blocks, isUnmap ? IO_UNMAP : 0);
    return;
  }
  const range = { at: lba * unit.blockBytes, sizeBytes };
  command.begin({
    holds: range,
    steps: (copy, scratch) => writePattern(copy, scratch, block, range),
  });
}

function* writePattern(
  command: Command,
  { offset, bytes }: Scratch,
  block: Uint8Array,
  { at, sizeBytes }: ByteRange,
): Steps {
  const { unit } = command;
  for (let to = 0; to < Math.min(sizeBytes, WORK_BYTES); to += block.length) bytes.set(block, to);
  const flags = unit.writeCache === 0 ? IO_FUA : 0;
  const segments = repeated(offset, sizeBytes);
  const status = yield { op: IO_WRITE, at, sizeBytes, segments, flags };
  if (status !== 0) command.fail(senseOfErrno(status, false), NONE, at / unit.blockBytes);
}

function zero(command: Command, lba: number, blocks: number, flags: number): boolean {
  const { unit } = command;
  command.kind = COUNT_UNMAP;
  const fua = unit.writeCache === 0 ? IO_FUA : 0;
  return command.submit(IO_ZEROES, lba * unit.blockBytes, blocks * unit.blockBytes, flags | fua);
}

/** BYTCHK 0: can it be read? 1: is it what is given? 3: is each block the one that is given? */
export function verify(command: Command): void {
  const { unit, work } = command;
  const range = rangeOf(command, false);
  if (range === null) return;
  const check = (command.u8(1) >> 1) & 3;
  const { at, sizeBytes } = range;
  if (check === 2) return command.fail(scsi.SENSE_CDB_FIELD, 1);
  if (sizeBytes === 0) return;
  if (check === 0) {
    command.submit(IO_READ, at, sizeBytes, 0, work.sink(sizeBytes));
    return;
  }
  const givenBytes = check === 1 ? sizeBytes : unit.blockBytes;
  if (!command.needsOut(givenBytes)) return;
  command.begin({ steps: (copy, scratch) => compare(copy, scratch, range, givenBytes) });
}

/** What was written is read back from the medium, as far as an engine has one. */
export function writeAndVerify(command: Command): void {
  const range = rangeOf(command, true);
  if (range === null) return;
  const check = (command.u8(1) >> 1) & 3;
  if (check > 1) return command.fail(scsi.SENSE_CDB_FIELD, 1);
  if (!command.needsOut(range.sizeBytes) || range.sizeBytes === 0) return;
  command.begin({
    holds: range,
    steps: (copy, scratch) => writeAndCompare(copy, scratch, range),
  });
}

function* writeAndCompare(command: Command, scratch: Scratch, range: ByteRange): Steps {
  const { offset, bytes } = scratch;
  const { at, sizeBytes } = range;
  for (let done = 0; done < sizeBytes; done += WORK_BYTES) {
    const here = Math.min(WORK_BYTES, sizeBytes - done);
    copyOut(command, done, bytes.subarray(0, here));
    const segments = [[offset, here]] as const;
    const status = yield {
      op: IO_WRITE,
      at: at + done,
      sizeBytes: here,
      segments,
      flags: IO_FUA,
    };
    if (status !== 0) {
      const lba = (at + done) / command.unit.blockBytes;
      return command.fail(senseOfErrno(status, false), NONE, lba);
    }
  }
  yield* compare(command, scratch, range, sizeBytes);
}

/** It is a job that holds its blocks, so nobody changes them in between. */
export function compareAndWrite(command: Command): void {
  const { unit } = command;
  const lba = command.u64(2);
  const blocks = command.u8(13);
  if ((command.u8(1) & 0xe0) !== 0) return command.fail(scsi.SENSE_CDB_FIELD, 1);
  if (blocks > MAX_COMPARE_BLOCKS) return command.fail(scsi.SENSE_CDB_FIELD, 13);
  if (!command.checkRange(lba, blocks, true) || blocks === 0) return;
  const range = { at: lba * unit.blockBytes, sizeBytes: blocks * unit.blockBytes };
  if (!command.needsOut(2 * range.sizeBytes)) return;
  const flags = (command.u8(1) & 8) !== 0 || unit.writeCache === 0 ? IO_FUA : 0;
  command.begin({
    holds: range,
    steps: (copy, scratch) => compareThenWrite(copy, scratch, range, flags),
  });
}

/** Scratch memory has both halves: what the medium has, and what is to be written. */
function* compareThenWrite(
  command: Command,
  { offset, bytes }: Scratch,
  { at, sizeBytes }: ByteRange,
  flags: number,
): Steps {
  const lba = at / command.unit.blockBytes;
  copyOut(command, sizeBytes, bytes.subarray(sizeBytes, 2 * sizeBytes));
  const found = [[offset, sizeBytes]] as const;
  const readStatus = yield { op: IO_READ, at, sizeBytes, segments: found };
  if (readStatus !== 0) return command.fail(senseOfErrno(readStatus, true), NONE, lba);
  const differs = differsFromOut(command, 0, bytes.subarray(0, sizeBytes));
  if (differs >= 0) return command.fail(scsi.SENSE_MISCOMPARE, NONE, differs);
  const wanted = [[offset + sizeBytes, sizeBytes]] as const;
  const status = yield { op: IO_WRITE, at, sizeBytes, segments: wanted, flags };
  if (status !== 0) command.fail(senseOfErrno(status, false), NONE, lba);
}

/** What a VERIFY or WRITE AND VERIFY is about; null: refused. */
function rangeOf(command: Command, changes: boolean): ByteRange | null {
  const form = command.u8(0) >> 5; // 1: 10 bytes, 4: 16 bytes, 5: 12 bytes
  const lba = form === 4 ? command.u64(2) : command.u32(2);
  const blocks = form === 1 ? command.u16(7) : command.u32(form === 4 ? 10 : 6);
  const lengthAt = form === 1 ? 7 : form === 4 ? 10 : 6;
  const { blockBytes } = command.unit;
  const sizeBytes = blocks * blockBytes;
  if ((command.u8(1) & 0xe0) !== 0) command.fail(scsi.SENSE_CDB_FIELD, 1);
  else if (!command.checkRange(lba, blocks, changes)) return null;
  else if (sizeBytes > MAX_TRANSFER_BYTES) command.fail(scsi.SENSE_CDB_FIELD, lengthAt);
  else return { at: lba * blockBytes, sizeBytes };
  return null;
}

/** The medium with the first `givenBytes` of data-out, as often as they fit. */
function* compare(
  command: Command,
  { offset, bytes }: Scratch,
  { at, sizeBytes }: ByteRange,
  givenBytes: number,
): Steps {
  const given = givenBytes < sizeBytes ? (command.parameters(givenBytes) as Uint8Array) : null;
  for (let done = 0; done < sizeBytes; done += WORK_BYTES) {
    const here = Math.min(WORK_BYTES, sizeBytes - done);
    const segments = [[offset, here]] as const;
    const status = yield { op: IO_READ, at: at + done, sizeBytes: here, segments };
    if (status !== 0) {
      const lba = (at + done) / command.unit.blockBytes;
      return command.fail(senseOfErrno(status, true), NONE, lba);
    }
    const found = bytes.subarray(0, here);
    const differs =
      given === null ? differsFromOut(command, done, found) : differsFromBlock(found, given);
    if (differs >= 0) return command.fail(scsi.SENSE_MISCOMPARE, NONE, done + differs);
  }
}

/** Data-out from byte `skip` on. */
function copyOut(command: Command, skip: number, into: Uint8Array): void {
  const { bytes } = arena();
  let to = 0;
  command.eachOut(skip, into.length, (from, len) => {
    into.set(bytes.subarray(from, from + len), to);
    to += len;
  });
}

/** The first byte of `found` that data-out from byte `skip` on has otherwise; -1. */
function differsFromOut(command: Command, skip: number, found: Uint8Array): number {
  const { bytes } = arena();
  let at = 0;
  let differs = -1;
  command.eachOut(skip, found.length, (from, len) => {
    if (differs >= 0) return;
    const offset = firstDifference(found.subarray(at), bytes.subarray(from, from + len), len);
    if (offset >= 0) differs = at + offset;
    at += len;
  });
  return differs;
}

function differsFromBlock(bytes: Uint8Array, block: Uint8Array): number {
  for (let at = 0; at < bytes.length; at += block.length) {
    const offset = firstDifference(bytes.subarray(at), block, block.length);
    if (offset >= 0) return at + offset;
  }
  return -1;
}

/** -1: there is none. */
function firstDifference(a: Uint8Array, b: Uint8Array, sizeBytes: number): number {
  const [left, right] = [a.subarray(0, sizeBytes), b.subarray(0, sizeBytes)];
  if (Buffer.compare(left, right) === 0) return -1;
  for (let i = 0; i < sizeBytes; i++) if (left[i] !== right[i]) return i;
  return -1;
}
