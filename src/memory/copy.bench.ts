/**
 * What a copy inside the arena costs, by length and way. Prints nanoseconds per copy and the bytes
 * that JavaScript allocated per copy, once optimised; checks what was copied.
 *
 *   node src/memory/copy.bench.ts
 */
import assert from 'node:assert/strict';
import { getHeapStatistics } from 'node:v8';
import { arena, CopyPlan } from '../sys/index.ts';
import { copySmall, PrivateMemory } from './index.ts';

const FRAMES = 64; //  of one batch
const STRIDE = 2048; // bytes from frame to frame
const ROUNDS = 15;
const BATCHES = 3000; // of one round

const { view, bytes } = arena();
const memory = PrivateMemory.allocate(2 * FRAMES * STRIDE);
const from = memory.offset + 3; // descriptors are aligned to nothing
const to = memory.offset + FRAMES * STRIDE + 5;
const plan = new CopyPlan(FRAMES);

function bySmall(lenBytes: number): void {
  for (let i = 0; i < FRAMES; i++) {
    copySmall(view, to + i * STRIDE, view, from + i * STRIDE, lenBytes);
  }
}

function byPlan(lenBytes: number): void {
  for (let i = 0; i < FRAMES; i++) {
    plan.source[i] = from + i * STRIDE;
    plan.target[i] = to + i * STRIDE;
    plan.length[i] = lenBytes;
  }
  plan.count = FRAMES;
  plan.run();
}

function byCopyWithin(lenBytes: number): void {
  for (let i = 0; i < FRAMES; i++) {
    const at = from + i * STRIDE;
    bytes.copyWithin(to + i * STRIDE, at, at + lenBytes);
  }
}

type Result = { ns: number; heapBytes: number };

/** Bytes ever allocated on this thread's heap. Node 26; NaN before. */
function allocated(): number {
  const statistics = getHeapStatistics() as { total_allocated_bytes?: number };
  return statistics.total_allocated_bytes ?? NaN;
}

/** The same with a tail of bytes, and without a call. */
function byBigUint64Loop(lenBytes: number): void {
  for (let i = 0; i < FRAMES; i++) {
    const source = from + i * STRIDE;
    const target = to + i * STRIDE;
    let at = 0;
    for (; at + 8 <= lenBytes; at += 8) {
      view.setBigUint64(target + at, view.getBigUint64(source + at, true), true);
    }
    for (; at < lenBytes; at++) view.setUint8(target + at, view.getUint8(source + at));
  }
}

function measure(way: (lenBytes: number) => void, lenBytes: number): Result {
  const times: number[] = [];
  let heapBytes = Infinity;
  for (let round = 0; round < ROUNDS; round++) {
    const before = allocated();
    const started = process.hrtime.bigint();
    for (let i = 0; i < BATCHES; i++) way(lenBytes);
    const took = Number(process.hrtime.bigint() - started);
    heapBytes = Math.min(heapBytes, (allocated() - before) / (BATCHES * FRAMES));
    times.push(took / (BATCHES * FRAMES));
  }
  times.sort((a, b) => a - b);
  return { ns: times[ROUNDS >> 1]!, heapBytes };
}

function verify(lenBytes: number): void {
  const last = to + (FRAMES - 1) * STRIDE;
  const source = from + (FRAMES - 1) * STRIDE;
  const copied = Buffer.from(bytes.buffer, last, lenBytes);
  assert.ok(copied.equals(Buffer.from(bytes.buffer, source, lenBytes)));
  assert.equal(bytes[last + lenBytes], 0);
  Buffer.from(bytes.buffer, to, FRAMES * STRIDE - 8).fill(0);
}

function main(): void {
  for (let i = 0; i < FRAMES * STRIDE; i++) bytes[memory.offset + i] = (i * 7 + 1) & 0xff;
  const ways = {
    copySmall: bySmall,
    loop: byBigUint64Loop,
    CopyPlan: byPlan,
    copyWithin: byCopyWithin,
  };
  console.log('bytes   copySmall        loop    CopyPlan  copyWithin   (ns, heap bytes; per copy)');
  for (const lenBytes of [12, 60, 64, 76, 128, 256, 512, 1488]) {
    const cells = Object.values(ways).map((way) => {
      const { ns, heapBytes } = measure(way, lenBytes);
      verify(lenBytes);
      assert.ok(!(heapBytes >= 8), 'a copy allocates'); // the counter is coarse: about one byte
      return `${ns.toFixed(1)} ${Math.floor(heapBytes)}`.padStart(12);
    });
    console.log(String(lenBytes).padStart(5) + cells.join(''));
  }
  memory.close();
}

main();
