/** Commands about a unit as a whole: what it is, whether it is ready, what has been written. */
import { IO_FLUSH } from '../../storage/index.ts';
import * as scsi from '../../wire/scsi.ts';
import { encodeScsiLun } from '../../wire/virtio-scsi.ts';
import type { Command } from './command.ts';
import { PHYSICAL_BYTES } from './inquiry.ts';
import { isStopped, STOPPED } from './lun.ts';
import { COUNT_FLUSH, LUN_WELL_KNOWN } from './scsi-vring.ts';

export function testUnitReady(): void {
  // What it could say was looked at before.
}

export function readCapacity10(command: Command): void {
  const { unit } = command;
  const isPartial = (command.u8(8) & 1) !== 0; // PMI, obsolete
  if (!isPartial && command.u32(2) !== 0) return command.fail(scsi.SENSE_CDB_FIELD, 2);
  const bytes = new Uint8Array(8);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, Math.min(unit.blocks[0]! - 1, 0xffff_ffff)); // then READ CAPACITY (16) knows
  view.setUint32(4, unit.blockBytes);
  command.answer(bytes, bytes.length);
}

export function readCapacity16(command: Command): void {
  const { unit } = command;
  const bytes = new Uint8Array(32);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, BigInt(unit.blocks[0]! - 1));
  view.setUint32(8, unit.blockBytes);
  bytes[13] = Math.max(0, Math.log2(PHYSICAL_BYTES / unit.blockBytes)); // blocks per physical one
  bytes[14] = 0xc0; // LBPME, LBPRZ: what is unmapped reads as zeros
  command.answer(bytes, command.u32(10));
}

/** Of a target; the well-known unit has those of all, as whole addresses. */
export function reportLuns(command: Command): void {
  const { flight, row, rules } = command;
  const select = command.u8(2);
  if (select > 2) return command.fail(scsi.SENSE_CDB_FIELD, 2);
  const allocated = command.u32(6);
  if (allocated < 16) return command.fail(scsi.SENSE_CDB_FIELD, 6);
  const isWellKnown = flight.lun[row] === LUN_WELL_KNOWN;
  const target = command.target;
  const units = rules.luns
    .filter((lun) => lun !== null && !lun.leaving && (isWellKnown || lun.target === target))
    .map((lun) => ({ target: (lun as NonNullable<typeof lun>).target, lun: lun!.lun }))
    .sort((a, b) => a.target - b.target || a.lun - b.lun);
  const entries = select === 1 ? [] : units; // 1: well-known units, of which a target has none
  const bytes = new Uint8Array(8 + 8 * entries.length);
  new DataView(bytes.buffer).setUint32(0, 8 * entries.length);
  for (const [i, unit] of entries.entries()) {
    const address = encodeScsiLun(unit.target, unit.lun);
    bytes.set(isWellKnown ? address : address.subarray(2, 4), 8 + 8 * i);
  }
  command.answer(bytes, allocated);
}

/** With IMMED it is done when it is done, too. */
export function synchronizeCache(command: Command): void {
  const isLong = command.u8(0) === scsi.SYNCHRONIZE_CACHE_16;
  const lba = isLong ? command.u64(2) : command.u32(2);
  const blocks = isLong ? command.u32(10) : command.u16(7);
  command.kind = COUNT_FLUSH;
  if (command.checkRange(lba, blocks, false)) command.submit(IO_FLUSH, 0, 0);
}

export function startStop(command: Command): void {
  const { unit } = command;
  const [powerCondition, isStart] = [command.u8(4) >> 4, (command.u8(4) & 1) !== 0];
  if (powerCondition !== 0) return command.fail(scsi.SENSE_CDB_FIELD, 4);
  if (isStart) {
    if (isStopped(unit)) unit.starts++;
    unit.state &= ~STOPPED;
  } else {
    if ((command.u8(4) & 4) === 0) command.flush(); // NO_FLUSH
    unit.state |= STOPPED;
  }
}

/** Nothing can be taken out. */
export function preventAllow(): void {}

/** The default self-test: a unit that answers works. */
export function sendDiagnostic(command: Command): void {
  if ((command.u8(1) & 4) === 0) command.fail(scsi.SENSE_CDB_FIELD, 1);
  else if (command.u16(3) !== 0) command.fail(scsi.SENSE_CDB_FIELD, 3);
}

/**
 * ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LUN RESET, QUERY TASK; QUERY TASK SET, I_T NEXUS
 * RESET.
 */
export function reportTaskFunctions(command: Command): void {
  const isExtended = (command.u8(2) & 0x80) !== 0;
  const bytes = new Uint8Array(isExtended ? 16 : 4);
  bytes.set([0xda, 0x05]);
  if (isExtended) bytes[3] = bytes.length - 4;
  if (command.u32(6) < 4) command.fail(scsi.SENSE_CDB_FIELD, 6);
  else command.answer(bytes, command.u32(6));
}
