/**
 * Where a device goes on in a packed ring whose last device died without a word. A front-end that
 * asked a dead back-end for its position knows none of a packed ring, there is no index in memory;
 * QEMU 7.2 then says again what it said before: the position of a fresh ring.
 *
 * But the ring itself knows. Virtio 1.2, 2.8.1: a driver that makes a slot available leaves its
 * USED bit as the last lap had it, a device that uses the slot makes it equal to its wrap counter.
 * So where every chain takes one slot, the USED bits change from one value to the other at the
 * device's position, and nowhere else. Chains of more slots leave some bits behind; whatever the
 * pattern does not prove wrong is left as the front-end says.
 *
 * Only for devices that use chains in the order of the ring.
 */
import { logRing } from './dirty-log.hot.ts';
import { decodePackedBase, encodePackedBase, ringBase, type DeviceQueue } from './device-queue.ts';

const WRITE = 1 << 17; // last word of a descriptor: id | flags << 16
const NEXT = 1 << 16;
const AVAIL_BIT = 1 << 23;
const USED_BIT = 1 << 31;

/** Entries of one `putUsed` are published by its first: at most so many lie behind it. */
const MAX_BATCH = 256;

/** Of the USED bits along a ring with one hole: its own two, and the position. */
const MAX_CHANGES = 3;

type Position = { readonly slot: number; readonly wrap: number; readonly hole: number };

/**
 * Moves a queue that was just made to where its predecessor died. Not with IN_ORDER, where one used
 * descriptor may stand for many.
 */
export function resumePacked(q: DeviceQueue): void {
  if (q.packed === 0 || q.inOrder !== 0) return;
  const base = ringBase(q);
  const found = decodePackedBase(recoverPackedBase(q.desc, q.size, base));
  q.nextAvail = found.avail;
  q.availWrap = found.availWrap;
  q.nextUsed = found.used;
  q.usedWrap = found.usedWrap;
  if (q.logged !== 0) logRing(q); // a descriptor was perhaps published
}

/**
 * `base`, or the position that the ring proves where it proves `base` stale. A batch that was
 * written but not published is published then.
 */
export function recoverPackedBase(desc: Int32Array, size: number, base: number): number {
  const { avail, availWrap } = decodePackedBase(base);
  if (avail >= size || isPlausible(desc, size, avail, availWrap)) return base;
  const found = findPosition(desc, size);
  if (found === null) return base;
  const { slot, wrap, hole } = found;
  if (hole >= 0) publish(desc, hole);
  return encodePackedBase(slot, wrap, slot, wrap);
}

const usedBit = (desc: Int32Array, slot: number): number => desc[4 * slot + 3]! >>> 31;
const availBit = (desc: Int32Array, slot: number): number =>
  (desc[4 * slot + 3]! & AVAIL_BIT) === 0 ? 0 : 1;

/** Can a device be at `at`: nothing behind it used in this lap, and before it a used chain? */
function isPlausible(desc: Int32Array, size: number, at: number, wrap: number): boolean {
  for (let slot = at; slot < size; slot++) if (usedBit(desc, slot) === wrap) return false;
  // The slots of a chain behind its first stay as the driver wrote them, all but the last NEXT.
  for (let slot = at - 1; slot >= 0; slot--) {
    if (usedBit(desc, slot) === wrap) return true;
    const word = desc[4 * slot + 3]!;
    const continues = (word & NEXT) !== 0;
    if (availBit(desc, slot) !== wrap || continues === (slot === at - 1)) return false;
  }
  return at === 0;
}

/** The only place where the USED bits change, but for one unpublished slot. Null: not the only. */
function findPosition(desc: Int32Array, size: number): Position | null {
  const plain = boundary(desc, size, -1);
  if (plain !== null) return plain;
  let best: Position | null = null;
  let bestBehind = MAX_BATCH;
  for (const hole of holes(desc, size)) {
    if (usedBit(desc, hole) === availBit(desc, hole)) continue; // not available: no hole
    const found = boundary(desc, size, hole);
    if (found === null) continue;
    // Two holes may explain a ring; the shorter batch is the likelier.
    const behind = (found.slot - hole + size) % size;
    if (behind < bestBehind) [best, bestBehind] = [found, behind];
  }
  return best;
}

/**
 * Slots that may be the one hole: at a change, because the opposite of a bit that equals both its
 * neighbours only adds changes, and removes two at most. To try each slot of a ring that a driver
 * wrote for it took a second (32768 slots), in which the worker serves nobody.
 */
function holes(desc: Int32Array, size: number): readonly number[] {
  const found: number[] = [];
  let changes = 0;
  for (let slot = 1; slot < size && changes <= MAX_CHANGES; slot++) {
    if (usedBit(desc, slot) === usedBit(desc, slot - 1)) continue;
    changes++;
    if (found.at(-1) !== slot - 1) found.push(slot - 1);
    found.push(slot);
  }
  return changes > MAX_CHANGES ? [] : found;
}

/** The position, with the bit of slot `hole` taken for its opposite; null with several changes. */
function boundary(desc: Int32Array, size: number, hole: number): Position | null {
  const bit = (slot: number): number => usedBit(desc, slot) ^ (slot === hole ? 1 : 0);
  const first = bit(0);
  let slot = 1;
  while (slot < size && bit(slot) === first) slot++;
  for (let rest = slot; rest < size; rest++) if (bit(rest) === first) return null;
  // All alike: that lap is complete, and the next has the other counter.
  if (slot === size) return { slot: 0, wrap: first ^ 1, hole };
  return { slot, wrap: first, hole };
}

/** Its length was written before the entries behind it, its id is that of the buffer. */
function publish(desc: Int32Array, slot: number): void {
  const at = 4 * slot + 3;
  const word = desc[at]!;
  const state = (word & AVAIL_BIT) === 0 ? 0 : AVAIL_BIT | USED_BIT;
  Atomics.store(desc, at, (word & 0xffff) | (word & WRITE) | state);
}
