/**
 * Fuzzes both sides of the virtqueue: rings, descriptors and indirect tables full of garbage that
 * is almost legal, rewritten between calls and, from a second thread, during them.
 *
 *     node src/virtqueue/queue.fuzz.ts [seconds] [seed]
 *
 * What must hold whatever the other side writes: no call throws; every segment lies in one range
 * of the memory map; counts, sums and identities agree with each other and with the limits; the
 * driver's books stay balanced. The one-thread half repeats exactly from its seed.
 */
import { Worker, isMainThread, workerData } from 'node:worker_threads';
import { assert } from '../base/assert.ts';
import type { AddressMap } from '../memory/address-map.ts';
import { ringLayout } from '../wire/virtio.ts';
import { ChainBatch } from './chain-batch.ts';
import { fillRows } from './chain-segments.hot.ts';
import { DeviceQueue, ringBase, type QueueExtras, type VringConfig } from './device-queue.ts';
import {
  disableKicks,
  enableKicks,
  needsCall,
  putUsed,
  takeChains,
  untakeChains,
} from './device.hot.ts';
import { DriverBatch, UsedBatch } from './driver/driver-batch.ts';
import { DriverQueue } from './driver/driver-queue.ts';
import {
  addChains,
  disableCalls,
  enableCalls,
  needsKick,
  publish,
  reapUsed,
} from './driver/driver.hot.ts';

const ARENA_BYTES = 1 << 18;
const RING_AT = 4096;
const RING_BYTES = 16384;
const INFLIGHT_AT = RING_AT + RING_BYTES;
const INFLIGHT_BYTES = 4096;
const LOG_AT = INFLIGHT_AT + INFLIGHT_BYTES;
const RANGES = 3;
const RANGE_BYTES = 32768;
/** GPA and arena offset of each range: 0 and 1 touch in the guest but not in the arena. */
const GPAS = [0xffff_8000, 0x1_0000_0000, 0x2_0001_0000];
const OFFSETS = [65536, 131072, 196608];

export type FuzzReport = {
  readonly rounds: number;
  readonly chains: number;
  readonly faults: number;
};

/** xorshift32: small, seeded, the same everywhere. */
class Random {
  #state: number;
  constructor(seed: number) {
    this.#state = seed | 0 || 1;
  }
  u32(): number {
    let x = this.#state;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.#state = x;
    return x >>> 0;
  }
  below(n: number): number {
    return this.u32() % n;
  }
  chance(percent: number): boolean {
    return this.below(100) < percent;
  }
}

/** What a guest could have written on purpose: legal mostly, wrong by a little, wrong by a lot. */
class Scribbler {
  readonly #random: Random;
  readonly #view: DataView;
  readonly #size: number;
  readonly #packed: boolean;

  constructor(random: Random, buffer: ArrayBufferLike, size: number, packed: boolean) {
    this.#random = random;
    this.#view = new DataView(buffer);
    this.#size = size;
    this.#packed = packed;
  }

  address(): bigint {
    const r = this.#random;
    const range = r.below(RANGES);
    if (r.chance(3)) return (BigInt(r.u32()) << 32n) | BigInt(r.u32());
    if (r.chance(5)) return BigInt(GPAS[range]) - BigInt(r.below(64));
    if (r.chance(10)) return BigInt(GPAS[range] + RANGE_BYTES - r.below(256));
    return BigInt(GPAS[range] + r.below(RANGE_BYTES - 2048));
  }

  length(table: boolean): number {
    const r = this.#random;
    if (r.chance(3)) return r.u32();
    if (r.chance(3)) return 0;
    return table ? 16 * (1 + r.below(12)) : 1 + r.below(2000);
  }

  /** Rewrites the descriptor at arena offset `at`; `entries` of its table. */
  descriptor(at: number, entries: number): void {
    const r = this.#random;
    let flags = r.below(2) * 2;
    const table = r.chance(12);
    if (table) flags = 4;
    else if (r.chance(35)) flags |= 1;
    if (r.chance(2)) flags = r.below(65536);
    if (this.#packed) flags |= r.chance(50) ? 0x80 : 0x8000;
    const link = r.chance(2) ? r.below(65536) : r.below(this.#packed ? this.#size : entries);
    this.#view.setBigUint64(at, this.address(), true);
    this.#view.setUint32(at + 8, this.length(table), true);
    this.#view.setUint16(at + 12, this.#packed ? link : flags, true);
    this.#view.setUint16(at + 14, this.#packed ? flags : link, true);
  }

  /** A few writes anywhere in the ring's memory and in one indirect table. */
  strike(): void {
    const r = this.#random;
    const layout = ringLayout(this.#size, this.#packed);
    for (let i = 1 + r.below(8); i > 0; i--) {
      this.descriptor(RING_AT + 16 * r.below(this.#size), this.#size);
    }
    const table = OFFSETS[r.below(RANGES)] + r.below(RANGE_BYTES - 256);
    for (let i = r.below(12); i >= 0; i--) this.descriptor(table + 16 * i, 12);
    const availAt = RING_AT + layout.availAt;
    const usedAt = RING_AT + layout.usedAt;
    if (!this.#packed) {
      for (let i = r.below(8); i > 0; i--) {
        const head = r.chance(2) ? r.below(65536) : r.below(this.#size);
        this.#view.setUint16(availAt + 4 + 2 * r.below(this.#size), head, true);
      }
      const idx = this.#view.getUint16(availAt + 2, true);
      const step = r.chance(2) ? r.below(65536) : r.below(this.#size + 1);
      this.#view.setUint16(availAt + 2, idx + step, true);
      if (r.chance(20)) {
        const used = usedAt + 4 + 8 * r.below(this.#size);
        this.#view.setUint32(used, r.chance(5) ? r.u32() : r.below(this.#size), true);
        this.#view.setUint32(used + 4, r.below(3000), true);
        const back = this.#view.getUint16(usedAt + 2, true);
        this.#view.setUint16(usedAt + 2, back + r.below(4), true);
      }
    }
    if (r.chance(20)) this.#view.setUint32(availAt & ~3, r.u32(), true);
    if (r.chance(20)) this.#view.setUint32(usedAt & ~3, r.u32(), true);
  }
}

function makeMap(): AddressMap {
  const delta = GPAS.map((gpa, i) => OFFSETS[i] - gpa);
  return {
    count: RANGES,
    start: new Float64Array(GPAS),
    end: new Float64Array(GPAS.map((gpa) => gpa + RANGE_BYTES)),
    delta: new Float64Array(delta),
  };
}

/** A log that is far too short, an inflight region, an IOTLB: each in some runs. */
function makeExtras(random: Random, gpa: AddressMap): QueueExtras {
  const usedGpa = random.chance(50) ? 4096 * random.below(100000) : -1;
  return {
    iotlb: random.chance(30),
    log: random.chance(30) ? { offset: LOG_AT, sizeBytes: 8192, usedGpa, gpa } : null,
    inflight: random.chance(40) ? { offset: INFLIGHT_AT, sizeBytes: INFLIGHT_BYTES } : null,
  };
}

/** A driver that hands a buffer out twice may leave a region that contradicts itself. */
function makeDevice(
  config: VringConfig,
  map: AddressMap,
  buffer: ArrayBufferLike,
  extras: QueueExtras,
): DeviceQueue {
  try {
    return new DeviceQueue(config, map, buffer, extras);
  } catch (error) {
    assert((error as { code?: string }).code === 'ERR_VRING_INFLIGHT', String(error));
    new Uint8Array(buffer, INFLIGHT_AT, INFLIGHT_BYTES).fill(0);
    return new DeviceQueue(config, map, buffer, extras);
  }
}

/** All that a caller of `takeChains` may rely on. */
function checkBatch(batch: ChainBatch, size: number, packed: boolean): void {
  assert(batch.count <= batch.capacity);
  assert(batch.segments <= batch.segCapacity);
  let segment = 0;
  for (let i = 0; i < batch.count; i++) {
    assert(batch.head[i] >= 0 && batch.head[i] < size, 'head');
    if (packed) assert(batch.slots[i] >= 1 && batch.slots[i] <= size, 'slots');
    assert(batch.segFirst[i] === segment, 'segFirst');
    assert(batch.written[i] === 0, 'written');
    for (const [segs, bytes] of [
      [batch.readSegs[i], batch.readBytes[i]],
      [batch.writeSegs[i], batch.writeBytes[i]],
    ]) {
      let total = 0;
      for (let s = 0; s < segs; s++, segment++) {
        const at = batch.segOffset[segment];
        const len = batch.segLen[segment];
        assert(len > 0, 'length');
        const inside = OFFSETS.some((start) => at >= start && at + len <= start + RANGE_BYTES);
        assert(inside, () => `segment ${at}+${len} is outside`);
        total += len;
      }
      assert(total === bytes, 'bytes');
    }
  }
  assert(segment === batch.segments, 'segments');
}

/** One device on hostile memory; `scribble` is what happens between its calls. */
function fuzzDevice(
  random: Random,
  config: VringConfig,
  buffer: ArrayBufferLike,
  calls: number,
  scribble: () => void,
  report: { chains: number; faults: number },
): void {
  const map = makeMap();
  const extras = makeExtras(random, map);
  if (extras.iotlb) Object.assign(map, { permission: Uint8Array.of(3, 1 + random.below(3), 3) });
  let q = makeDevice(config, map, buffer, extras);
  q.weakOrder = random.below(2);
  const batch = new ChainBatch(1 + random.below(64), 1 + random.below(300), random.chance(50));
  for (let i = 0; i < calls; i++) {
    scribble();
    const taken = takeChains(q, batch, random.below(80));
    assert(taken === batch.count || taken < 0, 'count');
    if (taken < 0) {
      assert(q.fault === taken && batch.count === 0);
      report.faults++;
      const base = ringBase(q);
      const next = config.packed ? base : (base + 1) & 0xffff;
      q = makeDevice({ ...config, base: next }, map, buffer, extras);
      q.weakOrder = random.below(2);
      if (!config.packed) resync(q, config, buffer);
      continue;
    }
    report.chains += taken;
    const keep = random.below(taken + 1);
    const untakeFirst = random.chance(50);
    if (untakeFirst) untakeChains(q, batch, keep);
    if (batch.unfilled !== 0) fillRows(batch, batch.count);
    checkBatch(batch, config.size, config.packed);
    if (!untakeFirst) untakeChains(q, batch, keep);
    for (let k = 0; k < keep; k++) batch.written[k] = random.below(batch.writeBytes[k] + 1);
    const part = random.below(keep + 1);
    if (config.inOrder || random.chance(50)) putUsed(q, batch, 0, keep);
    else {
      putUsed(q, batch, part, keep - part);
      putUsed(q, batch, 0, part);
    }
    needsCall(q);
    if (random.chance(30)) disableKicks(q);
    if (random.chance(30)) enableKicks(q);
  }
}

/** Split: makes the avail index plausible again, or every later call would fault at once. */
function resync(q: DeviceQueue, config: VringConfig, buffer: ArrayBufferLike): void {
  const avail = new Uint16Array(buffer, config.availOffset, 2);
  const next = (q.nextAvail + 1) & 0xffff;
  Atomics.store(avail, 1, config.bigEndian ? ((next & 0xff) << 8) | (next >> 8) : next);
}

/** One driver whose device is hostile: what comes back must have been out, once. */
function fuzzDriver(
  random: Random,
  config: VringConfig,
  buffer: ArrayBufferLike,
  calls: number,
  scribble: () => void,
  report: { chains: number; faults: number },
): void {
  const q = new DriverQueue(config, buffer);
  const batch = new DriverBatch();
  const into = new UsedBatch(1 + random.below(64));
  const room = new Map<number, number>(); // of the chains that are out
  for (let i = 0; i < calls; i++) {
    batch.clear();
    for (let n = random.below(8); n > 0; n--) {
      const list = (count: number) =>
        Array.from({ length: count }, () => ({ gpa: GPAS[0], len: 1 + random.below(100) }));
      batch.addChain(list(1 + random.below(2)), list(random.below(3)));
    }
    const added = addChains(q, batch, 0, batch.count);
    for (let k = 0; k < added; k++) {
      let bytes = 0;
      const first = batch.segFirst[k] + batch.readSegs[k];
      for (let s = first; s < first + batch.writeSegs[k]; s++) bytes += batch.segLen[s];
      assert(!room.has(batch.id[k]), 'an id is out once');
      room.set(batch.id[k], bytes);
    }
    publish(q);
    needsKick(q);
    scribble();
    const reaped = reapUsed(q, into, random.below(80));
    assert(q.free >= 0 && q.free <= q.size);
    if (reaped < 0) {
      report.faults++;
      q.reset();
      room.clear();
      continue;
    }
    for (let k = 0; k < reaped; k++) {
      const bytes = room.get(into.id[k]);
      assert(bytes !== undefined, 'what comes back was out');
      assert(into.len[k] >= 0 && into.len[k] <= bytes, 'length');
      room.delete(into.id[k]);
    }
    report.chains += reaped;
    assert(room.size === q.outstanding);
    if (random.chance(30)) disableCalls(q);
    if (random.chance(30)) enableCalls(q);
  }
}

function randomConfig(random: Random): VringConfig {
  const packed = random.chance(50);
  const size = packed ? 1 + random.below(64) : 1 << random.below(7);
  const layout = ringLayout(size, packed);
  assert(layout.totalBytes <= RING_BYTES);
  return {
    size,
    packed,
    eventIdx: random.chance(50),
    indirect: random.chance(80),
    inOrder: random.chance(30),
    descOffset: RING_AT,
    availOffset: RING_AT + layout.availAt,
    usedOffset: RING_AT + layout.usedAt,
    base: packed ? 0x8000_8000 : random.below(65536),
    bigEndian: !packed && random.chance(10),
  };
}

function oneRound(
  seed: number,
  buffer: ArrayBufferLike,
  config: VringConfig,
  alone: boolean,
  report: { rounds: number; chains: number; faults: number },
): void {
  const random = new Random(seed);
  const scribbler = new Scribbler(random, buffer, config.size, config.packed);
  const scribble = alone
    ? () => scribbler.strike()
    : () => {
        if (random.chance(10)) scribbler.strike();
      };
  try {
    if (random.chance(75)) fuzzDevice(random, config, buffer, 400, scribble, report);
    else fuzzDriver(random, config, buffer, 400, scribble, report);
  } catch (error) {
    const text = `virtqueue fuzz: seed ${seed}, ${alone ? 'one thread' : 'two threads'}`;
    throw new Error(`${text}, ${JSON.stringify(config)}`, { cause: error });
  }
  report.rounds++;
}

/**
 * Runs for `seconds`, half of it with a second thread that rewrites the same memory all the time.
 * @throws Error naming the seed and the ring's configuration.
 */
export async function fuzz(options: { seconds: number; seed: number }): Promise<FuzzReport> {
  const report = { rounds: 0, chains: 0, faults: 0 };
  console.log(`virtqueue fuzz: seed ${options.seed}`);
  const seeds = new Random(options.seed);
  const half = Date.now() + 500 * options.seconds;
  while (Date.now() < half) {
    const seed = seeds.u32();
    const buffer = new ArrayBuffer(ARENA_BYTES);
    oneRound(seed, buffer, randomConfig(new Random(seed ^ 0x5a5a)), true, report);
  }
  const end = half + 500 * options.seconds;
  while (Date.now() < end) {
    const buffer = new SharedArrayBuffer(ARENA_BYTES);
    const seed = seeds.u32();
    const config = randomConfig(new Random(seed ^ 0x5a5a));
    const data = { buffer, size: config.size, packed: config.packed, seed };
    const worker = new Worker(new URL(import.meta.url), { workerData: { scribbleFuzz: data } });
    await new Promise((resolve) => worker.once('online', resolve));
    try {
      const stop = Math.min(end, Date.now() + 1000);
      for (let n = 0; Date.now() < stop; n++) oneRound(seed + n, buffer, config, false, report);
    } finally {
      await worker.terminate();
    }
  }
  return report;
}

if (!isMainThread && workerData?.scribbleFuzz) {
  const { buffer, size, packed, seed } = workerData.scribbleFuzz;
  const scribbler = new Scribbler(new Random(seed ^ 0x77), buffer, size, packed);
  for (;;) scribbler.strike();
} else if (import.meta.main && isMainThread) {
  const seconds = Number(process.argv[2] ?? 10);
  const seed = Number(process.argv[3] ?? Date.now() % 2 ** 31);
  console.log(await fuzz({ seconds, seed }));
}
