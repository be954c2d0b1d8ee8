/**
 * From chains to requests of an engine: virtio 1.2, 5.2.6. Framing is the driver's choice
 * (2.7.4.2): 16 bytes of header wherever they lie, data, and the last writable byte is the status.
 *
 * What comes from the guest is copied once, into numbers or scratch memory, and only the copy is
 * judged and used. A request that is wrong gets its status here and never sees the engine; a chain
 * in which there is no room for header and status cannot be answered, and is a fault.
 */
import type { IoBatch } from '../../storage/io-batch.ts';
import { addSegments, gather } from '../disk/chain-data.hot.ts';
import type { Flight } from '../disk/flight.ts';
import { readZoneRequest } from './read-zone-requests.hot.ts';
import type { RequestRules } from './request-rules.ts';

const FAULT_CHAIN_SHORT = -15;

const HEADER_BYTES = 16;
const RANGE_BYTES = 16;
const SECTOR_BYTES = 512;
const TWO_POW_32 = 4294967296;
const MAX_RANGES_BYTES = 256; //        16 * MAX_RANGES
const MAX_REQUEST_BYTES = 67108864; //  limits.ts
const MAX_DISCARD_SECTORS = 2097152;
const MAX_ZEROES_SECTORS = 65536;

const SEG_FIRST = 512; // columns of ChainBatch.rows
const READ_SEGS = 768;
const WRITE_SEGS = 1024;

const T_IN = 0; // VIRTIO_BLK_T_*
const T_OUT = 1;
const T_FLUSH = 4;
const T_GET_ID = 8;
const T_GET_LIFETIME = 10;
const T_DISCARD = 11;
const T_WRITE_ZEROES = 13;
const T_SECURE_ERASE = 14;
const FLAG_UNMAP = 1;

const S_OK = 0; // VIRTIO_BLK_S_*
const S_IOERR = 1;
const S_UNSUPP = 2;

const IO_READ = 0; // IoBatch.op, .flags
const IO_WRITE = 1;
const IO_FLUSH = 2;
const IO_DISCARD = 3;
const IO_ZEROES = 4;
const IO_ERASE = 5;
const IO_FUA = 1;
const IO_UNMAP = 2;

const COUNT_READ = 0; // Flight.kind
const COUNT_WRITE = 1;
const COUNT_FLUSH = 2;
const COUNT_DISCARD = 3;
const COUNT_ZEROES = 4;
const COUNT_OTHER = 5;
const COUNT_UNSUPPORTED = 6;
const COUNT_REJECTED = 7;

/**
 * Fills the rows of `flight` and appends their requests to `io`, with ids from `idBase` on. Returns
 * how many rows were read; fewer than there are chains: the next one is FAULT_CHAIN_SHORT.
 */
export function readRequests(
  flight: Flight,
  io: IoBatch,
  rules: RequestRules,
  arena: DataView,
  idBase: number,
): number {
  const chains = flight.chains;
  const count = chains.count;
  for (let row = 0; row < count; row++) {
    row = readPlain(flight, row, io, rules, arena, idBase);
    if (row === count) break;
    if (readHeader(flight, row, rules, arena) < 0) return row;
    const type = rules.scratch.getUint32(0, true);
    const sector =
      rules.scratch.getUint32(8, true) + rules.scratch.getUint32(12, true) * TWO_POW_32;
    flight.pending[row] = 0;
    flight.bytes[row] = 0;
    flight.status[row] = S_OK;
    if (type === T_IN || type === T_OUT) {
      readTransfer(flight, row, io, rules, type === T_OUT, sector, idBase);
    } else if (type === T_FLUSH) {
      flight.kind[row] = COUNT_FLUSH;
      addRow(flight, row, io, IO_FLUSH, 0, 0, 0, idBase);
    } else if (type === T_GET_ID) {
      answer(flight, row, rules.serial, arena);
    } else if (type === T_DISCARD || type === T_WRITE_ZEROES || type === T_SECURE_ERASE) {
      readRanges(flight, row, io, rules, arena, type, idBase);
    } else if (type === T_GET_LIFETIME && rules.lifetimes !== 0) {
      answer(flight, row, rules.lifetime, arena);
    } else if (rules.zones !== 0) {
      readZoneRequest(flight, row, io, rules, type, sector, idBase);
    } else {
      refuse(flight, row, S_UNSUPP);
    }
  }
  return count;
}

/**
 * Reads and writes from `row` on that are framed as Linux does it: a header, one piece of data, a
 * status byte. Returns the row of the first that is anything else, or is wrong, which is read
 * again and judged. Calls nothing, so that V8 loads what it needs of each array once.
 */
function readPlain(
  flight: Flight,
  row: number,
  io: IoBatch,
  rules: RequestRules,
  arena: DataView,
  idBase: number,
): number {
  const { chains, pending, bytes, status, statusAt, kind } = flight;
  const { rows, segOffset, segLen, count } = chains;
  const capacity = rules.capacity[0]!;
  const writable = 1 - rules.readOnly;
  const fua = rules.fua !== 0 ? IO_FUA : 0;
  let to = io.count;
  let segments = io.segments;
  let n = row;
  for (; n < count; n++) {
    const reads = rows[n + READ_SEGS]!;
    const first = rows[n + SEG_FIRST]!;
    const isWrite = reads - 1; // 2 or 1 of the three segments are readable
    if (reads + rows[n + WRITE_SEGS]! !== 3 || (isWrite & writable) !== isWrite) break;
    if (segLen[first] !== HEADER_BYTES || segLen[first + 2] !== 1) break;
    const size = segLen[first + 1]!;
    const at = segOffset[first]!;
    const type = arena.getInt32(at, true);
    const sector = arena.getUint32(at + 8, true) + arena.getUint32(at + 12, true) * TWO_POW_32;
    if (type !== isWrite || (size & (SECTOR_BYTES - 1)) !== 0 || size > MAX_REQUEST_BYTES) break;
    if (sector > capacity || size / SECTOR_BYTES > capacity - sector) break;
    statusAt[n] = segOffset[first + 2]!;
    status[n] = S_OK;
    kind[n] = isWrite; // COUNT_READ, COUNT_WRITE
    bytes[n] = size;
    pending[n] = 1;
    io.op[to] = isWrite; // IO_READ, IO_WRITE
    io.flags[to] = fua & -isWrite;
    io.id[to] = idBase + n;
    io.at[to] = sector * SECTOR_BYTES;
    io.size[to] = size;
    io.segFirst[to] = segments;
    io.segCount[to] = 1;
    io.segOffset[segments] = segOffset[first + 1]!;
    io.segLen[segments] = size;
    to++;
    segments++;
  }
  io.count = to;
  io.segments = segments;
  return n;
}

/** The header goes to `rules.scratch`, the place of the status to the flight. */
function readHeader(flight: Flight, row: number, rules: RequestRules, arena: DataView): number {
  const chains = flight.chains;
  const readSegs = chains.readSegs[row]!;
  const writeSegs = chains.writeSegs[row]!;
  if (chains.readBytes[row]! < HEADER_BYTES || writeSegs === 0) return FAULT_CHAIN_SHORT;
  const first = chains.segFirst[row]!;
  const last = first + readSegs + writeSegs - 1;
  flight.statusAt[row] = chains.segOffset[last]! + chains.segLen[last]! - 1;
  const at = chains.segOffset[first]!;
  if (chains.segLen[first]! >= HEADER_BYTES) {
    const scratch = rules.scratch;
    scratch.setUint32(0, arena.getUint32(at, true), true);
    scratch.setUint32(8, arena.getUint32(at + 8, true), true);
    scratch.setUint32(12, arena.getUint32(at + 12, true), true);
    return 0;
  }
  gather(chains, first, 0, HEADER_BYTES, rules.scratch, 0, arena);
  return 0;
}

function readTransfer(
  flight: Flight,
  row: number,
  io: IoBatch,
  rules: RequestRules,
  isWrite: boolean,
  sector: number,
  idBase: number,
): void {
  const chains = flight.chains;
  const out = chains.readBytes[row]! - HEADER_BYTES;
  const into = chains.writeBytes[row]! - 1;
  const size = isWrite ? out : into;
  flight.kind[row] = isWrite ? COUNT_WRITE : COUNT_READ;
  const capacity = rules.capacity[0]!;
  const sectors = size / SECTOR_BYTES;
  if (
    (isWrite ? into : out) !== 0 || // data of both directions: which one is meant?
    size % SECTOR_BYTES !== 0 ||
    size > MAX_REQUEST_BYTES ||
    sector > capacity ||
    sectors > capacity - sector ||
    (isWrite && rules.readOnly !== 0)
  ) {
    refuse(flight, row, S_IOERR);
    return;
  }
  if (size === 0) return;
  const io0 = io.count;
  io.segFirst[io0] = io.segments;
  const first = chains.segFirst[row]!;
  if (isWrite) addSegments(io, chains, first, HEADER_BYTES, size);
  else addSegments(io, chains, first + chains.readSegs[row]!, 0, size);
  io.segCount[io0] = io.segments - io.segFirst[io0]!;
  flight.bytes[row] = size;
  const flags = isWrite && rules.fua !== 0 ? IO_FUA : 0;
  const op = isWrite ? IO_WRITE : IO_READ;
  addRow(flight, row, io, op, flags, sector * SECTOR_BYTES, size, idBase);
}

function addRow(
  flight: Flight,
  row: number,
  io: IoBatch,
  op: number,
  flags: number,
  at: number,
  size: number,
  idBase: number,
): void {
  const to = io.count;
  io.op[to] = op;
  io.flags[to] = flags;
  io.id[to] = idBase + row;
  io.at[to] = at;
  io.size[to] = size;
  if (op >= IO_FLUSH) io.segCount[to] = 0;
  io.count = to + 1;
  flight.pending[row]!++;
}

/** Ranges are judged first, all of them: a request is carried out or it is not. */
function readRanges(
  flight: Flight,
  row: number,
  io: IoBatch,
  rules: RequestRules,
  arena: DataView,
  type: number,
  idBase: number,
): void {
  const chains = flight.chains;
  const size = chains.readBytes[row]! - HEADER_BYTES;
  const isDiscard = type === T_DISCARD;
  const isErase = type === T_SECURE_ERASE;
  flight.kind[row] = isDiscard ? COUNT_DISCARD : COUNT_ZEROES;
  if ((isDiscard ? rules.discards : isErase ? rules.erases : rules.zeroes) === 0) {
    refuse(flight, row, S_UNSUPP);
    return;
  }
  if (
    size === 0 ||
    size % RANGE_BYTES !== 0 ||
    size > MAX_RANGES_BYTES ||
    chains.writeBytes[row] !== 1 ||
    rules.readOnly !== 0
  ) {
    refuse(flight, row, S_IOERR);
    return;
  }
  gather(chains, chains.segFirst[row]!, HEADER_BYTES, size, rules.scratch, 0, arena);
  const status = judgeRanges(rules, size, type);
  if (status !== S_OK) {
    refuse(flight, row, status);
    return;
  }
  const scratch = rules.scratch;
  const fua = rules.fua !== 0 ? IO_FUA : 0;
  for (let at = 0; at < size; at += RANGE_BYTES) {
    const sectors = scratch.getUint32(at + 8, true);
    if (sectors === 0) continue;
    const flags = (scratch.getUint32(at + 12, true) & FLAG_UNMAP) !== 0 ? IO_UNMAP | fua : fua;
    const sector = scratch.getUint32(at, true) + scratch.getUint32(at + 4, true) * TWO_POW_32;
    const op = isDiscard ? IO_DISCARD : isErase ? IO_ERASE : IO_ZEROES;
    addRow(flight, row, io, op, flags, sector * SECTOR_BYTES, sectors * SECTOR_BYTES, idBase);
  }
}

/** 5.2.6.2: flags that are not known, and UNMAP but for zeroes, are not supported. */
function judgeRanges(rules: RequestRules, size: number, type: number): number {
  const scratch = rules.scratch;
  const capacity = rules.capacity[0]!;
  const known = type === T_WRITE_ZEROES ? FLAG_UNMAP : 0;
  const max = type === T_DISCARD ? MAX_DISCARD_SECTORS : MAX_ZEROES_SECTORS;
  for (let at = 0; at < size; at += RANGE_BYTES) {
    if ((scratch.getUint32(at + 12, true) & ~known) !== 0) return S_UNSUPP;
    const sector = scratch.getUint32(at, true) + scratch.getUint32(at + 4, true) * TWO_POW_32;
    const sectors = scratch.getUint32(at + 8, true);
    if (sectors > max || sector > capacity || sectors > capacity - sector) return S_IOERR;
  }
  return S_OK;
}

/** As much of it as there is room for, before the status byte. */
function answer(flight: Flight, row: number, bytes: Uint8Array, arena: DataView): void {
  const chains = flight.chains;
  flight.kind[row] = COUNT_OTHER;
  const room = chains.writeBytes[row]! - 1;
  const size = room < bytes.length ? room : bytes.length;
  let seg = chains.segFirst[row]! + chains.readSegs[row]!;
  let from = 0;
  for (let i = 0; i < size; i++) {
    while (from === chains.segLen[seg]) {
      from = 0;
      seg++;
    }
    arena.setUint8(chains.segOffset[seg]! + from++, bytes[i]!);
  }
}

function refuse(flight: Flight, row: number, status: number): void {
  flight.status[row] = status;
  flight.kind[row] = status === S_UNSUPP ? COUNT_UNSUPPORTED : COUNT_REJECTED;
}
