import { randomBytes } from 'node:crypto';
import { assert } from '../base/assert.ts';
import { ConfigError } from '../base/errors.ts';
import { MAX_PORTS } from '../base/limits.ts';
import { lockTicket, unlockTicket } from '../sys/ticket-lock.hot.ts';
import { formatMac, parseMac } from '../wire/ethernet.ts';
import {
  copyMacs,
  findMac,
  flushMacs,
  LEARN_ADDED,
  LEARN_MOVED,
  learnMac,
  lookupMac,
  removeMac,
  sweepMacs,
} from './mac-table.hot.ts';

/**
 * Which address was last seen behind which port, per VLAN.
 *
 * Theory of operation. The table lies in one SharedArrayBuffer: a head of 16 words, the number of
 * entries of each port, then the slots of four words (key, port, last seen). There are twice as
 * many slots as entries allowed; a key lies within MAX_PROBE slots of its home. Threads that run
 * the switch learn, any thread may read and list. What adds, moves or removes an entry holds the
 * lock in the head; a known address is refreshed and looked up without it: an entry's port is
 * stored last and cleared first, so a torn entry has no port, and with several threads that learn
 * a lookup looks at key and port once more. One table and not one per thread: an address that
 * moved is nowhere known at its old place, a port's limit is exact, and most frames change nothing.
 *
 * Time is the caller's: whole seconds, set by `tick`, which also sweeps a bounded number of slots.
 * What aged out is invisible at once, swept later, and gives way to new entries in between.
 */
const MAGIC = 0x6d616374; // "mact"
const HEAD_WORDS = 16;
const HEAD_MAGIC = 0;
// The same numbers are in mac-table.hot.ts.
const HEAD_MASK = 1;
const HEAD_CAPACITY = 2;
export const HEAD_ENTRIES = 3;
const HEAD_SEED_A = 4;
const HEAD_SEED_B = 5;
const HEAD_AGEING = 6;
const HEAD_NOW = 7;
const HEAD_SHARED = 9;
const HEAD_LOCK = 10;
const SLOT_WORDS = 4;

export const MAC_CAPACITY_DEFAULT = 16384;
export const MAC_CAPACITY_MAX = 131072;
export const MAC_AGEING_DEFAULT_S = 300;
const NEVER_AGES = 0x7fffffff;

/** A second sweeps this part of the table: 1024 slots of the default one. */
const SWEEP_PART = 1 / 32;
/** Slots at a time: 20 us where all are aged out. The largest table's 8192 took 180 us at once. */
const SWEEP_MOST = 1024;

export type MacTableOptions = {
  /** Most entries, 1 .. MAC_CAPACITY_MAX. */
  readonly capacity?: number;
  /** Entries not seen for longer are forgotten; 0: never. */
  readonly ageingSeconds?: number;
  /** Several threads learn. */
  readonly shared?: boolean;
};

export type MacTableEntry = {
  readonly mac: string;
  readonly vlan: number;
  /** Index of the port. */
  readonly port: number;
  readonly ageSeconds: number;
};

export class MacTable {
  /** Give this to another thread, and `MacTable.attach` there. */
  readonly memory: SharedArrayBuffer;
  readonly head: Int32Array<SharedArrayBuffer>;
  /** Entries of each port. */
  readonly learned: Int32Array<SharedArrayBuffer>;
  readonly cells: Int32Array<SharedArrayBuffer>;
  /** Slots that are still to be swept in this second. Of the writing thread. */
  due = 0;

  private constructor(memory: SharedArrayBuffer, slots: number) {
    this.memory = memory;
    this.head = new Int32Array(memory, 0, HEAD_WORDS);
    this.learned = new Int32Array(memory, HEAD_WORDS * 4, MAX_PORTS);
    this.cells = new Int32Array(memory, (HEAD_WORDS + MAX_PORTS) * 4, slots * SLOT_WORDS);
  }

  static create(options: MacTableOptions = {}): MacTable {
    const capacity = options.capacity ?? MAC_CAPACITY_DEFAULT;
    const ageing = options.ageingSeconds ?? MAC_AGEING_DEFAULT_S;
    if (!Number.isInteger(capacity) || capacity < 1 || capacity > MAC_CAPACITY_MAX) {
      throw new ConfigError('mac.limit', `${capacity} is not in 1 .. ${MAC_CAPACITY_MAX}`);
    }
    if (!Number.isInteger(ageing) || ageing < 0 || ageing >= NEVER_AGES) {
      throw new ConfigError('mac.ageingSeconds', `${ageing} is not a number of seconds`);
    }
    let slots = 64;
    while (slots < capacity * 2) slots *= 2;
    const bytes = (HEAD_WORDS + MAX_PORTS + slots * SLOT_WORDS) * 4;
    const table = new MacTable(new SharedArrayBuffer(bytes), slots);
    const seeds = randomBytes(8);
    table.head[HEAD_MAGIC] = MAGIC;
    table.head[HEAD_SHARED] = options.shared === true ? 1 : 0;
    table.head[HEAD_MASK] = slots - 1;
    table.head[HEAD_CAPACITY] = capacity;
    table.head[HEAD_SEED_A] = seeds.readInt32LE(0);
    table.head[HEAD_SEED_B] = seeds.readInt32LE(4);
    table.head[HEAD_AGEING] = ageing === 0 ? NEVER_AGES : ageing;
    return table;
  }

  /** The same table, seen from another thread. */
  static attach(memory: SharedArrayBuffer): MacTable {
    const head = new Int32Array(memory, 0, HEAD_WORDS);
    assert(head[HEAD_MAGIC] === MAGIC, 'memory holds a MAC table');
    return new MacTable(memory, head[HEAD_MASK] + 1);
  }

  /** Live entries. */
  get size(): number {
    return this.head[HEAD_ENTRIES];
  }

  get capacity(): number {
    return this.head[HEAD_CAPACITY];
  }

  /**
   * Sets the clock (whole seconds from any start, not running back). Each second a part of the
   * table is due to be swept; aged-out entries count against limits until they are, half a minute
   * where `sweep` is called often enough.
   */
  tick(nowSeconds: number): void {
    if (nowSeconds <= this.head[HEAD_NOW]) return; // perhaps another thread was first
    this.head[HEAD_NOW] = nowSeconds;
    if (this.head[HEAD_ENTRIES] === 0) return;
    this.due = (this.head[HEAD_MASK] + 1) * SWEEP_PART;
    this.sweep();
  }

  /** Sweeps some of what is due, so little that no frame waits for it. */
  sweep(): void {
    const slots = Math.min(this.due, SWEEP_MOST);
    this.due -= slots;
    sweepMacs(this.cells, this.head, this.learned, slots);
  }

  /** Port index of an address, or -1. */
  lookup(mac: string, vlan: number): number {
    const key = keyOf(mac, vlan);
    return lookupMac(this.cells, this.head, key.lo, key.hi);
  }

  /** Enters an address by hand; returns a LEARN_* code. */
  learn(mac: string, vlan: number, port: number, limit: number): number {
    const key = keyOf(mac, vlan);
    return learnMac(this.cells, this.head, this.learned, key.lo, key.hi, port, limit);
  }

  /** Forgets one address; false when it was not there. */
  remove(mac: string, vlan: number): boolean {
    const key = keyOf(mac, vlan);
    lockTicket(this.head, HEAD_LOCK);
    const at = findMac(this.cells, this.head, key.lo, key.hi);
    if (at >= 0) removeMac(this.cells, this.head, this.learned, at);
    unlockTicket(this.head, HEAD_LOCK);
    return at >= 0;
  }

  /** Forgets the addresses of one port, or all. Returns how many. */
  flush(port = -1): number {
    return flushMacs(this.cells, this.head, this.learned, port);
  }

  /**
   * The live entries as numbers, four words each: address and VLAN as in a slot, port, age. For
   * `enter` of another table. Any thread, like `list`.
   */
  snapshot(port = -1): Int32Array {
    // A guest may be learning: what is new since `size` was read has no room and is left out.
    const words = new Int32Array(this.size * SLOT_WORDS);
    const count = copyMacs(this.cells, this.head, words, port);
    return count === words.length ? words : words.slice(0, count); // its buffer is sent as a whole
  }

  /**
   * Enters what `snapshot` returned, with its ages, up to `limitOf` each port. An address that is
   * known elsewhere moves. Returns how many were entered.
   */
  enter(words: Int32Array, limitOf: (port: number) => number): number {
    let entered = 0;
    const { cells, head, learned } = this;
    for (let k = 0; k + SLOT_WORDS <= words.length; k += SLOT_WORDS) {
      const [lo, hi] = [words[k], words[k + 1]];
      const [port, age] = [words[k + 2], words[k + 3]];
      if (age > head[HEAD_AGEING]) continue;
      const outcome = learnMac(cells, head, learned, lo, hi, port, limitOf(port));
      if (outcome !== LEARN_ADDED && outcome !== LEARN_MOVED) continue;
      const at = findMac(cells, head, lo, hi);
      if (at >= 0) cells[at + 3] = head[HEAD_NOW] - age;
      entered++;
    }
    return entered;
  }

  /** The live entries. Any thread; a snapshot of a table that changes meanwhile. */
  list(): MacTableEntry[] {
    const words = this.snapshot();
    const entries: MacTableEntry[] = [];
    const bytes = Buffer.alloc(6);
    for (let k = 0; k < words.length; k += SLOT_WORDS) {
      const hi = words[k + 1];
      bytes.writeUInt16BE(hi & 0xffff, 0);
      bytes.writeInt32BE(words[k], 2);
      const [port, ageSeconds] = [words[k + 2], words[k + 3]];
      entries.push({ mac: formatMac(bytes), vlan: hi >>> 16, port, ageSeconds });
    }
    return entries;
  }
}

/** One entry of `snapshot`. @throws ConfigError when `mac` is none. */
export function macWords(mac: string, vlan: number, port: number, age: number): number[] {
  const { lo, hi } = keyOf(mac, vlan);
  return [lo, hi, port, age];
}

function keyOf(mac: string, vlan: number): { lo: number; hi: number } {
  const bytes = parseMac(mac);
  if (bytes === null) throw new ConfigError('mac', `'${mac}' is not a MAC address`);
  const view = new DataView(bytes.buffer);
  return { lo: view.getInt32(2), hi: view.getUint16(0) | (vlan << 16) };
}
