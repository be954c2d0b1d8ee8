import { randomBytes } from 'node:crypto';
import { assert } from '../base/assert.ts';
import { ConfigError } from '../base/errors.ts';
import { MAX_PORTS } from '../base/limits.ts';
import { formatMac, parseMac } from '../wire/ethernet.ts';
import {
  findMac,
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
 * many slots as entries allowed; a key lies within MAX_PROBE slots of its home. One thread, the
 * worker that runs the switch, writes; any thread may read and list (an entry's port is stored
 * last and cleared first, so a torn entry has no port).
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
const HEAD_ENTRIES = 3;
const HEAD_SEED_A = 4;
const HEAD_SEED_B = 5;
const HEAD_AGEING = 6;
const HEAD_NOW = 7;
const HEAD_CURSOR = 8;
const SLOT_WORDS = 4;

export const MAC_CAPACITY_DEFAULT = 16384;
export const MAC_CAPACITY_MAX = 131072;
export const MAC_AGEING_DEFAULT_S = 300;
const NEVER_AGES = 0x7fffffff;

/** A second sweeps this part of the table: 1024 slots of the default one, about a microsecond. */
const SWEEP_PART = 1 / 32;

export type MacTableOptions = {
  /** Most entries, 1 .. MAC_CAPACITY_MAX. */
  readonly capacity?: number;
  /** Entries not seen for longer are forgotten; 0: never. */
  readonly ageingSeconds?: number;
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
   * Sets the clock (whole seconds from any start, not running back). When it moved, sweeps a
   * little; aged-out entries count against limits until they are swept, half a minute at most.
   */
  tick(nowSeconds: number): void {
    if (nowSeconds === this.head[HEAD_NOW]) return;
    this.head[HEAD_NOW] = nowSeconds;
    if (this.head[HEAD_ENTRIES] === 0) return;
    const slots = (this.head[HEAD_MASK] + 1) * SWEEP_PART;
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
    const at = findMac(this.cells, this.head, key.lo, key.hi);
    if (at < 0) return false;
    removeMac(this.cells, this.head, this.learned, at);
    return true;
  }

  /** Forgets the addresses of one port, or all. Returns how many. The writing thread only. */
  flush(port?: number): number {
    let removed = 0;
    for (let at = 0; at < this.cells.length; at += SLOT_WORDS) {
      const owner = this.cells[at + 2] - 1;
      if (owner < 0 || (port !== undefined && owner !== port)) continue;
      removeMac(this.cells, this.head, this.learned, at);
      removed++;
    }
    if (port === undefined) {
      this.cells.fill(0);
      this.head[HEAD_CURSOR] = 0;
    }
    return removed;
  }

  /**
   * The live entries as numbers, four words each: address and VLAN as in a slot, port, age. For
   * `enter` of another table. Any thread, like `list`.
   */
  snapshot(port?: number): Int32Array {
    const words: number[] = [];
    if (this.size === 0) return new Int32Array(0);
    const now = this.head[HEAD_NOW];
    for (let at = 0; at < this.cells.length; at += SLOT_WORDS) {
      if (this.cells[at + 2] === 0) continue; // most are: the ordered read is for the others
      const owner = Atomics.load(this.cells, at + 2) - 1;
      const age = Math.max(0, now - this.cells[at + 3]);
      if (owner < 0 || age > this.head[HEAD_AGEING]) continue;
      if (port !== undefined && owner !== port) continue;
      words.push(this.cells[at], this.cells[at + 1], owner, age);
    }
    return Int32Array.from(words);
  }

  /**
   * Enters what `snapshot` returned, with its ages, up to `limitOf` each port. An address that is
   * known elsewhere moves. The writing thread only. Returns how many were entered.
   */
  enter(words: Int32Array, limitOf: (port: number) => number): number {
    let entered = 0;
    const { cells, head, learned } = this;
    for (let k = 0; k + SLOT_WORDS <= words.length; k += SLOT_WORDS) {
      const [lo, hi, port, age] = words.subarray(k, k + SLOT_WORDS);
      if (age > head[HEAD_AGEING]) continue;
      const outcome = learnMac(cells, head, learned, lo, hi, port, limitOf(port));
      if (outcome !== LEARN_ADDED && outcome !== LEARN_MOVED) continue;
      cells[findMac(cells, head, lo, hi) + 3] = head[HEAD_NOW] - age;
      entered++;
    }
    return entered;
  }

  /** The live entries. Any thread; a snapshot of a table that changes meanwhile. */
  list(): MacTableEntry[] {
    const entries: MacTableEntry[] = [];
    const bytes = Buffer.alloc(6);
    const now = this.head[HEAD_NOW];
    for (let at = 0; at < this.cells.length; at += SLOT_WORDS) {
      const port = Atomics.load(this.cells, at + 2);
      const [lo, hi, seen] = [this.cells[at], this.cells[at + 1], this.cells[at + 3]];
      if (port === 0 || Atomics.load(this.cells, at + 2) !== port) continue;
      if (now - seen > this.head[HEAD_AGEING]) continue;
      bytes.writeUInt16BE(hi & 0xffff, 0);
      bytes.writeInt32BE(lo, 2);
      const ageSeconds = Math.max(0, now - seen);
      entries.push({ mac: formatMac(bytes), vlan: hi >>> 16, port: port - 1, ageSeconds });
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
