import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BATCH } from '../../base/limits.ts';
import {
  FRAME_BATCH_BYTES,
  FrameBatch,
  HEADER_SLOT_BYTES,
  HEADER_SLOT_START,
} from '../../switch/frame-batch.ts';
import { PARKED_FRAMES_BYTES, ParkedFrames } from './parked-frames.ts';

const SOURCE_AT = PARKED_FRAMES_BYTES;
const DATA_AT = SOURCE_AT + FRAME_BATCH_BYTES;
const DATA_BYTES = 2 ** 20;

/** A batch of frames: 64 bytes of header, the rest in two segments. */
function fixture(lengths: readonly number[]) {
  const buffer = new ArrayBuffer(DATA_AT + DATA_BYTES);
  const parked = new ParkedFrames(buffer, 0);
  const source = new FrameBatch({ buffer, at: SOURCE_AT });
  const bytes = new Uint8Array(buffer);
  let at = DATA_AT;
  for (const [i, length] of lengths.entries()) {
    source.headerAt[i] = i * HEADER_SLOT_BYTES + HEADER_SLOT_START - (i % 2) * 4;
    source.headerLen[i] = Math.min(length, 64);
    source.headers.fill(i + 1, source.headerAt[i], source.headerAt[i]! + 64);
    source.frameLen[i] = length;
    source.gsoSize[i] = 1000 + i;
    source.vlan[i] = i;
    source.segFirst[i] = source.segments;
    const rest = length - source.headerLen[i]!;
    for (const part of [rest >> 1, rest - (rest >> 1)]) {
      if (part === 0) continue;
      bytes.fill(100 + i, at, at + part);
      source.segOffset[source.segments] = at;
      source.segLen[source.segments++] = part;
      at += part;
    }
    source.segCount[i] = source.segments - source.segFirst[i]!;
  }
  source.count = lengths.length;
  return { buffer, bytes, parked, source, all: Int32Array.from(lengths.keys()) };
}

test('frames wait as they were, whatever happens to their source', () => {
  const { bytes, parked, source, all } = fixture([60, 1500, 64, 9000]);
  assert.equal(parked.add(source, all, 1, 4, 0), 3);
  bytes.fill(0, SOURCE_AT);
  const { batch } = parked;
  assert.deepEqual([...parked.list.subarray(0, parked.count)], [0, 1, 2]);
  for (const [k, [i, length]] of [
    [1, 1500] as const,
    [2, 64] as const,
    [3, 9000] as const,
  ].entries()) {
    assert.equal(batch.frameLen[k], length);
    assert.equal(batch.gsoSize[k], 1000 + i);
    assert.equal(batch.vlan[k], i);
    assert.equal(batch.headerAt[k]! % 4, 0);
    const header = batch.headers.subarray(batch.headerAt[k], batch.headerAt[k]! + 64);
    assert.ok(header.every((byte) => byte === i + 1));
    assert.equal(batch.segCount[k], length > 64 ? 1 : 0);
    if (length <= 64) continue;
    const segment = batch.segFirst[k]!;
    assert.equal(batch.segLen[segment], length - 64);
    const start = batch.segOffset[segment]!;
    assert.ok(bytes.subarray(start, start + length - 64).every((byte) => byte === 100 + i));
  }
});

test('as many as there is room for, the first ones; then again when they have gone', () => {
  const { parked, source, all } = fixture(Array.from({ length: BATCH }, () => 16_000));
  const room = parked.add(source, all, 0, BATCH, 0);
  assert.ok(room > 30 && room < BATCH, `${room} frames of 16000 bytes`);
  assert.equal(parked.add(source, all, 0, 1, 0), 0);
  assert.equal(parked.clear(), room);
  const small = fixture(Array.from({ length: BATCH }, () => 60));
  assert.equal(small.parked.add(small.source, small.all, 0, BATCH, 0), BATCH);
  assert.equal(small.parked.add(small.source, small.all, 0, 1, 0), 0);
});

test('some may go on waiting, but none for long', () => {
  const { parked, source, all } = fixture([60, 61, 62]);
  parked.add(source, all, 0, 3, 1000);
  const list = parked.list.slice(0, parked.count);
  parked.count = 0;
  parked.keep(list, 1, 3);
  assert.deepEqual([...parked.list.subarray(0, parked.count)], [1, 2]);
  assert.equal(parked.isTooOld(1400), false);
  assert.equal(parked.isTooOld(1600), true);
});
