/** All zones of a disk as they are for its users, and the limits on how many are in use. */
import { assert } from '../../base/assert.ts';
import type { ZoneRecord } from './zone-format.ts';
import {
  ZONE_CLOSED,
  ZONE_EMPTY,
  ZONE_EXPLICIT_OPEN,
  ZONE_FULL,
  ZONE_IMPLICIT_OPEN,
  ZONE_NOT_WP,
  ZoneError,
  type ZoneInfo,
} from './zone-types.ts';

export type ZoneSetOptions = {
  readonly zoneBytes: number;
  readonly capacityBytes: number;
  readonly conventional: number;
  /** 0: no limit. */
  readonly maxOpen: number;
  readonly maxActive: number;
};

/** One zone. Bytes are counted from its beginning. */
export class Zone {
  readonly index: number;
  /** Byte of the disk at which it begins. */
  readonly at: number;
  readonly conventional: boolean;
  /** Where the next write goes; what is below `written` is data, between them it is under way. */
  pointer: number;
  written: number;
  generation: number;
  condition: number;
  /** Settled when whatever was begun last has its entry in the queue of the log; when it ended. */
  queued: Promise<unknown> = Promise.resolve();
  ended: Promise<unknown> = Promise.resolve();
  /** Writes that have not ended. */
  underWay = 0;
  /** A write failed: those behind it fail as well, and nothing begins before they have. */
  failed = false;
  /** Nothing may begin before it is settled. */
  held: Promise<void> | null = null;
  /** Ends the hold that a failed write began. */
  release: (() => void) | null = null;

  constructor(index: number, record: ZoneRecord, options: ZoneSetOptions) {
    this.index = index;
    this.at = index * options.zoneBytes;
    this.conventional = index < options.conventional;
    this.written = record.written;
    this.generation = record.generation;
    this.condition = this.conventional ? ZONE_NOT_WP : record.condition;
    this.pointer = this.condition === ZONE_FULL ? options.capacityBytes : record.written;
  }

  get isOpen(): boolean {
    return this.condition === ZONE_IMPLICIT_OPEN || this.condition === ZONE_EXPLICIT_OPEN;
  }

  get isActive(): boolean {
    return this.isOpen || this.condition === ZONE_CLOSED;
  }

  /** Nobody begins anything until the function that is returned is called. Not while held. */
  hold(): () => void {
    assert(this.held === null, 'a zone is held by one at a time');
    const { promise, resolve } = Promise.withResolvers<void>();
    this.held = promise;
    return () => {
      this.held = null;
      resolve();
    };
  }
}

export class ZoneSet {
  readonly all: readonly Zone[];
  readonly #options: ZoneSetOptions;
  #open = 0;
  #active = 0;
  /** Those that may be closed to make room, longest open first. */
  readonly #implicit = new Set<Zone>();

  constructor(records: readonly ZoneRecord[], options: ZoneSetOptions) {
    this.#options = options;
    this.all = records.map((record, index) => new Zone(index, record, options));
    for (const zone of this.all) {
      if (zone.isOpen) this.#open++;
      if (zone.isActive) this.#active++;
    }
  }

  /** The zone of a byte of the disk. */
  zoneAt(at: number): Zone {
    const zone = this.all[Math.floor(at / this.#options.zoneBytes)];
    if (zone === undefined) throw new ZoneError('invalid', `byte ${at} is in no zone`);
    return zone;
  }

  become(zone: Zone, condition: number): void {
    if (zone.isOpen) this.#open--;
    if (zone.isActive) this.#active--;
    this.#implicit.delete(zone);
    zone.condition = condition;
    if (zone.isOpen) this.#open++;
    if (zone.isActive) this.#active++;
    if (condition === ZONE_IMPLICIT_OPEN) this.#implicit.add(zone);
  }

  /**
   * A writable zone is open afterwards; one that was opened without being asked to is closed for
   * it, where there are too many.
   * @throws ZoneError active-limit, open-limit: nothing has changed.
   */
  open(zone: Zone, condition: number): void {
    const { maxOpen, maxActive } = this.#options;
    if (!zone.isActive && maxActive > 0 && this.#active >= maxActive) {
      throw new ZoneError('active-limit', `${this.#active} zones are active, as many as may be`);
    }
    if (!zone.isOpen && maxOpen > 0 && this.#open >= maxOpen) {
      const [victim] = this.#implicit;
      if (victim === undefined) {
        throw new ZoneError('open-limit', `${this.#open} zones are open, as many as may be`);
      }
      this.become(victim, ZONE_CLOSED);
    }
    this.become(zone, condition);
  }

  info({ at, pointer, conventional, condition }: Zone): ZoneInfo {
    const { zoneBytes, capacityBytes: writable } = this.#options;
    const capacityBytes = conventional ? zoneBytes : writable;
    return { at, capacityBytes, pointer: at + pointer, conventional, condition };
  }

  counters(): Record<string, number> {
    const count = (condition: number): number =>
      this.all.filter((zone) => zone.condition === condition).length;
    return {
      zones_open: this.#open,
      zones_active: this.#active,
      zones_empty: count(ZONE_EMPTY),
      zones_full: count(ZONE_FULL),
    };
  }
}
