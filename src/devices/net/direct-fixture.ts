/**
 * For tests of the direct ways: guest memory in ranges that are nowhere what an arena offset is,
 * and a ring in it that is written word by word, so that it can say what no driver of ours would.
 */
import { assert } from '../../base/assert.ts';
import { PrivateMemory } from '../../memory/index.ts';
import type { AddressMap } from '../../memory/address-map.ts';
import { FRAME_BATCH_BYTES, FrameBatch } from '../../switch/index.ts';
import { arena, CopyPlan } from '../../sys/arena.ts';
import { ChainBatch } from '../../virtqueue/chain-batch.ts';
import { DeviceQueue } from '../../virtqueue/device-queue.ts';
import type { QueueLog } from '../../virtqueue/dirty-log.ts';
import { ringLayout } from '../../wire/virtio.ts';

export const NEXT = 1; // VIRTQ_DESC_F_*
export const WRITE = 2;
export const INDIRECT = 4;
const AVAIL = 1 << 7; //  VIRTQ_DESC_F_AVAIL, packed
const USED = 1 << 15;

/** A range of guest memory, where it is in ours, and what it may be used for: 1 read, 2 write. */
export type Range = {
  readonly gpa: number;
  readonly sizeBytes: number;
  readonly at: number;
  readonly permission: number;
};

const RING_BYTES = 0x4000;
const TABLES_AT = 0x4000;
const TABLES_BYTES = 0x4000;
/** Eight are looked through without an IOTLB. No two of them meet; of BIG both words are in use. */
export const RANGES: readonly Range[] = [
  { gpa: 0xf000_0000, sizeBytes: 0x8000, at: 0x44000, permission: 3 },
  { gpa: 0x1_8000_0000, sizeBytes: 0x40000, at: TABLES_AT, permission: 3 },
  { gpa: 0x2_0000_0000, sizeBytes: 0x8000, at: 0x4c000, permission: 1 },
  { gpa: 0x2_0001_0000, sizeBytes: 0x8000, at: 0x54000, permission: 2 },
  ...[0, 1, 2, 3, 4].map((i) => ({
    gpa: 0x3_0000_0000 + i * 0x10000,
    sizeBytes: 0x1000,
    at: 0x5c000 + i * 0x1000,
    permission: 3,
  })),
];
export const [LOW, BIG, READ_ONLY, WRITE_ONLY] = RANGES as [Range, Range, Range, Range];
/** The last that is looked through, and the one behind it. */
export const [EIGHTH, NINTH] = RANGES.slice(7) as [Range, Range];
const MEMORY_BYTES = 0x61000;
const BUFFERS_AT = TABLES_AT + TABLES_BYTES;
const FILLED = Uint8Array.from({ length: MEMORY_BYTES - BUFFERS_AT }, (_, i) => i * 167 + (i >> 8));
const LOG_BYTES = Math.ceil(0x3_0010_0000 / 4096 / 8);

export type RingOptions = {
  readonly packed: boolean;
  readonly size?: number;
  readonly indirect?: boolean;
  /** Where the device goes on: split any position; packed a slot, with the wrap counter. */
  readonly base?: number;
  readonly wrap?: 0 | 1;
  readonly ranges?: readonly Range[];
  readonly iotlb?: boolean;
  readonly logged?: boolean;
};

/** What the descriptor of a table says, where not what drivers say. */
export type TableOptions = {
  readonly gpa?: number;
  readonly len?: number;
  readonly flags?: number;
  /** An address of the range that it is in, or beside. */
  readonly inside?: number;
};

export type Part = readonly [gpa: number, len: number, flags?: number];

/** One ring and its memory, which `restore` makes what it was at `keep`. */
export class HandRing {
  readonly packed: boolean;
  readonly size: number;
  readonly desc: Int32Array;
  readonly log: PrivateMemory | null;
  readonly #memory = PrivateMemory.allocate(MEMORY_BYTES);
  readonly #options: RingOptions;
  readonly #avail: Uint16Array;
  /** Split: next free descriptor, and avail.idx. Packed: the slot, its state. */
  #next: number;
  #position: number;
  #wrap: 0 | 1;
  #table = 0;
  #kept: Uint8Array = new Uint8Array(0);

  constructor(options: RingOptions) {
    this.#options = options;
    this.packed = options.packed;
    this.size = options.size ?? 128;
    this.log = options.logged === true ? PrivateMemory.allocate(LOG_BYTES) : null;
    const { offset } = this.#memory;
    const { buffer } = arena();
    assert(this.#layout.totalBytes <= RING_BYTES);
    this.desc = new Int32Array(buffer, offset, 4 * this.size);
    this.#avail = new Uint16Array(buffer, offset + this.#layout.availAt, 2 + this.size);
    this.#position = options.base ?? 0;
    this.#next = options.packed ? this.#position : 0;
    this.#wrap = options.wrap ?? 1;
    if (!this.packed) this.#avail[1] = this.#position;
    for (let slot = 0; this.packed && slot < this.size; slot++) {
      const isUsed = (this.#wrap === 1) === slot < this.#position; // in this round or before
      this.desc[4 * slot + 3] = isUsed ? (AVAIL | USED) << 16 : 0;
    }
  }

  get #layout(): ReturnType<typeof ringLayout> {
    return ringLayout(this.size, this.#options.packed);
  }

  /** A queue that begins where the driver did. */
  queue(): DeviceQueue {
    const { packed, base = 0, wrap = 1, iotlb = false } = this.#options;
    const { offset } = this.#memory;
    const half = base | (wrap << 15);
    const layout = this.#layout;
    const config = {
      size: this.size,
      packed,
      eventIdx: false,
      indirect: this.#options.indirect ?? true,
      inOrder: false,
      descOffset: offset,
      availOffset: offset + layout.availAt,
      usedOffset: offset + layout.usedAt,
      base: packed ? (half | (half << 16)) >>> 0 : base,
    };
    return new DeviceQueue(config, this.map, arena().buffer, { iotlb, log: this.#queueLog });
  }

  get #queueLog(): QueueLog | null {
    if (this.log === null) return null;
    return { offset: this.log.offset, sizeBytes: LOG_BYTES, usedGpa: -1, gpa: this.map };
  }

  get map(): AddressMap {
    const ranges = this.#options.ranges ?? RANGES;
    const all = [...ranges, ...RANGES.slice(ranges.length)]; // columns may be longer
    const { offset } = this.#memory;
    return {
      count: ranges.length,
      start: Float64Array.from(all, ({ gpa }) => gpa),
      end: Float64Array.from(all, ({ gpa, sizeBytes }) => gpa + sizeBytes),
      delta: Float64Array.from(all, ({ gpa, at }) => offset + at - gpa),
      permission: Uint8Array.from(all, ({ permission }) => permission),
    };
  }

  /** Arena offset of a guest's address. */
  offsetOf(gpa: number): number {
    const range = RANGES.find((r) => gpa >= r.gpa && gpa < r.gpa + r.sizeBytes);
    assert(range !== undefined);
    return this.#memory.offset + range.at + gpa - range.gpa;
  }

  /** Makes a list of these available; the index of its first descriptor. */
  list(...parts: readonly Part[]): number {
    const first = this.#next;
    for (const [i, [gpa, len, flags = 0]] of parts.entries()) {
      const isLast = i + 1 === parts.length;
      const slot = this.#next;
      this.#next = (slot + 1) % this.size;
      const linked = isLast ? flags : flags | NEXT;
      if (this.packed) {
        const id = isLast ? this.size - 1 - first : 0xffff; // ids are no slots; 2.8.6: in the last
        this.put(slot, gpa, len, (linked << 16) | this.#state | id);
        if (this.#next === 0) this.#wrap = this.#wrap === 1 ? 0 : 1;
      } else this.put(slot, gpa, len, isLast ? linked : linked | (this.#next << 16));
    }
    if (!this.packed) this.offer(first);
    return first;
  }

  /** One descriptor, whatever it is: `last` is id | flags << 16, or flags | next << 16. */
  put(slot: number, gpa: number, len: number, last: number): void {
    this.desc.set([gpa | 0, (gpa / 2 ** 32) | 0, len, last], 4 * slot);
  }

  /** Split: shows the device a head, whatever it is. */
  offer(head: number): void {
    this.#avail[2 + (this.#position & (this.size - 1))] = head;
    this.#position = (this.#position + 1) & 0xffff;
    this.#avail[1] = this.#position;
  }

  /** Split: says that so many are available. */
  claim(count: number): void {
    this.#avail[1] = (this.#options.base ?? 0) + count;
  }

  /** A table of these, as drivers make them, and the descriptor that names it; its arena offset. */
  table(parts: readonly Part[], more: TableOptions = {}): number {
    const { gpa = BIG.gpa + this.#table, flags = 0 } = more;
    if (more.gpa === undefined) this.#table += 16 * parts.length;
    assert(this.#table <= TABLES_BYTES);
    const at = this.offsetOf(more.inside ?? gpa) + gpa - (more.inside ?? gpa);
    const { view } = arena();
    for (const [i, [partGpa, len, partFlags = 0]] of parts.entries()) {
      const linked = i + 1 < parts.length ? partFlags | NEXT | ((i + 1) << 16) : partFlags;
      view.setInt32(at + 16 * i, partGpa | 0, true);
      view.setInt32(at + 16 * i + 4, (partGpa / 2 ** 32) | 0, true);
      view.setInt32(at + 16 * i + 8, len, true);
      view.setInt32(at + 16 * i + 12, this.packed ? partFlags << 16 : linked, true);
    }
    this.list([gpa, more.len ?? 16 * parts.length, INDIRECT | flags]);
    return at;
  }

  /** Every buffer has other bytes than its neighbours. */
  fill(): void {
    arena().bytes.set(FILLED, this.#memory.offset + BUFFERS_AT);
  }

  /** What is in memory and in the log now is what `restore` brings back. */
  keep(): void {
    this.#kept = this.bytes();
  }

  restore(): void {
    arena().bytes.set(this.#kept, this.#memory.offset);
    const { log } = this;
    if (log !== null) arena().bytes.fill(0, log.offset, log.offset + LOG_BYTES);
  }

  bytes(): Uint8Array {
    const { offset, sizeBytes } = this.#memory;
    return arena().bytes.slice(offset, offset + sizeBytes);
  }

  /** A bit for each guest page that was written, with a log. */
  dirtyPages(): Uint8Array {
    const { offset } = this.log ?? { offset: 0 };
    return arena().bytes.slice(offset, this.log === null ? 0 : offset + LOG_BYTES);
  }

  close(): void {
    this.#memory.close();
    this.log?.close();
  }

  get #state(): number {
    return (this.#wrap === 1 ? AVAIL : USED) << 16;
  }
}

/** What `takeChains` or a direct way filled and had copied, before the copies change anything. */
export class SeenPlan extends CopyPlan {
  readonly #batch: FrameBatch;
  seen: unknown = null;

  constructor(batch: FrameBatch, capacity = 4096) {
    super(capacity);
    this.#batch = batch;
  }

  override run(): void {
    this.look();
    super.run();
  }

  /** The frames, their segments and the ranges that are copied, each by where it is in guests. */
  look(): unknown {
    const { count, segments, headersAt } = this.#batch;
    const { bytes, longest, shortest, plain, segOffset, segLen, rows } = this.#batch;
    const columns = [0, 64, 128, 192, 256, 320, 384]; // from HEADER_AT to GSO_TYPE
    this.seen = {
      sums: { count, segments, bytes, longest, shortest, plain },
      rows: columns.map((column) => [...rows.subarray(column, column + count)]),
      segments: [...segLen.subarray(0, segments)].map((len, i) => [segOffset[i], len]),
      ranges: [...this.source.subarray(0, this.count)].map((from, i) => [
        from,
        this.target[i]! - headersAt,
        this.length[i],
      ]),
    };
    return this.seen;
  }
}

/** A batch in which nothing is as its next user needs it. */
export function spoiledBatch(segCapacity?: number): { batch: FrameBatch; close: () => void } {
  const memory = PrivateMemory.allocate(FRAME_BATCH_BYTES);
  const header = { buffer: arena().buffer, at: memory.offset };
  const batch = new FrameBatch(header, undefined, segCapacity);
  batch.rows.fill(-1);
  batch.headers.fill(0xcc);
  batch.count = batch.segments = batch.bytes = batch.longest = batch.shortest = 99;
  batch.plain = 1;
  return { batch, close: () => memory.close() };
}

export function spoiledChains(): ChainBatch {
  const chains = new ChainBatch(undefined, undefined, true);
  chains.rows.fill(-1);
  chains.count = chains.segments = chains.uniform = chains.unfilled = 99;
  return chains;
}
