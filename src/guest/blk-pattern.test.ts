import assert from 'node:assert/strict';
import { test } from 'node:test';
import { seededRandom } from './blk-chooser.ts';
import {
  UNIT_FOREIGN,
  UNIT_GOOD,
  UNIT_MISPLACED,
  UNIT_TORN,
  UNIT_ZERO,
  checkUnit,
  fillUnit,
} from './blk-pattern.hot.ts';
import { LatencyHistogram } from './latency-histogram.ts';
import { recordLatency } from './latency.hot.ts';

const WORDS = 1024;
const RUN = 0x1234;
const found = new Int32Array(4);

function unit(number: number, generation: number): Int32Array {
  const words = new Int32Array(WORDS);
  fillUnit(words, 0, WORDS, number, generation, RUN);
  return words;
}

const check = (words: Int32Array, number: number): number =>
  checkUnit(words, 0, words.length, number, RUN, found);

test('a unit says what it is', () => {
  assert.equal(check(unit(5, 9), 5), UNIT_GOOD);
  assert.deepEqual([...found], [UNIT_GOOD, 9, 5, 0]);
  assert.equal(check(unit(5, 9), 6), UNIT_MISPLACED);
  assert.equal(found[2], 5);
  assert.equal(check(new Int32Array(WORDS), 5), UNIT_ZERO);
  assert.equal(check(new Int32Array(WORDS).fill(7), 5), UNIT_FOREIGN);
  const other = new Int32Array(WORDS);
  fillUnit(other, 0, WORDS, 5, 9, RUN + 1);
  assert.equal(check(other, 5), UNIT_FOREIGN, 'of another run');
});

test('a change of any word is seen', () => {
  for (let word = 0; word < WORDS; word++) {
    const words = unit(5, 9);
    words[word]! ^= 1 << (word % 32);
    assert.notEqual(check(words, 5), UNIT_GOOD, `word ${word}`);
  }
});

test('at whichever sector a unit changes, it is torn', () => {
  for (let sector = 1; sector < 8; sector++) {
    const words = unit(5, 9);
    words.set(unit(5, 10).subarray(sector * 128), sector * 128);
    assert.equal(check(words, 5), UNIT_TORN);
    assert.equal(found[3], 512 * sector);
    const cut = unit(5, 9).fill(0, sector * 128);
    assert.equal(check(cut, 5), UNIT_TORN, 'the rest was never written');
  }
});

test('percentiles are right to within 4 %', () => {
  const histogram = new LatencyHistogram();
  assert.equal(histogram.summary(), null);
  const random = seededRandom(3);
  const all: number[] = [];
  for (let i = 0; i < 20_000; i++) {
    const ms = 0.005 * Math.exp(10 * random());
    all.push(ms * 1000);
    recordLatency(histogram, ms);
  }
  all.sort((a, b) => a - b);
  const { count, p50Us, p99Us, p999Us, minUs, maxUs } = histogram.summary()!;
  assert.equal(count, all.length);
  assert.deepEqual([minUs, maxUs], [all[0], all.at(-1)]);
  for (const [got, share] of [
    [p50Us, 0.5],
    [p99Us, 0.99],
    [p999Us, 0.999],
  ] as const) {
    const right = all[Math.ceil(share * all.length) - 1]!;
    assert.ok(Math.abs(got / right - 1) < 0.04, `${share}: ${got}, right is ${right}`);
  }
  const double = new LatencyHistogram();
  double.add(histogram);
  double.add(histogram);
  assert.equal(double.summary()!.p99Us, p99Us);
  assert.equal(double.count, 40_000);
});

test('times beyond all buckets are counted, too', () => {
  const histogram = new LatencyHistogram();
  for (const ms of [0, 1e-9, 1e9, -1]) recordLatency(histogram, ms);
  assert.equal(histogram.summary()!.count, 4);
  assert.equal(histogram.summary()!.maxUs, 1e12);
});

test('seeded numbers fill the range evenly', () => {
  const random = seededRandom(1);
  const counts = new Uint32Array(16);
  for (let i = 0; i < 16_000; i++) counts[Math.floor(random() * 16)]!++;
  for (const count of counts) assert.ok(count > 850 && count < 1150, `${count} of 1000`);
});
