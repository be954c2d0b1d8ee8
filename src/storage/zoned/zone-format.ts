/**
 * What a zoned medium keeps in front of its data; little-endian, in blocks of 4096 bytes.
 *
 *   header | table A | table B | log | data, from a multiple of 1 MiB on
 *
 * The header says what was chosen when the medium was made, and is never written again. A table is
 * all there is to know of all zones at one moment; the log says what came after it. Each has an
 * *epoch*: the newer table that is whole counts, and blocks of the log that have its epoch. Every
 * piece has a CRC-32 over itself (its own field as zero), so half a piece is none.
 */
import { crc32 } from 'node:zlib';
import { bytes, struct, u16, u32, u64, u8, type Value } from '../../wire/struct.ts';

export const BLOCK_BYTES = 4096;
export const SECTOR_BYTES = 512;
const DATA_ALIGN_BYTES = 2 ** 20;

/** Zones of one medium: what a table of 1 MiB holds. */
export const MAX_ZONES = 65536;

/** Appends that are remembered, newest last: many more than can be under way (RING_SLOTS). */
export const MAX_TAGS = 2048;

export const HEADER_MAGIC = Buffer.from('VRZONED\n');
export const FORMAT_VERSION = 1;
const TABLE_MAGIC = 0x5442_5a56; // 'VZBT'
const LOG_MAGIC = 0x474c_5a56; //   'VZLG'

const Header = struct('zoned header', 64, {
  magic: bytes(0, 8),
  crc: u32(8), //          over the first block
  version: u32(12),
  zoneBytes: u64(16),
  capacityBytes: u64(24), // writable, of each zone
  zones: u32(32),
  conventional: u32(36), // zones at the beginning that have no write pointer
  maxOpen: u32(40), //      0: no limit
  maxActive: u32(44),
  granularityBytes: u32(48),
  logBlocks: u32(52),
  reserved: u64(56),
});

/** What was chosen when the medium was made. */
export type ZonedShape = {
  readonly version: number;
  readonly zoneBytes: number;
  readonly capacityBytes: number;
  readonly zones: number;
  readonly conventional: number;
  readonly maxOpen: number;
  readonly maxActive: number;
  readonly granularityBytes: number;
  readonly logBlocks: number;
};

const TableHeader = struct('zoned table', 32, {
  magic: u32(0),
  crc: u32(4), //  over all of the table
  epoch: u64(8),
  zones: u32(16),
  tags: u32(20),
  reserved: u64(24),
});

const TableZone = struct('zone of a table', 16, {
  written: u32(0), //    sectors that are data
  generation: u32(4), // resets so far
  condition: u8(8), //   ZONE_*
  reserved: bytes(9, 7),
});

const TableTag = struct('append of a table', 24, {
  order: u64(0),
  at: u64(8), // byte of the disk
  queue: u32(16),
  reserved: u32(20),
});

const LogBlock = struct('block of a zoned log', 32, {
  magic: u32(0),
  crc: u32(4), //   over the block
  epoch: u64(8),
  index: u32(16), // its place in the log
  records: u32(20),
  reserved: u64(24),
});

const LogRecord = struct('record of a zoned log', 32, {
  kind: u8(0), //        RECORD_*
  condition: u8(1), //   RECORD_STATE: what it is now
  queue: u16(2), //      RECORD_DATA: of the append, NO_QUEUE for others
  zone: u32(4),
  generation: u32(8),
  from: u32(12), //      RECORD_DATA: sector within the zone; RECORD_STATE: sectors that are data
  sectors: u32(16),
  dataCrc: u32(20),
  order: u64(24), //     of the append
});

/** Data was written at the write pointer. */
export const RECORD_DATA = 1;
/** A zone was reset, finished, opened, closed, or given up. */
export const RECORD_STATE = 2;
const NO_QUEUE = 0xffff;

export const RECORDS_PER_BLOCK = Math.floor((BLOCK_BYTES - LogBlock.size) / LogRecord.size);

export type ZoneRecord = { written: number; generation: number; condition: number };
export type TagRecord = { readonly queue: number; readonly order: number; readonly at: number };
export type ZoneTable = {
  readonly epoch: number;
  readonly zones: ZoneRecord[];
  readonly tags: TagRecord[];
};
export type DataRecord = {
  readonly kind: typeof RECORD_DATA;
  readonly zone: number;
  readonly generation: number;
  /** Bytes within the zone. */
  readonly from: number;
  readonly sizeBytes: number;
  readonly dataCrc: number;
  readonly tag: { readonly queue: number; readonly order: number } | null;
};
export type StateRecord = {
  readonly kind: typeof RECORD_STATE;
  readonly zone: number;
  readonly generation: number;
  readonly condition: number;
  /** Bytes that are data. */
  readonly written: number;
};
export type LogEntry = DataRecord | StateRecord;

/** Where things are. */
export type ZonedPlaces = {
  readonly tableAt: readonly [number, number];
  readonly tableBytes: number;
  readonly logAt: number;
  readonly dataAt: number;
};

export function placesOf(zones: number, logBlocks: number): ZonedPlaces {
  const tableBytes = roundUp(
    TableHeader.size + TableZone.size * zones + TableTag.size * MAX_TAGS,
    BLOCK_BYTES,
  );
  const first = BLOCK_BYTES;
  const logAt = first + 2 * tableBytes;
  const dataAt = roundUp(logAt + logBlocks * BLOCK_BYTES, DATA_ALIGN_BYTES);
  return { tableAt: [first, first + tableBytes], tableBytes, logAt, dataAt };
}

export function encodeHeader(shape: ZonedShape): Uint8Array {
  const block = new Uint8Array(BLOCK_BYTES);
  const [zoneBytes, capacityBytes] = [BigInt(shape.zoneBytes), BigInt(shape.capacityBytes)];
  const fixed = { magic: HEADER_MAGIC, crc: 0, reserved: 0n };
  Header.write(viewOf(block), 0, { ...shape, ...fixed, zoneBytes, capacityBytes });
  return sealed(block, Header.fields.crc.at);
}

/** Null: it is none, or half of one. Its numbers are the caller's to judge. */
export function decodeHeader(block: Uint8Array): ZonedShape | null {
  const { magic, crc: _, reserved: __, ...shape } = Header.read(viewOf(block), 0);
  if (!HEADER_MAGIC.equals(magic) || !isWhole(block, Header.fields.crc.at)) return null;
  const [zoneBytes, capacityBytes] = [Number(shape.zoneBytes), Number(shape.capacityBytes)];
  return { ...shape, zoneBytes, capacityBytes };
}

export function encodeTable(table: ZoneTable, sizeBytes: number): Uint8Array {
  const bytes = new Uint8Array(sizeBytes);
  const view = viewOf(bytes);
  const { epoch, zones, tags } = table;
  const counts = { zones: zones.length, tags: tags.length };
  const start = { magic: TABLE_MAGIC, crc: 0, epoch: BigInt(epoch), reserved: 0n, ...counts };
  TableHeader.write(view, 0, start);
  let at = TableHeader.size;
  const reserved = new Uint8Array(7);
  for (const { written, generation, condition } of zones) {
    const fields = { written: written / SECTOR_BYTES, generation, condition, reserved };
    TableZone.write(view, at, fields);
    at += TableZone.size;
  }
  for (const { queue, order, at: place } of tags) {
    TableTag.write(view, at, { order: BigInt(order), at: BigInt(place), queue, reserved: 0 });
    at += TableTag.size;
  }
  return sealed(bytes, TableHeader.fields.crc.at);
}

/** Null: it is none, or half of one. */
export function decodeTable(bytes: Uint8Array, zones: number): ZoneTable | null {
  const view = viewOf(bytes);
  const header = TableHeader.read(view, 0);
  if (header.magic !== TABLE_MAGIC || header.zones !== zones || header.tags > MAX_TAGS) return null;
  if (!isWhole(bytes, TableHeader.fields.crc.at)) return null;
  const tagsAt = TableHeader.size + zones * TableZone.size;
  return {
    epoch: Number(header.epoch),
    zones: Array.from({ length: zones }, (_, i) => {
      const at = TableHeader.size + i * TableZone.size;
      const { written, generation, condition } = TableZone.read(view, at);
      return { written: written * SECTOR_BYTES, generation, condition };
    }),
    tags: Array.from({ length: header.tags }, (_, i) => {
      const { queue, order, at } = TableTag.read(view, tagsAt + i * TableTag.size);
      return { queue, order: Number(order), at: Number(at) };
    }),
  };
}

/** One block of the log, of at most RECORDS_PER_BLOCK entries. */
export function encodeLogBlock(
  into: Uint8Array,
  entries: readonly LogEntry[],
  epoch: number,
  index: number,
): void {
  const view = viewOf(into);
  const place = { epoch: BigInt(epoch), index, records: entries.length };
  LogBlock.write(view, 0, { magic: LOG_MAGIC, crc: 0, reserved: 0n, ...place });
  let at = LogBlock.size;
  for (const entry of entries) {
    LogRecord.write(view, at, recordOf(entry));
    at += LogRecord.size;
  }
  sealed(into, LogBlock.fields.crc.at);
}

function recordOf(entry: LogEntry): Value<typeof LogRecord.fields> {
  const { kind, zone, generation } = entry;
  const common = { kind, zone, generation };
  if (entry.kind === RECORD_STATE) {
    const { condition, written } = entry;
    const none = { queue: NO_QUEUE, sectors: 0, dataCrc: 0, order: 0n };
    return { ...common, ...none, condition, from: written / SECTOR_BYTES };
  }
  const { from, sizeBytes, dataCrc, tag } = entry;
  return {
    ...common,
    condition: 0,
    queue: tag?.queue ?? NO_QUEUE,
    order: BigInt(tag?.order ?? 0),
    from: from / SECTOR_BYTES,
    sectors: sizeBytes / SECTOR_BYTES,
    dataCrc,
  };
}

/** Null: there the log ends. */
export function decodeLogBlock(block: Uint8Array, epoch: number, index: number): LogEntry[] | null {
  const view = viewOf(block);
  const header = LogBlock.read(view, 0);
  if (header.magic !== LOG_MAGIC || header.epoch !== BigInt(epoch)) return null;
  if (header.index !== index || header.records > RECORDS_PER_BLOCK) return null;
  if (!isWhole(block, LogBlock.fields.crc.at)) return null;
  return Array.from({ length: header.records }, (_, i) =>
    entryOf(LogRecord.read(view, LogBlock.size + i * LogRecord.size)),
  );
}

function entryOf(record: Value<typeof LogRecord.fields>): LogEntry {
  const { kind, zone, generation, condition, from, sectors, dataCrc, queue, order } = record;
  if (kind === RECORD_STATE) {
    return { kind, zone, generation, condition, written: from * SECTOR_BYTES };
  }
  return {
    kind: RECORD_DATA,
    zone,
    generation,
    from: from * SECTOR_BYTES,
    sizeBytes: sectors * SECTOR_BYTES,
    dataCrc,
    tag: queue === NO_QUEUE ? null : { queue, order: Number(order) },
  };
}

function sealed(bytes: Uint8Array, crcAt: number): Uint8Array {
  const view = viewOf(bytes);
  view.setUint32(crcAt, 0, true);
  view.setUint32(crcAt, crc32(bytes), true);
  return bytes;
}

function isWhole(bytes: Uint8Array, crcAt: number): boolean {
  const view = viewOf(bytes);
  const copy = bytes.slice();
  viewOf(copy).setUint32(crcAt, 0, true);
  return crc32(copy) === view.getUint32(crcAt, true);
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

export function roundUp(value: number, unit: number): number {
  return Math.ceil(value / unit) * unit;
}
