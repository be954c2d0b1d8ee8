import assert from 'node:assert/strict';
import { test } from 'node:test';
import { encodePackedBase } from './device-queue.ts';
import { recoverPackedBase } from './recover-packed.ts';

const AVAIL = 1 << 23;
const USED = 1 << 31;
const NEXT = 1 << 16;
const WRITE = 1 << 17;
const FRESH = encodePackedBase(0, 1, 0, 1);

/** A packed ring and the two who move along it. Chains may have more than one slot. */
class Ring {
  readonly desc: Int32Array;
  driver = { slot: 0, wrap: 1 };
  device = { slot: 0, wrap: 1 };
  readonly size: number;
  readonly chains: number[] = []; // slots of those that are available
  free: number;

  constructor(size: number) {
    this.size = size;
    this.free = size;
    this.desc = new Int32Array(4 * size);
  }

  offer(slots = 1, flags = 0): void {
    assert(this.free >= slots);
    for (let i = 0; i < slots; i++) {
      const { slot, wrap } = this.driver;
      const state = wrap === 1 ? AVAIL : USED;
      this.desc[4 * slot + 3] = slot | state | flags | (i < slots - 1 ? NEXT : 0);
      this.desc[4 * slot + 2] = 1500;
      this.driver = this.#next(this.driver);
    }
    this.free -= slots;
    this.chains.push(slots);
  }

  /** Uses `count` chains; with `dies` the first of them is not published. */
  use(count: number, dies = false): void {
    for (let i = 0; i < count; i++) {
      const { slot, wrap } = this.device;
      const state = wrap === 1 ? AVAIL | USED : 0;
      this.desc[4 * slot + 2] = 60 + i;
      if (i > 0 || !dies)
        this.desc[4 * slot + 3] = slot | state | (this.desc[4 * slot + 3]! & WRITE);
      const slots = this.chains.shift()!;
      this.free += slots;
      for (let s = 0; s < slots; s++) this.device = this.#next(this.device);
    }
  }

  get base(): number {
    const { slot, wrap } = this.device;
    return encodePackedBase(slot, wrap, slot, wrap);
  }

  recover(base: number): number {
    return recoverPackedBase(this.desc, this.size, base);
  }

  #next({ slot, wrap }: Ring['driver']): Ring['driver'] {
    return slot + 1 === this.size ? { slot: 0, wrap: wrap ^ 1 } : { slot: slot + 1, wrap };
  }
}

test('a ring that nobody used begins where a fresh one does', () => {
  const ring = new Ring(8);
  assert.equal(ring.recover(FRESH), FRESH);
  for (let i = 0; i < 8; i++) ring.offer();
  assert.equal(ring.recover(FRESH), FRESH);
});

test('every position of three laps is found, however full the ring is', () => {
  for (const inFlight of [1, 3, 8]) {
    const ring = new Ring(8);
    for (let i = 0; i < inFlight; i++) ring.offer();
    for (let step = 0; step < 24; step++) {
      const before = ring.desc.slice();
      assert.equal(ring.recover(FRESH), ring.base, `${inFlight} in flight, step ${step}`);
      assert.equal(ring.recover(ring.base), ring.base, 'what is right stays');
      assert.deepEqual(ring.desc, before, 'nothing is written');
      ring.use(1);
      assert.equal(ring.recover(FRESH), ring.base, 'also when all is used');
      ring.offer();
    }
  }
});

test('a stale position of the same lap or another is put right', () => {
  const ring = new Ring(16);
  for (let i = 0; i < 16; i++) ring.offer();
  const stale: number[] = [];
  for (let step = 0; step < 64; step++) {
    for (const base of stale) assert.equal(ring.recover(base), ring.base, `step ${step}`);
    if (step % 5 === 0) stale.push(ring.base);
    if (stale.length > 5) stale.shift();
    ring.use(1);
    ring.offer();
  }
});

test('a batch whose first entry was not published is published', () => {
  for (let at = 0; at < 32; at++) {
    for (const count of [2, 3, 5]) {
      const ring = new Ring(16);
      for (let i = 0; i < 12; i++) ring.offer(1, WRITE);
      for (let i = 0; i < at; i++) {
        ring.use(1);
        ring.offer(1, WRITE);
      }
      const { slot, wrap } = ring.device;
      ring.use(count, true);
      assert.equal(ring.recover(FRESH), ring.base, `${count} at ${at}`);
      const word = slot | WRITE | (wrap === 1 ? AVAIL | USED : 0);
      assert.equal(ring.desc[4 * slot + 3], word);
      assert.equal(ring.desc[4 * slot + 2], 60, 'with the length that was written');
    }
  }
});

test('chains of more slots: what the front-end says stays', () => {
  const ring = new Ring(16);
  const lengths = [3, 1, 2, 4, 1];
  for (let step = 0; step < 60; step++) {
    ring.offer(lengths[step % lengths.length]);
    assert.equal(ring.recover(ring.base), ring.base, `step ${step}`);
    ring.use(1);
    assert.equal(ring.recover(ring.base), ring.base, `step ${step}, used`);
  }
});

test('a ring that no device left is looked at a few times, however large it is', () => {
  const size = 32768;
  const desc = new Int32Array(4 * size);
  for (let slot = 0; slot < size; slot++) desc[4 * slot + 3] = AVAIL;
  for (const slot of [size - 2, size - 4]) desc[4 * slot + 3] = AVAIL | USED;
  let reads = 0;
  const counting = new Proxy(desc, { get: (target, key) => (reads++, target[Number(key)]) });
  assert.equal(recoverPackedBase(counting, size, 0x8005), 0x8005);
  assert(reads < 32 * size, `${reads} reads`);
});
