/**
 * From chains to requests of engines: virtio 1.2, 5.6.6.1. Framing is the driver's choice: header
 * and CDB wherever they lie, data-out behind them; response and sense data, data-in behind them.
 *
 * READ and WRITE of a unit that has nothing to say go to the unit's engine here. Every other
 * command is copied, and carried out by opcodes.ts. What comes from the guest is copied once, into
 * numbers or scratch memory, and only the copy is judged and used.
 */
import { addSegments, gather } from '../disk/chain-data.hot.ts';
import type { CommandRules } from './command-rules.ts';
import type { Lun } from './lun.ts';
import type { ScsiFlight } from './scsi-vring.ts';

const FAULT_CHAIN_SHORT = -15;

const CDB = 19; //               of virtio_scsi_cmd_req
const CDB_SMALL = 16;
const MAX_CDB_BYTES = 260; //    limits.ts
const CMD_PER_LUN = 128;
const MAX_TRANSFER_BYTES = 16777216;
const TWO_POW_32 = 4294967296;
const WELL_KNOWN = 0xc1010000; // the REPORT LUNS unit

const READ_6 = 0x08; // wire/scsi.ts
const WRITE_6 = 0x0a;
const READ_10 = 0x28;
const WRITE_10 = 0x2a;
const READ_16 = 0x88;
const WRITE_16 = 0x8a;
const READ_12 = 0xa8;
const WRITE_12 = 0xaa;
const CHECK_CONDITION = 0x02;
const TASK_SET_FULL = 0x28;
const SENSE_LBA = 0x052100;
const SENSE_CDB_FIELD = 0x052400;
const SENSE_WRITE_PROTECTED = 0x072700;

const S_OVERRUN = 1; // VIRTIO_SCSI_S_*
const S_BAD_TARGET = 3;
const S_FAILURE = 9;

const IO_READ = 0; // IoBatch.op, .flags
const IO_WRITE = 1;
const IO_FUA = 1;

const COUNT_READ = 0; // Flight.kind
const COUNT_WRITE = 1;
const COUNT_OTHER = 4;
const KIND_TAKEN = -1;

const LUN_NONE = -1; // ScsiFlight.lun
const LUN_WELL_KNOWN = -2;
const LUN_NO_TARGET = -3;

/**
 * Fills the rows of `flight`, appends requests to the `io` of units, with ids from `idBase` on, and
 * lists the rows for opcodes.ts. Returns how many rows were read; fewer than there are chains: the
 * next one is FAULT_CHAIN_SHORT.
 */
export function readCommands(
  flight: ScsiFlight,
  rules: CommandRules,
  arena: DataView,
  idBase: number,
): number {
  const chains = flight.chains;
  const count = chains.count;
  const scratch = rules.scratch;
  rules.deferredCount = 0;
  rules.touchedCount = 0;
  for (let row = 0; row < count; row++) {
    if (readHeader(flight, row, rules, arena) < 0) return row;
    flight.pending[row] = 0;
    flight.bytes[row] = 0;
    flight.status[row] = 0;
    flight.response[row] = 0;
    flight.aborted[row] = 0;
    flight.information[row] = -1;
    flight.field[row] = -1;
    flight.kind[row] = COUNT_OTHER;
    flight.tagLo[row] = scratch.getInt32(8, true);
    flight.tagHi[row] = scratch.getInt32(12, true);
    const out = chains.readBytes[row]! - rules.headerBytes;
    const into = chains.writeBytes[row]! - rules.responseBytes;
    flight.residual[row] = out > 0 ? out : into;
    const index = findLun(rules, scratch);
    flight.lun[row] = index;
    if (out > 0 && into > 0) {
      flight.response[row] = S_FAILURE; // INOUT was not offered
    } else if (index === LUN_NO_TARGET) {
      flight.lun[row] = LUN_NONE;
      flight.response[row] = S_BAD_TARGET;
    } else {
      const lun = index < 0 ? null : rules.luns[index]!;
      if (lun === null || lun.state !== 0 || !readTransfer(flight, row, lun, rules, idBase)) {
        defer(flight, row, rules, arena);
      }
    }
  }
  return count;
}

/** Header and the first 16 bytes of the CDB go to `rules.scratch`. */
function readHeader(flight: ScsiFlight, row: number, rules: CommandRules, arena: DataView): number {
  const chains = flight.chains;
  if (chains.readBytes[row]! < rules.headerBytes) return FAULT_CHAIN_SHORT;
  if (chains.writeBytes[row]! < rules.responseBytes) return FAULT_CHAIN_SHORT;
  const first = chains.segFirst[row]!;
  const scratch = rules.scratch;
  if (chains.segLen[first]! < CDB + CDB_SMALL) {
    gather(chains, first, 0, CDB + CDB_SMALL, scratch, 0, arena);
    return 0;
  }
  const at = chains.segOffset[first]!;
  for (let i = 0; i < 16; i += 4) scratch.setInt32(i, arena.getInt32(at + i, true), true);
  for (let i = CDB; i < CDB + CDB_SMALL; i += 4) {
    scratch.setInt32(i, arena.getInt32(at + i, true), true);
  }
  return 0;
}

/**
 * Byte 0 is 1, then the target, then one level of LUN, peripheral or flat (5.6.6.1, SAM-5 4.7.7).
 * Index of the unit, LUN_*, or that no such target is there.
 */
function findLun(rules: CommandRules, scratch: DataView): number {
  const high = scratch.getUint32(0);
  if (scratch.getUint32(4) !== 0) return LUN_NO_TARGET;
  if (high === WELL_KNOWN) return LUN_WELL_KNOWN;
  const target = (high >>> 16) & 0xff;
  if (high >>> 24 !== 1 || rules.unitsOfTarget[target] === 0) return LUN_NO_TARGET;
  const low = high & 0xffff;
  const method = low >>> 14;
  const lun = low & 0x3fff;
  if (method > 1 || lun > 255) return LUN_NONE;
  const index = rules.table[target * 256 + lun]!;
  return index < 0 ? LUN_NONE : index;
}

/** The row waits, with all of its CDB, until the whole batch has been read. */
function defer(flight: ScsiFlight, row: number, rules: CommandRules, arena: DataView): void {
  const scratch = rules.scratch;
  const cdbBytes = rules.headerBytes - CDB;
  const first = flight.chains.segFirst[row]!;
  const rest = cdbBytes - CDB_SMALL;
  if (rest > 0) {
    gather(flight.chains, first, CDB + CDB_SMALL, rest, scratch, CDB + CDB_SMALL, arena);
  }
  const at = rules.deferredCount++;
  rules.deferredRow[at] = row;
  rules.deferredTarget[at] = scratch.getUint8(1);
  const cdbs = rules.deferredCdb;
  for (let i = 0; i < cdbBytes; i++) cdbs[at * MAX_CDB_BYTES + i] = scratch.getUint8(CDB + i);
  flight.pending[row] = 1;
  flight.kind[row] = KIND_TAKEN;
}

/** False: the command in `rules.scratch` is none of those that move blocks and do nothing else. */
export function readTransfer(
  flight: ScsiFlight,
  row: number,
  lun: Lun,
  rules: CommandRules,
  idBase: number,
): boolean {
  const cdb = rules.scratch;
  let lba = cdb.getUint32(CDB + 2);
  let blocks = 0;
  let options = cdb.getUint8(CDB + 1);
  let lengthAt = 7;
  const opcode = cdb.getUint8(CDB);
  switch (opcode) {
    case READ_10:
    case WRITE_10:
      blocks = cdb.getUint16(CDB + 7);
      break;
    case READ_16:
    case WRITE_16:
      lba = lba * TWO_POW_32 + cdb.getUint32(CDB + 6);
      blocks = cdb.getUint32(CDB + 10);
      lengthAt = 10;
      break;
    case READ_12:
    case WRITE_12:
      blocks = cdb.getUint32(CDB + 6);
      lengthAt = 6;
      break;
    case READ_6:
    case WRITE_6:
      lba = cdb.getUint32(CDB) & 0x1fffff;
      blocks = cdb.getUint8(CDB + 4);
      if (blocks === 0) blocks = 256;
      options = 0;
      lengthAt = 4;
      break;
    default:
      return false;
  }
  // WRITE has bit 1 of the opcode set: 0a, 2a, 8a, aa.
  const isWrite = (opcode & 2) !== 0;
  flight.kind[row] = isWrite ? COUNT_WRITE : COUNT_READ;
  const size = blocks * lun.blockBytes;
  const capacity = lun.blocks[0]!;
  if ((options & 0xe0) !== 0) {
    refuse(flight, row, SENSE_CDB_FIELD, 1); // protection information
  } else if (lba > capacity || blocks > capacity - lba) {
    refuse(flight, row, SENSE_LBA, -1);
  } else if (isWrite && lun.readOnly !== 0) {
    refuse(flight, row, SENSE_WRITE_PROTECTED, -1);
  } else if (size > MAX_TRANSFER_BYTES) {
    refuse(flight, row, SENSE_CDB_FIELD, lengthAt);
  } else if (size > 0) {
    const fua = isWrite && ((options & 8) !== 0 || lun.writeCache === 0) ? IO_FUA : 0;
    transfer(flight, row, lun, rules, isWrite, fua, lba * lun.blockBytes, size, idBase);
  }
  return true;
}

function transfer(
  flight: ScsiFlight,
  row: number,
  lun: Lun,
  rules: CommandRules,
  isWrite: boolean,
  flags: number,
  at: number,
  size: number,
  idBase: number,
): void {
  const chains = flight.chains;
  const room = isWrite
    ? chains.readBytes[row]! - rules.headerBytes
    : chains.writeBytes[row]! - rules.responseBytes;
  if (room < size) {
    flight.response[row] = S_OVERRUN;
    flight.residual[row] = 0;
    return;
  }
  const io = lun.io;
  if (lun.submitted === io.count) {
    io.count = 0;
    io.segments = 0;
    lun.submitted = 0;
  }
  const segs = chains.readSegs[row]! + chains.writeSegs[row]!;
  if (
    lun.underWay >= CMD_PER_LUN ||
    io.count === io.capacity ||
    io.segments + segs > io.segCapacity
  ) {
    flight.status[row] = TASK_SET_FULL;
    return;
  }
  const to = io.count;
  const first = chains.segFirst[row]!;
  io.segFirst[to] = io.segments;
  if (isWrite) addSegments(io, chains, first, rules.headerBytes, size);
  else addSegments(io, chains, first + chains.readSegs[row]!, rules.responseBytes, size);
  io.segCount[to] = io.segments - io.segFirst[to]!;
  io.op[to] = isWrite ? IO_WRITE : IO_READ;
  io.flags[to] = flags;
  io.id[to] = idBase + row;
  io.at[to] = at;
  io.size[to] = size;
  io.count = to + 1;
  flight.pending[row]!++;
  flight.bytes[row] = size;
  flight.residual[row] = room - size;
  lun.underWay++;
  if (!lun.touched) {
    lun.touched = true;
    lun.batchAt = to;
    rules.touched[rules.touchedCount++] = lun.index;
  }
}

function refuse(flight: ScsiFlight, row: number, sense: number, field: number): void {
  flight.status[row] = CHECK_CONDITION;
  flight.sense[row] = sense;
  flight.field[row] = field;
}
