/**
 * The data-plane half of the MAC table: open addressing with linear probing in one Int32Array over
 * shared memory. See mac-table.ts for the theory of operation.
 */

import { lockTicket, unlockTicket } from '../sys/ticket-lock.hot.ts';

// Words of a slot. A slot whose key was never used ends every probe; a slot with a key but
// without a port is vacant and may be used again.
const SLOT_WORDS = 4;
const KEY_LO = 0; // the address's last four bytes
const KEY_HI = 1; // its first two bytes, and the VLAN in bits 16-27; 0: never used
const PORT = 2; //   port index plus one; 0: vacant
const SEEN = 3; //   seconds, the table's clock

// Longest probe. With half of the slots in use a lookup needs 1.5; a table that a hostile guest
// filled costs at most this many, and what finds no slot within reach is not learned.
const MAX_PROBE = 16;

// Words of the table's head; the same numbers are in mac-table.ts.
const HEAD_MASK = 1;
const HEAD_CAPACITY = 2;
const HEAD_ENTRIES = 3;
const HEAD_SEED_A = 4;
const HEAD_SEED_B = 5;
const HEAD_AGEING = 6;
const HEAD_NOW = 7;
const HEAD_CURSOR = 8;
const HEAD_SHARED = 9; // 1: several threads learn
const HEAD_LOCK = 10; //  two words

export const LEARN_REFRESHED = 0; // known, on this port
export const LEARN_ADDED = 1;
export const LEARN_MOVED = 2; //     known on another port until now
export const LEARN_LIMIT = 3; //     not learned: the port is at its limit
export const LEARN_OVERFLOW = 4; //  not learned: table full, or no free slot in reach

/** First slot of a key's probe. The seeds are secret: a guest cannot choose who collides. */
function homeSlot(head: Int32Array, lo: number, hi: number): number {
  let hash = Math.imul(lo ^ head[HEAD_SEED_A], 0x9e3779b1);
  hash ^= hash >>> 15;
  hash = Math.imul(hash ^ hi ^ head[HEAD_SEED_B], 0x85ebca6b);
  hash ^= hash >>> 13;
  return hash & head[HEAD_MASK];
}

/**
 * Reads the first slots of the addresses of frames [0 .. count) in VLAN `vid`, and nothing else:
 * the misses of a batch in a table that is larger than the cache overlap here, and in lookups one
 * after the other they do not (100 000 addresses: 180 ns per frame, and 118 with this). `view` and
 * `words` are of the frames' headers. Returns what the caller must keep, or V8 skips the reads.
 */
export function fetchMacs(
  cells: Int32Array,
  head: Int32Array,
  view: DataView,
  words: Int32Array,
  headerAt: Int32Array,
  count: number,
  vid: number,
): number {
  const mask = head[HEAD_MASK];
  const seedA = head[HEAD_SEED_A];
  const seedB = head[HEAD_SEED_B] ^ (vid << 16);
  const first = headerAt[0] >> 2;
  let last = headerAt[count - 1] >> 2;
  // One flow from end to end, most likely: its slots are in the cache after the first frame.
  if (words[first] === words[last] && words[first + 2] === words[last + 2]) return 0;
  let sum = 0;
  last = -1;
  for (let i = 0; i < count; i++) {
    const at = headerAt[i];
    const word = at >> 2;
    if (last >= 0 && words[word] === words[last] && words[word + 2] === words[last + 2]) continue;
    last = word;
    let target = Math.imul(view.getInt32(at + 2) ^ seedA, 0x9e3779b1); // as homeSlot, for both
    let source = Math.imul(view.getInt32(at + 8) ^ seedA, 0x9e3779b1);
    target ^= target >>> 15;
    source ^= source >>> 15;
    target = Math.imul(target ^ view.getUint16(at) ^ seedB, 0x85ebca6b);
    source = Math.imul(source ^ view.getUint16(at + 6) ^ seedB, 0x85ebca6b);
    sum ^= cells[((target ^ (target >>> 13)) & mask) * SLOT_WORDS];
    sum ^= cells[((source ^ (source >>> 13)) & mask) * SLOT_WORDS];
  }
  return sum;
}

/** Word index of the key's slot, or -1. */
export function findMac(cells: Int32Array, head: Int32Array, lo: number, hi: number): number {
  const mask = head[HEAD_MASK];
  let slot = homeSlot(head, lo, hi);
  for (let probe = 0; probe < MAX_PROBE; probe++) {
    const at = slot * SLOT_WORDS;
    const slotHi = cells[at + KEY_HI];
    if (slotHi === hi && cells[at + KEY_LO] === lo && cells[at + PORT] !== 0) return at;
    if (slotHi === 0) return -1;
    slot = (slot + 1) & mask;
  }
  return -1;
}

/** Port index behind an address in a VLAN, or -1: unknown, or not seen for the ageing time. */
export function lookupMac(cells: Int32Array, head: Int32Array, lo: number, hi: number): number {
  const at = findMac(cells, head, lo, hi);
  if (at < 0) return -1;
  if (head[HEAD_NOW] - cells[at + SEEN] > head[HEAD_AGEING]) return -1;
  const owner = cells[at + PORT];
  if (head[HEAD_SHARED] !== 0 && !isStill(cells, at, lo, hi, owner)) return -1;
  return owner - 1;
}

/**
 * Was the slot the key's when its port was read? Another thread may have given it to another key
 * meanwhile: that takes the port out first and puts it in last (`learnNew`).
 */
function isStill(cells: Int32Array, at: number, lo: number, hi: number, owner: number): boolean {
  return (
    Atomics.load(cells, at + PORT) === owner &&
    Atomics.load(cells, at + KEY_LO) === lo &&
    Atomics.load(cells, at + KEY_HI) === hi &&
    Atomics.load(cells, at + PORT) === owner
  );
}

/**
 * Notes that frames of an address come from `port`, which may have at most `limit` of them.
 * Returns a LEARN_* code. `learned` counts the entries of each port.
 */
export function learnMac(
  cells: Int32Array,
  head: Int32Array,
  learned: Int32Array,
  lo: number,
  hi: number,
  port: number,
  limit: number,
): number {
  const at = findMac(cells, head, lo, hi);
  if (at >= 0 && cells[at + PORT] - 1 === port) {
    // Nearly always. A slot that another thread gives away just now has a new owner, too.
    if (cells[at + SEEN] !== head[HEAD_NOW]) cells[at + SEEN] = head[HEAD_NOW];
    return LEARN_REFRESHED;
  }
  if (learned[port] >= limit) return LEARN_LIMIT; // no lock for a guest that makes up addresses
  lockTicket(head, HEAD_LOCK);
  const outcome = learnNew(cells, head, learned, lo, hi, port, limit);
  unlockTicket(head, HEAD_LOCK);
  return outcome;
}

/** The address is not known on the port, or was not before the lock was ours. */
function learnNew(
  cells: Int32Array,
  head: Int32Array,
  learned: Int32Array,
  lo: number,
  hi: number,
  port: number,
  limit: number,
): number {
  const now = head[HEAD_NOW];
  const at = findMac(cells, head, lo, hi);
  const owner = at < 0 ? -1 : cells[at + PORT] - 1;
  if (owner === port) return LEARN_REFRESHED;
  if (learned[port] >= limit) return LEARN_LIMIT;
  if (at >= 0) {
    learned[owner]--;
    learned[port]++;
    cells[at + SEEN] = now;
    Atomics.store(cells, at + PORT, port + 1);
    return LEARN_MOVED;
  }
  const free = freeSlot(cells, head, learned, lo, hi);
  if (free < 0) return LEARN_OVERFLOW;
  // The port is written last: a reader of another thread sees no half-written entry.
  cells[free + KEY_LO] = lo;
  cells[free + KEY_HI] = hi;
  cells[free + SEEN] = now;
  Atomics.store(cells, free + PORT, port + 1);
  learned[port]++;
  head[HEAD_ENTRIES]++;
  return LEARN_ADDED;
}

/** Word index of a slot that a new key may take, or -1. Entries that aged out give way. */
function freeSlot(
  cells: Int32Array,
  head: Int32Array,
  learned: Int32Array,
  lo: number,
  hi: number,
): number {
  const mask = head[HEAD_MASK];
  const full = head[HEAD_ENTRIES] >= head[HEAD_CAPACITY];
  let slot = homeSlot(head, lo, hi);
  for (let probe = 0; probe < MAX_PROBE; probe++) {
    const at = slot * SLOT_WORDS;
    if (cells[at + PORT] === 0) {
      if (!full) return at;
      if (cells[at + KEY_HI] === 0) return -1;
    } else if (head[HEAD_NOW] - cells[at + SEEN] > head[HEAD_AGEING]) {
      vacate(cells, head, learned, at);
      return at;
    }
    slot = (slot + 1) & mask;
  }
  return -1;
}

/** Takes the entry out; its key stays, so that probes go on past it. */
function vacate(cells: Int32Array, head: Int32Array, learned: Int32Array, at: number): void {
  learned[cells[at + PORT] - 1]--;
  head[HEAD_ENTRIES]--;
  Atomics.store(cells, at + PORT, 0);
}

/**
 * Removes the entry at word index `at`. Where the next slot was never used, no probe needs to pass
 * this one: it and the vacant ones before it become "never used" again, so that lookups stay short.
 */
export function removeMac(
  cells: Int32Array,
  head: Int32Array,
  learned: Int32Array,
  at: number,
): void {
  vacate(cells, head, learned, at);
  const mask = head[HEAD_MASK];
  let slot = at / SLOT_WORDS;
  if (cells[((slot + 1) & mask) * SLOT_WORDS + KEY_HI] !== 0) return;
  for (let probe = 0; probe < MAX_PROBE; probe++) {
    const vacant = slot * SLOT_WORDS;
    if (cells[vacant + PORT] !== 0 || cells[vacant + KEY_HI] === 0) return;
    cells[vacant + KEY_LO] = 0;
    cells[vacant + KEY_HI] = 0;
    slot = (slot - 1) & mask;
  }
}

/** Looks at the next `slots` slots and removes what aged out. Returns how many entries that was. */
export function sweepMacs(
  cells: Int32Array,
  head: Int32Array,
  learned: Int32Array,
  slots: number,
): number {
  const mask = head[HEAD_MASK];
  const now = head[HEAD_NOW];
  const ageing = head[HEAD_AGEING];
  let removed = 0;
  lockTicket(head, HEAD_LOCK);
  let cursor = head[HEAD_CURSOR];
  for (let i = 0; i < slots; i++) {
    const at = cursor * SLOT_WORDS;
    if (cells[at + PORT] !== 0 && now - cells[at + SEEN] > ageing) {
      removeMac(cells, head, learned, at);
      removed++;
    }
    cursor = (cursor + 1) & mask;
  }
  head[HEAD_CURSOR] = cursor;
  unlockTicket(head, HEAD_LOCK);
  return removed;
}

/** Removes the entries of a port, or of all: -1. Returns how many those were. */
export function flushMacs(
  cells: Int32Array,
  head: Int32Array,
  learned: Int32Array,
  port: number,
): number {
  lockTicket(head, HEAD_LOCK);
  let left = port < 0 ? head[HEAD_ENTRIES] : learned[port];
  const before = left;
  const words = (head[HEAD_MASK] + 1) * SLOT_WORDS;
  for (let at = 0; at < words && left > 0; at += SLOT_WORDS) {
    const owner = cells[at + PORT] - 1;
    if (owner < 0 || (port >= 0 && owner !== port)) continue;
    removeMac(cells, head, learned, at);
    left--;
  }
  if (port < 0) {
    cells.fill(0);
    head[HEAD_CURSOR] = 0;
  }
  unlockTicket(head, HEAD_LOCK);
  return before - left;
}

/**
 * Copies the live entries of a port, or of all: -1, to `words`: the key, the port and the age of
 * each. Any thread. Returns how many words that are, at most as many as there is room for.
 */
export function copyMacs(
  cells: Int32Array,
  head: Int32Array,
  words: Int32Array,
  port: number,
): number {
  const end = (head[HEAD_MASK] + 1) * SLOT_WORDS;
  const now = head[HEAD_NOW];
  const ageing = head[HEAD_AGEING];
  let count = 0;
  for (let at = 0; at < end && count < words.length; at += SLOT_WORDS) {
    if (cells[at + PORT] === 0) continue; // most are: the ordered read is for the others
    const owner = Atomics.load(cells, at + PORT) - 1;
    const age = now - cells[at + SEEN];
    if (owner < 0 || age > ageing || (port >= 0 && owner !== port)) continue;
    words[count] = cells[at + KEY_LO];
    words[count + 1] = cells[at + KEY_HI];
    words[count + 2] = owner;
    words[count + 3] = age < 0 ? 0 : age;
    count += SLOT_WORDS;
  }
  return count;
}
