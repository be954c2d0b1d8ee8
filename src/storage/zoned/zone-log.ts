/**
 * What is known of all zones, kept on the medium so that neither the end of the process nor that of
 * the machine makes it wrong.
 *
 * Theory of operation. Data is written first, its entry in the log second, and only then is the
 * request answered. An entry has the CRC-32 of its data, so no flush has to stand between the two:
 * who opens the medium reads the data of each entry again, and the zone's write pointer ends in
 * front of the first entry whose data is not there. So
 *
 *  - after `kill -9` (what was written is in the page cache) every answered write is found;
 *  - after a power cut every write is found that was answered before a flush, for a flush makes
 *    data and entries durable together; of later ones as many as are whole;
 *  - a pointer is never ahead of what is readable.
 *
 * Entries are written in groups, one group at a time, each block of the log once. When the log is
 * full: flush, write the older table anew with the next epoch, flush, begin the log again. Whoever
 * opens the medium does that too, so what a crash left behind a gap in the log is never read.
 *
 * A write to the log that failed may be there or not; nothing can follow it. From then on every
 * request that needs the log fails with that error, until the medium is opened anew.
 */
import { crc32 } from 'node:zlib';
import { assert } from '../../base/assert.ts';
import type { Layer } from '../layer/layer.ts';
import {
  BLOCK_BYTES,
  decodeLogBlock,
  decodeTable,
  encodeLogBlock,
  encodeTable,
  type LogEntry,
  MAX_TAGS,
  RECORD_DATA,
  RECORD_STATE,
  RECORDS_PER_BLOCK,
  type DataRecord,
  type TagRecord,
  type ZonedPlaces,
  type ZoneRecord,
  type ZoneTable,
} from './zone-format.ts';
import { ZONE_CLOSED, ZONE_EXPLICIT_OPEN, ZONE_FULL } from './zone-types.ts';

export type ZoneLogOptions = {
  readonly below: Layer;
  readonly places: ZonedPlaces;
  readonly zones: number;
  readonly logBlocks: number;
  readonly zoneBytes: number;
  readonly capacityBytes: number;
};

type Waiting = { readonly entry: LogEntry; resolve(): void; reject(error: unknown): void };

/** Blocks that one group has at most. */
const GROUP_BLOCKS = 16;

export class ZoneLog {
  /** As the log has it: what a crash at this moment leaves. */
  readonly zones: ZoneRecord[];
  /** Tables written, and entries whose data was not there when the medium was opened. */
  checkpoints = 0;
  voided = 0;
  /** Entries that were read again when the medium was opened. */
  replayed = 0;
  readonly #options: ZoneLogOptions;
  /** By queue and order: where an append went; oldest first. */
  readonly #tags = new Map<string, TagRecord>();
  #epoch: number;
  #nextBlock = 0;
  readonly #waiting: Waiting[] = [];
  #isWriting = false;
  #idle: PromiseWithResolvers<void> | null = null;
  #failure: unknown = null;

  /**
   * Reads what is there. Null: neither table is whole.
   * @throws what the layer below throws.
   */
  static async open(options: ZoneLogOptions, readOnly: boolean): Promise<ZoneLog | null> {
    const { below, places, zones } = options;
    let newest: ZoneTable | null = null;
    for (const at of places.tableAt) {
      const bytes = new Uint8Array(places.tableBytes);
      await below.read(at, bytes);
      const table = decodeTable(bytes, zones);
      if (table !== null && (newest === null || table.epoch > newest.epoch)) newest = table;
    }
    if (newest === null) return null;
    const log = new ZoneLog(options, newest);
    await log.#replay();
    if (!readOnly) await log.#checkpoint();
    return log;
  }

  /** The tables of a medium that was never used; durable once the caller has flushed. */
  static async format({ below, places }: ZoneLogOptions, zones: ZoneRecord[]): Promise<void> {
    const table = encodeTable({ epoch: 1, zones, tags: [] }, places.tableBytes);
    await below.write(tablePlace(places, 1), table, false);
  }

  private constructor(options: ZoneLogOptions, table: ZoneTable) {
    this.#options = options;
    this.#epoch = table.epoch;
    this.zones = table.zones;
    for (const tag of table.tags) this.#remember(tag);
  }

  /** Where an append that was done before its process died has put its data; -1: it was not. */
  placeOf(queue: number, order: number): number {
    return this.#tags.get(`${queue}:${order}`)?.at ?? -1;
  }

  /** Resolves when the entry survives the end of the process. Entries keep their order. */
  append(entry: LogEntry): Promise<void> {
    if (this.#failure !== null) return Promise.reject(this.#failure);
    return new Promise((resolve, reject) => {
      this.#waiting.push({ entry, resolve, reject });
      if (!this.#isWriting) void this.#write();
    });
  }

  /** When it resolves nothing is being written. */
  async settled(): Promise<void> {
    if (!this.#isWriting) return;
    this.#idle ??= Promise.withResolvers<void>();
    await this.#idle.promise;
  }

  async #write(): Promise<void> {
    this.#isWriting = true;
    // What is asked for in this turn of the event loop goes together.
    await Promise.resolve();
    while (this.#waiting.length > 0) {
      const group = this.#waiting.splice(0, GROUP_BLOCKS * RECORDS_PER_BLOCK);
      try {
        if (this.#failure !== null) throw this.#failure;
        await this.#writeGroup(group.map(({ entry }) => entry));
        for (const { entry } of group) this.#apply(entry);
        for (const { resolve } of group) resolve();
      } catch (error) {
        this.#failure ??= error;
        for (const { reject } of group) reject(error);
      }
    }
    this.#isWriting = false;
    this.#idle?.resolve();
    this.#idle = null;
  }

  async #writeGroup(entries: readonly LogEntry[]): Promise<void> {
    const blocks = Math.ceil(entries.length / RECORDS_PER_BLOCK);
    const { below, places, logBlocks } = this.#options;
    if (this.#nextBlock + blocks > logBlocks) await this.#checkpoint();
    const bytes = new Uint8Array(blocks * BLOCK_BYTES);
    for (let block = 0; block < blocks; block++) {
      const some = entries.slice(block * RECORDS_PER_BLOCK, (block + 1) * RECORDS_PER_BLOCK);
      const part = bytes.subarray(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);
      encodeLogBlock(part, some, this.#epoch, this.#nextBlock + block);
    }
    await below.write(places.logAt + this.#nextBlock * BLOCK_BYTES, bytes, false);
    this.#nextBlock += blocks;
  }

  /** All that the log says goes into a table; the log is empty. */
  async #checkpoint(): Promise<void> {
    const { below, places } = this.#options;
    await below.flush(); // the data that the table will speak of
    const epoch = this.#epoch + 1;
    const table = { epoch, zones: this.zones, tags: [...this.#tags.values()] };
    const bytes = encodeTable(table, places.tableBytes);
    await below.write(tablePlace(places, epoch), bytes, false);
    await below.flush();
    this.#epoch = epoch;
    this.#nextBlock = 0;
    this.checkpoints++;
  }

  #apply(entry: LogEntry): void {
    const zone = this.zones[entry.zone]!;
    if (entry.kind === RECORD_STATE) {
      zone.generation = entry.generation;
      zone.condition = entry.condition;
      zone.written = entry.written;
      return;
    }
    assert(zone.written === entry.from, 'entries of a zone follow each other');
    zone.written += entry.sizeBytes;
    const { capacityBytes } = this.#options;
    if (zone.written === capacityBytes) zone.condition = ZONE_FULL;
    else if (zone.condition !== ZONE_EXPLICIT_OPEN) zone.condition = ZONE_CLOSED;
    this.#rememberAppend(entry);
  }

  #rememberAppend({ tag, zone, from }: DataRecord): void {
    if (tag === null) return;
    this.#remember({ ...tag, at: zone * this.#options.zoneBytes + from });
  }

  #remember(tag: TagRecord): void {
    const key = `${tag.queue}:${tag.order}`;
    this.#tags.delete(key);
    this.#tags.set(key, tag);
    if (this.#tags.size <= MAX_TAGS) return;
    const [oldest] = this.#tags.keys();
    this.#tags.delete(oldest!);
  }

  async #replay(): Promise<void> {
    const entries = await this.#readLog();
    // Of a zone that was reset since, data is gone, and rightly so.
    const lastReset = lastResets(entries, this.zones);
    const broken = new Set<number>();
    for (const [i, entry] of entries.entries()) {
      const reset = lastReset.get(entry.zone) ?? -1;
      if (i < reset) {
        if (entry.kind === RECORD_DATA) this.#rememberAppend(entry);
      } else if (broken.has(entry.zone) || !(i === reset || (await this.#isThere(entry)))) {
        broken.add(entry.zone);
        this.voided++;
      } else {
        this.#apply(entry);
        this.replayed++;
      }
    }
  }

  /** Up to the first block that is not of this log, or says what cannot be. */
  async #readLog(): Promise<LogEntry[]> {
    const { below, places, logBlocks, zones } = this.#options;
    const all: LogEntry[] = [];
    const block = new Uint8Array(BLOCK_BYTES);
    for (let index = 0; index < logBlocks; index++) {
      await below.read(places.logAt + index * BLOCK_BYTES, block);
      const entries = decodeLogBlock(block, this.#epoch, index);
      if (entries === null || entries.some(({ zone }) => zone >= zones)) return all;
      all.push(...entries);
    }
    return all;
  }

  /** The entry follows what is known, and its data is what was written. */
  async #isThere(entry: LogEntry): Promise<boolean> {
    const { below, places, zoneBytes, capacityBytes } = this.#options;
    if (entry.kind === RECORD_STATE) return entry.written <= capacityBytes;
    const zone = this.zones[entry.zone]!;
    if (entry.generation !== zone.generation || entry.from !== zone.written) return false;
    if (entry.sizeBytes === 0 || entry.from + entry.sizeBytes > capacityBytes) return false;
    const data = new Uint8Array(entry.sizeBytes);
    await below.read(places.dataAt + entry.zone * zoneBytes + entry.from, data);
    return crc32(data) === entry.dataCrc;
  }
}

/** Never that of the epoch before, which counts until this one is whole. */
function tablePlace({ tableAt }: ZonedPlaces, epoch: number): number {
  return tableAt[epoch % 2] as number;
}

/** By zone: which entry is its last reset. */
function lastResets(
  entries: readonly LogEntry[],
  zones: readonly ZoneRecord[],
): ReadonlyMap<number, number> {
  const generations = zones.map(({ generation }) => generation);
  const resets = new Map<number, number>();
  for (const [i, { zone, generation }] of entries.entries()) {
    if (generation !== generations[zone]) resets.set(zone, i);
    generations[zone] = generation;
  }
  return resets;
}
