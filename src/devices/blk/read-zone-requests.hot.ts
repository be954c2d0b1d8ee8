/** Requests that only zoned disks have: virtio 1.3, 5.2.6. Zones themselves judge the rest. */
import type { IoBatch } from '../../storage/io-batch.ts';
import { addSegments } from '../disk/chain-data.hot.ts';
import type { Flight } from '../disk/flight.ts';
import type { RequestRules } from './request-rules.ts';

const HEADER_BYTES = 16;
const SECTOR_BYTES = 512;
const APPEND_SECTOR_BYTES = 8; //   VIRTIO_BLK_APPEND_SECTOR_BYTES
const REPORT_BYTES = 64; //         BlkZoneReport
const MAX_REQUEST_BYTES = 67108864; // limits.ts

const T_ZONE_APPEND = 15; // VIRTIO_BLK_T_*
const T_ZONE_REPORT = 16;
const T_ZONE_OPEN = 18;
const T_ZONE_CLOSE = 20;
const T_ZONE_FINISH = 22;
const T_ZONE_RESET = 24;
const T_ZONE_RESET_ALL = 26;

const S_IOERR = 1; // VIRTIO_BLK_S_*
const S_UNSUPP = 2;
const S_ZONE_INVALID_CMD = 3;

const IO_FUA = 1; // IoBatch.flags, .op
const IO_ZONE_APPEND = 6;
const IO_ZONE_REPORT = 7;
const IO_ZONE_OPEN = 8;
const IO_ZONE_CLOSE = 9;
const IO_ZONE_FINISH = 10;
const IO_ZONE_RESET = 11;
const IO_ZONE_RESET_ALL = 12;

const COUNT_WRITE = 1; // Flight.kind
const COUNT_OTHER = 5;
const COUNT_UNSUPPORTED = 6;
const COUNT_REJECTED = 7;

/** A row whose type is none of a plain disk's. */
export function readZoneRequest(
  flight: Flight,
  row: number,
  io: IoBatch,
  rules: RequestRules,
  type: number,
  sector: number,
  idBase: number,
): void {
  if (type === T_ZONE_APPEND) readAppend(flight, row, io, rules, sector, idBase);
  else if (type === T_ZONE_REPORT) readReport(flight, row, io, rules, sector, idBase);
  else readAction(flight, row, io, rules, type, sector, idBase);
}

/** Data, room for the sector that it went to, status. */
function readAppend(
  flight: Flight,
  row: number,
  io: IoBatch,
  rules: RequestRules,
  sector: number,
  idBase: number,
): void {
  const chains = flight.chains;
  const size = chains.readBytes[row]! - HEADER_BYTES;
  const capacity = rules.capacity[0]!;
  const hasRoom = chains.writeBytes[row] === APPEND_SECTOR_BYTES + 1;
  if (!hasRoom || size === 0 || size % SECTOR_BYTES !== 0 || rules.readOnly !== 0) {
    refuse(flight, row, S_IOERR);
  } else if (size > rules.maxAppendBytes || sector > capacity - size / SECTOR_BYTES) {
    refuse(flight, row, S_ZONE_INVALID_CMD);
  } else {
    const to = io.count;
    const first = chains.segFirst[row]!;
    io.segFirst[to] = io.segments;
    addSegments(io, chains, first, HEADER_BYTES, size);
    addSegments(io, chains, first + chains.readSegs[row]!, 0, APPEND_SECTOR_BYTES);
    io.segCount[to] = io.segments - io.segFirst[to]!;
    flight.kind[row] = COUNT_WRITE;
    flight.bytes[row] = size;
    addRow(flight, row, io, IO_ZONE_APPEND, rules.fua, sector, size, idBase);
  }
}

function readReport(
  flight: Flight,
  row: number,
  io: IoBatch,
  rules: RequestRules,
  sector: number,
  idBase: number,
): void {
  const chains = flight.chains;
  const size = chains.writeBytes[row]! - 1;
  const isBare = chains.readBytes[row] === HEADER_BYTES;
  if (!isBare || size < REPORT_BYTES || size > MAX_REQUEST_BYTES) {
    refuse(flight, row, S_IOERR);
  } else if (sector >= rules.capacity[0]!) {
    refuse(flight, row, S_ZONE_INVALID_CMD);
  } else {
    const to = io.count;
    io.segFirst[to] = io.segments;
    addSegments(io, chains, chains.segFirst[row]! + chains.readSegs[row]!, 0, size);
    io.segCount[to] = io.segments - io.segFirst[to]!;
    flight.kind[row] = COUNT_OTHER;
    addRow(flight, row, io, IO_ZONE_REPORT, 0, sector, size, idBase);
  }
}

function readAction(
  flight: Flight,
  row: number,
  io: IoBatch,
  rules: RequestRules,
  type: number,
  sector: number,
  idBase: number,
): void {
  const chains = flight.chains;
  let op = 0;
  if (type === T_ZONE_OPEN) op = IO_ZONE_OPEN;
  else if (type === T_ZONE_CLOSE) op = IO_ZONE_CLOSE;
  else if (type === T_ZONE_FINISH) op = IO_ZONE_FINISH;
  else if (type === T_ZONE_RESET) op = IO_ZONE_RESET;
  else if (type === T_ZONE_RESET_ALL) op = IO_ZONE_RESET_ALL;
  const isBare = chains.readBytes[row] === HEADER_BYTES && chains.writeBytes[row] === 1;
  if (op === 0) {
    refuse(flight, row, S_UNSUPP);
  } else if (!isBare || rules.readOnly !== 0) {
    refuse(flight, row, S_IOERR);
  } else if (op !== IO_ZONE_RESET_ALL && sector >= rules.capacity[0]!) {
    refuse(flight, row, S_ZONE_INVALID_CMD);
  } else {
    io.segCount[io.count] = 0;
    flight.kind[row] = COUNT_OTHER;
    addRow(flight, row, io, op, 0, op === IO_ZONE_RESET_ALL ? 0 : sector, 0, idBase);
  }
}

function addRow(
  flight: Flight,
  row: number,
  io: IoBatch,
  op: number,
  fua: number,
  sector: number,
  size: number,
  idBase: number,
): void {
  const to = io.count;
  io.op[to] = op;
  io.flags[to] = fua !== 0 ? IO_FUA : 0;
  io.id[to] = idBase + row;
  io.at[to] = sector * SECTOR_BYTES;
  io.size[to] = size;
  io.count = to + 1;
  flight.pending[row]!++;
}

function refuse(flight: Flight, row: number, status: number): void {
  flight.status[row] = status;
  flight.kind[row] = status === S_UNSUPP ? COUNT_UNSUPPORTED : COUNT_REJECTED;
}
