/**
 * What one chain costs on each side, per format and shape: nanoseconds, the fastest of several
 * rounds over rings that are already written (the driver's work is measured, and subtracted, on
 * its own). Every round checks that all chains arrived with the right addresses and came back.
 *
 *     node src/virtqueue/queue.bench.ts
 */
import { ChainBatch } from './chain-batch.ts';
import { needsCall, putUsed, takeChains } from './device.hot.ts';
import { DriverBatch, UsedBatch } from './driver/driver-batch.ts';
import { addChains, needsKick, publish, reapUsed } from './driver/driver.hot.ts';
import { PAIR_BASE_GPA, QueuePair, type QueuePairOptions } from './driver/queue-pair.ts';
import { assert } from '../base/assert.ts';

const SIZE = 256;
const BATCH = 64;
const ROUNDS = 12;
const CHAINS_PER_ROUND = 256 * 1024;

export type QueueCost = {
  readonly name: string;
  readonly addNs: number;
  readonly takeNs: number;
  readonly putNs: number;
  readonly reapNs: number;
};

type Shape = { readonly segs: number; readonly indirect: boolean; readonly writable: boolean };

export function measureQueue(name: string, options: QueuePairOptions, shape: Shape): QueueCost {
  const pair = new QueuePair(options);
  const { driver, device } = pair;
  const out = new DriverBatch();
  const chains = new ChainBatch();
  const back = new UsedBatch();
  fillBatch(pair, out, shape);
  const best = { add: Infinity, take: Infinity, put: Infinity, reap: Infinity };
  const perRing = Math.floor(SIZE / (shape.indirect ? 1 : shape.segs) / BATCH) || 1;
  const perBatch = Math.min(BATCH, SIZE / (shape.indirect ? 1 : shape.segs));
  for (let round = 0; round < ROUNDS; round++) {
    const spent = { add: 0, take: 0, put: 0, reap: 0 };
    for (let done = 0; done < CHAINS_PER_ROUND; done += perRing * perBatch) {
      runRing(pair, out, chains, back, perRing, perBatch, spent);
    }
    for (const key of ['add', 'take', 'put', 'reap'] as const) {
      if (spent[key] < best[key]) best[key] = spent[key];
    }
  }
  assert(device.fault === 0 && driver.fault === 0 && driver.outstanding === 0);
  const n = CHAINS_PER_ROUND;
  return {
    name,
    addNs: best.add / n,
    takeNs: best.take / n,
    putNs: best.put / n,
    reapNs: best.reap / n,
  };
}

/** Fills the ring, takes it, uses it, reaps it; the clock is read between the sides only. */
function runRing(
  pair: QueuePair,
  out: DriverBatch,
  chains: ChainBatch,
  back: UsedBatch,
  batches: number,
  perBatch: number,
  spent: { add: number; take: number; put: number; reap: number },
): void {
  const { driver, device } = pair;
  const t0 = process.hrtime.bigint();
  for (let b = 0; b < batches; b++) {
    if (addChains(driver, out, 0, perBatch) !== perBatch) throw new Error('ring is full');
    publish(driver);
    needsKick(driver);
  }
  const t1 = process.hrtime.bigint();
  let takeNs = 0;
  let putNs = 0;
  for (let b = 0; b < batches; b++) {
    const a = process.hrtime.bigint();
    if (takeChains(device, chains, perBatch) !== perBatch) throw new Error('chains are missing');
    const c = process.hrtime.bigint();
    putUsed(device, chains, 0, perBatch);
    needsCall(device);
    const d = process.hrtime.bigint();
    takeNs += Number(c - a);
    putNs += Number(d - c);
  }
  checkBatch(pair, out, chains, perBatch);
  const t2 = process.hrtime.bigint();
  for (let b = 0; b < batches; b++) {
    if (reapUsed(driver, back, perBatch) !== perBatch) throw new Error('chains did not come back');
  }
  spent.add += Number(t1 - t0);
  spent.take += takeNs;
  spent.put += putNs;
  spent.reap += Number(process.hrtime.bigint() - t2);
}

function fillBatch(pair: QueuePair, out: DriverBatch, shape: Shape): void {
  for (let i = 0; i < BATCH; i++) {
    const list = [];
    for (let s = 0; s < shape.segs; s++) {
      list.push({ gpa: pair.dataGpa + 2048 * (i * shape.segs + s), len: 100 + s });
    }
    if (shape.writable) out.addChain([], list, shape.indirect);
    else out.addChain(list, [], shape.indirect);
  }
}

function checkBatch(pair: QueuePair, out: DriverBatch, chains: ChainBatch, count: number): void {
  for (let i = 0; i < count; i++) {
    const first = chains.segFirst[i];
    const segs = chains.readSegs[i] + chains.writeSegs[i];
    for (let s = 0; s < segs; s++) {
      const gpa = out.segGpa[out.segFirst[i] + s];
      const good = chains.segOffset[first + s] === gpa - PAIR_BASE_GPA + pair.offset;
      if (!good || chains.segLen[first + s] !== 100 + s) throw new Error(`chain ${i} is wrong`);
    }
  }
}

export function measureAll(): QueueCost[] {
  const costs: QueueCost[] = [];
  const one = { segs: 1, indirect: false, writable: false };
  const four = { segs: 4, indirect: false, writable: false };
  const table = { segs: 4, indirect: true, writable: false };
  const rx = { segs: 1, indirect: false, writable: true };
  for (const packed of [false, true]) {
    const kind = packed ? 'packed' : 'split';
    const base = { size: SIZE, packed, eventIdx: true, indirect: true };
    costs.push(measureQueue(`${kind}, 1 readable`, base, one));
    costs.push(measureQueue(`${kind}, 1 writable`, base, rx));
    costs.push(measureQueue(`${kind}, 1 readable, in order`, { ...base, inOrder: true }, one));
    costs.push(measureQueue(`${kind}, 1 writable, in order`, { ...base, inOrder: true }, rx));
    costs.push(measureQueue(`${kind}, list of 4`, base, four));
    costs.push(measureQueue(`${kind}, table of 4`, base, table));
  }
  return costs;
}

if (import.meta.main) {
  console.log('ns per chain                 add    take     put    reap');
  for (const c of measureAll()) {
    const cells = [c.addNs, c.takeNs, c.putNs, c.reapNs].map((ns) => ns.toFixed(1).padStart(8));
    console.log(c.name.padEnd(24) + cells.join(''));
  }
}
