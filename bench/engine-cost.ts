/**
 * What our engine makes of the I/O of bench/uring-cost.c: the same places, sizes and depth, without
 * a guest, its rings and a second thread.
 *
 *   node bench/engine-cost.ts FILE DEPTH SECONDS read|write buffered|direct
 */
import { PrivateMemory } from '../src/memory/index.ts';
import {
  IO_READ,
  IO_WRITE,
  IoBatch,
  IoDone,
  openEngine,
  openFileImage,
} from '../src/storage/index.ts';

const [path, depthText, secondsText, op, way] = process.argv.slice(2) as string[];
const depth = Number(depthText);
const BLOCK = 4096;
const direct = way === 'direct' ? 'on' : 'off';
const image = openFileImage({ path: path!, uring: 'on', direct });
const engine = openEngine(image.spec);
const memory = PrivateMemory.allocate(depth * BLOCK);
const blocks = Math.floor(image.sizeBytes / BLOCK);
const batch = new IoBatch();
const done = new IoDone();
const kind = op === 'write' ? IO_WRITE : IO_READ;
const free = Int32Array.from({ length: depth }, (_, i) => i);
let freeCount = depth;
let state = 0x9e3779b9 | 0;
engine.arm?.();

/** One round: fills up, and takes what has completed. Returns how many. */
function round(): number {
  batch.clear();
  while (freeCount > 0) {
    const slot = free[--freeCount]!;
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    const row = batch.count++;
    batch.op[row] = kind;
    batch.flags[row] = 0;
    batch.id[row] = slot;
    batch.at[row] = Math.floor(((state >>> 0) / 2 ** 32) * blocks) * BLOCK;
    batch.size[row] = BLOCK;
    batch.segFirst[row] = row;
    batch.segCount[row] = 1;
    batch.segOffset[row] = memory.offset + slot * BLOCK;
    batch.segLen[row] = BLOCK;
  }
  if (batch.count > 0) engine.submit(batch, 0);
  const count = engine.reap(done);
  for (let i = 0; i < count; i++) {
    if (done.status[i] !== 0) throw new Error(`a request failed: ${done.status[i]}`);
    free[freeCount++] = done.id[i]!;
  }
  return count;
}

function run(milliseconds: number): number {
  const start = performance.now();
  let requests = 0;
  for (let now = start; now - start < milliseconds; now = performance.now()) {
    for (let i = 0; i < 16; i++) requests += round();
  }
  return (requests / (performance.now() - start)) * 1000;
}

run(300); // until it is compiled
console.log(run(Number(secondsText) * 1000).toFixed(0));
engine.settle();
while (engine.reap(done) > 0);
engine.close();
image.close();
memory.close();
