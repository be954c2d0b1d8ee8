/** Drivers that break the rules and front-ends that write to the region while it is in use. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as layout from '../wire/inflight.ts';
import { ChainBatch, clearBatch, keepChain } from './chain-batch.ts';
import { hasAvailable, putUsed, takeChains, untakeChains } from './device.hot.ts';
import { QueuePair, queuePairBytes } from './driver/queue-pair.ts';
import { FAULT_BUFFER_ID } from './faults.ts';

const AVAIL = 0x80;
const USED = 0x8000;

/** A ring over a region, with descriptors written by hand. */
class Ring {
  readonly pair: QueuePair;
  readonly region: DataView;
  readonly #view: DataView;
  readonly #held: ChainBatch[] = [];
  #slot = 0;
  #wrap = 1;

  constructor(size: number, packed: boolean) {
    const bytes = queuePairBytes({ size, packed, dataBytes: 65536 });
    const sizeBytes = layout.inflightQueueBytes(size, packed);
    const offset = 4096 + Math.ceil(bytes / 64) * 64;
    this.pair = new QueuePair({
      size,
      packed,
      dataBytes: 65536,
      memory: { buffer: new ArrayBuffer(offset + sizeBytes), offset: 4096 },
      extras: { inflight: { offset, sizeBytes } },
    });
    this.region = new DataView(this.pair.buffer, offset, sizeBytes);
    this.#view = new DataView(this.pair.buffer);
  }

  /** Packed: a chain, whoever has its id already. */
  offer(id: number, slots: number): void {
    const { config, dataGpa } = this.pair;
    for (let n = 1; n <= slots; n++) {
      const at = config.descOffset + 16 * this.#slot;
      this.#view.setBigUint64(at, BigInt(dataGpa), true);
      this.#view.setUint32(at + 8, 32, true);
      this.#view.setUint16(at + 12, id, true);
      this.#view.setUint16(at + 14, (this.#wrap === 1 ? AVAIL : USED) | (n < slots ? 1 : 0), true);
      if (++this.#slot < config.size) continue;
      this.#slot = 0;
      this.#wrap ^= 1;
    }
  }

  /** Split: a chain of one descriptor. */
  offerSplit(head: number): void {
    const { config, dataGpa } = this.pair;
    const at = config.descOffset + 16 * head;
    this.#view.setBigUint64(at, BigInt(dataGpa), true);
    this.#view.setUint32(at + 8, 32, true);
    const idx = this.#view.getUint16(config.availOffset + 2, true);
    const slot = config.availOffset + 4 + 2 * (idx % config.size);
    this.#view.setUint16(slot, head, true);
    this.#view.setUint16(config.availOffset + 2, idx + 1, true);
  }

  /** Takes chains and keeps them; what `takeChains` said. */
  take(max = 4, givenBack = 0): number {
    const batch = new ChainBatch(max);
    const taken = takeChains(this.pair.device, batch, max);
    if (taken < 0) return taken;
    untakeChains(this.pair.device, batch, Math.max(0, taken - givenBack));
    for (let i = 0; i < batch.count; i++) {
      const kept = new ChainBatch(1, 256);
      assert(keepChain(batch, i, kept));
      this.#held.push(kept);
    }
    return taken;
  }

  /** Finishes the chain at `place` of those that are held. */
  finish(place: number): void {
    const [chain] = this.#held.splice(place, 1);
    if (chain !== undefined) putUsed(this.pair.device, chain, 0, 1);
  }

  get held(): number {
    return this.#held.length;
  }

  restart(): void {
    const { config } = this.pair;
    const used = this.#view.getUint16(config.usedOffset + 2, true);
    for (const chain of this.#held.splice(0)) clearBatch(chain);
    this.pair.restart(config.packed ? 0x8000_8000 : used);
  }
}

test('packed: a buffer id that is out already breaks the queue, and nothing else', () => {
  for (const size of [7, 8]) {
    const ring = new Ring(size, true);
    ring.offer(0, 3);
    assert.equal(ring.take(), 1);
    ring.offer(0, 1);
    assert.equal(ring.take(), FAULT_BUFFER_ID);
    ring.finish(0);
    for (let id = 1; id < size; id++) ring.offer(id, 1);
    assert.equal(ring.take(8), FAULT_BUFFER_ID, 'until it is set up again');
  }
});

test('packed: an id may be used again as soon as it came back', () => {
  const ring = new Ring(7, true);
  for (let n = 0; n < 40; n++) {
    ring.offer(3, 1 + (n % 7));
    assert.equal(ring.take(4, n % 2), 1, `chain ${n}`);
    if (n % 2 === 1) assert.equal(ring.take(), 1, 'given back, taken again');
    ring.finish(0);
  }
});

test('packed: the region of a successor is judged once', () => {
  const ring = new Ring(7, true);
  ring.offer(0, 3);
  ring.offer(1, 1);
  assert.equal(ring.take(), 2);
  ring.restart();
  // Now the front-end says that the first chain has no descriptor, and another's id.
  ring.region.setUint16(32 + layout.INFLIGHT_PACKED_NUM, 0, true);
  ring.region.setUint16(32 + 32 * 2 + layout.INFLIGHT_PACKED_ID, 1, true);
  assert.equal(ring.take(), 2);
  ring.finish(0);
  ring.finish(0);
  assert.equal(ring.pair.device.inflight.freeCount, 7);
  for (let id = 0; id < 7; id++) ring.offer(id, 1);
  assert.equal(ring.take(8), 7);
});

test('packed: chains that share an entry or an id are refused', () => {
  const two = (): Ring => {
    const ring = new Ring(8, true);
    ring.offer(0, 2);
    ring.offer(1, 1);
    assert.equal(ring.take(), 2);
    return ring;
  };
  const refused = (spoil: (region: DataView) => void, message: RegExp): void => {
    const ring = two();
    spoil(ring.region);
    assert.throws(() => ring.restart(), { code: 'ERR_VRING_INFLIGHT', message });
  };
  const entry = (n: number): number => 32 + 32 * n;
  const { INFLIGHT_PACKED_LAST: LAST, INFLIGHT_PACKED_NEXT: NEXT } = layout;
  refused((r) => r.setUint16(entry(2) + layout.INFLIGHT_PACKED_ID, 0, true), /have buffer id 0/);
  refused((r) => {
    r.setUint16(entry(0) + NEXT, 2, true);
    r.setUint16(entry(0) + LAST, 2, true);
  }, /shares 2/);
  refused((r) => {
    r.setUint16(entry(0) + NEXT, 5, true); // a free one
    r.setUint16(entry(0) + LAST, 5, true);
  }, /shares 5/);
  two().restart();
});

for (const packed of [false, true]) {
  test(`${packed ? 'packed' : 'split'}: any number of chains is taken again`, () => {
    const size = 2048; // more descriptors than one batch may visit
    const ring = new Ring(size, packed);
    for (let id = 0; id < size; id++) if (packed) ring.offer(id, 1);
    for (let head = 0; head < size; head++) if (!packed) ring.offerSplit(head);
    for (const round of ['taken', 'taken again']) {
      while (hasAvailable(ring.pair.device)) assert(ring.take(64) > 0, round);
      assert.equal(ring.held, size, round);
      if (round === 'taken') ring.restart();
    }
  });

  test(`${packed ? 'packed' : 'split'}: a region that changes under a device ends in nothing worse than a fault`, () => {
    let state = 1;
    const pick = (below: number): number => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return Math.trunc((state / 2 ** 32) * below);
    };
    const outcomes = { refused: 0, broken: 0, taken: 0 };
    for (let n = 0; n < 1500; n++) {
      const ring = new Ring(packed ? 7 : 8, packed);
      const { region } = ring;
      for (let step = 0; step < 60; step++) {
        const what = pick(10);
        if (what < 3 && packed) ring.offer(pick(7), 1 + pick(3));
        else if (what < 3) ring.offerSplit(pick(8));
        else if (what < 6) {
          const taken = ring.take(1 + pick(4), pick(2));
          if (taken < 0) outcomes.broken++;
          else outcomes.taken += taken;
        } else if (what < 8) ring.finish(pick(ring.held));
        else if (what === 8) region.setUint16(2 * pick(region.byteLength / 2), pick(9), true);
        else {
          try {
            ring.restart();
          } catch (error) {
            assert.equal((error as { code?: string }).code, 'ERR_VRING_INFLIGHT');
            outcomes.refused++;
            break;
          }
        }
      }
    }
    for (const [outcome, count] of Object.entries(outcomes))
      assert(count > 5, `${count} ${outcome}`);
  });
}
