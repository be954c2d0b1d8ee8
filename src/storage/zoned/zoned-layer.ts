/**
 * A host-managed zoned disk over any medium: zones are written from their beginning to their end,
 * at a write pointer that the disk keeps, and reset as a whole. Zones at the beginning may be
 * conventional: they are written as those of any disk.
 *
 * Theory of operation. Requests are judged in the order in which they come, which moves the
 * zone's `pointer`. Data goes to the medium at once, as many writes of a zone at a time as
 * there are; its entry in the log (zone-log.ts) follows that of the write in front of it, and then
 * the write is answered and `written` moves. So nothing is answered that a crash could leave behind
 * a gap. A write that fails takes those behind it along, and the pointer goes back to where data
 * ends, once none of them is under way any more.
 *
 * What changes a zone otherwise holds it: waits for its writes, and lets nothing begin. Resets,
 * and all else that takes data or room away, are durable before they are answered; the data of a
 * zone that was reset is discarded after that.
 */
import { crc32 } from 'node:zlib';
import { VringError } from '../../base/errors.ts';
import { EOPNOTSUPP } from '../../sys/index.ts';
import { type Extent, type Layer, LayerError, type ZeroOptions } from '../layer/layer.ts';
import { PassLayer } from '../layer/pass-layer.ts';
import { RECORD_DATA } from './zone-format.ts';
import type { ZoneLog } from './zone-log.ts';
import { type Zone, ZoneSet, type ZoneSetOptions } from './zone-set.ts';
import { ZoneManager } from './zone-manager.ts';
import {
  type AppendTag,
  ZONE_CLOSED,
  ZONE_EMPTY,
  ZONE_EXPLICIT_OPEN,
  ZONE_FULL,
  ZONE_IMPLICIT_OPEN,
  ZONE_OFFLINE,
  ZONE_READ_ONLY,
  ZoneError,
  type ZoneAction,
  type ZonedMedium,
  type ZoneInfo,
  type ZoneShape,
  type ZoneWriteOptions,
} from './zone-types.ts';

export type ZonedLayerOptions = ZoneSetOptions & {
  readonly below: Layer;
  readonly log: ZoneLog;
  readonly granularityBytes: number;
  /** Where zone 0 begins below. */
  readonly dataAt: number;
  readonly readOnly: boolean;
};

/** Largest append: what a driver has to hold in one request. */
const MAX_APPEND_BYTES = 2 ** 20;

export class ZonedLayer extends PassLayer {
  readonly description: string;
  readonly zones: ZonedMedium;
  readonly #options: ZonedLayerOptions;
  readonly #set: ZoneSet;
  readonly #manager: ZoneManager;
  /** Writes that were begun before a crash and found done. */
  #recognised = 0;

  constructor(options: ZonedLayerOptions) {
    super(options.below);
    const { below, log, zoneBytes, capacityBytes, granularityBytes } = options;
    this.#options = options;
    this.#set = new ZoneSet(log.zones, options);
    this.description = `zoned over ${below.description}`;
    this.#manager = new ZoneManager({ ...options, set: this.#set });
    const { maxOpen, maxActive } = options;
    const most = Math.min(MAX_APPEND_BYTES, capacityBytes);
    const shape: ZoneShape = {
      zoneBytes,
      maxOpen,
      maxActive,
      granularityBytes,
      maxAppendBytes: most - (most % granularityBytes),
    };
    this.zones = {
      shape,
      read: (at, into) => this.#readStrictly(at, into),
      write: (at, from, how) => this.#write(at, from, how),
      append: (at, from, how, tag) => this.#append(at, from, how, tag),
      report: (at, most) => this.#report(at, most),
      manage: (action, at, how) => this.#manage(action, at, how.again),
    };
  }

  override get sizeBytes(): number {
    return this.#set.all.length * this.#options.zoneBytes;
  }

  override get readOnly(): boolean {
    return this.#options.readOnly;
  }

  /** What no zone has as data reads as zeros, whatever lies there. */
  override async read(at: number, into: Uint8Array): Promise<void> {
    const { zoneBytes } = this.#options;
    const pieces: Promise<void>[] = [];
    for (let done = 0; done < into.length;) {
      const zone = this.#set.zoneAt(at + done);
      const size = Math.min(into.length - done, zone.at + zoneBytes - (at + done));
      pieces.push(this.#readZone(zone, at + done, into.subarray(done, done + size)));
      done += size;
    }
    await Promise.all(pieces);
  }

  override write(at: number, from: Uint8Array, fua: boolean): Promise<void> {
    return this.#write(at, from, { fua, again: false });
  }

  /** Advice: data of sequential zones goes by resets alone. */
  override async discard(at: number, sizeBytes: number): Promise<void> {
    if (this.#isConventional(at, sizeBytes)) {
      await this.below.discard(this.#options.dataAt + at, sizeBytes);
    }
  }

  override async zero(at: number, sizeBytes: number, options: ZeroOptions): Promise<void> {
    if (!this.#isConventional(at, sizeBytes)) {
      const text = `${this.description}: zones at byte ${at} are written in order, or reset`;
      throw new LayerError(EOPNOTSUPP, text);
    }
    await this.below.zero(this.#options.dataAt + at, sizeBytes, options);
  }

  override async extents(at: number, sizeBytes: number): Promise<Extent[]> {
    const zone = this.#set.zoneAt(at);
    const end = Math.min(at + sizeBytes, zone.at + this.#options.zoneBytes);
    const data = zone.conventional ? end : Math.min(end, zone.at + zone.written);
    if (data > at) return [{ at, sizeBytes: data - at, kind: 'data' }];
    return [{ at, sizeBytes: end - at, kind: 'zero' }];
  }

  override async measure(): Promise<number> {
    return this.sizeBytes;
  }

  override async resize(sizeBytes: number): Promise<void> {
    if (sizeBytes === this.sizeBytes) return;
    const text = `${this.description} keeps its ${this.sizeBytes} bytes: zones do not move`;
    throw new VringError('ERR_VRING_DISK_RESIZE', text);
  }

  /** `zone`: a zone becomes `read-only` or `offline`, as one of a medium that wears out does. */
  override async control(name: string, payload: unknown): Promise<unknown> {
    if (name === 'zones') return this.#report(0, this.#set.all.length);
    if (name !== 'zone') return this.below.control(name, payload);
    return this.#manager.giveUp(payload);
  }

  override counters(): Record<string, number> {
    const { log } = this.#options;
    return {
      ...this.below.counters(),
      ...this.#set.counters(),
      zone_checkpoints: log.checkpoints,
      zone_entries_replayed: log.replayed,
      zone_entries_void: log.voided,
      zone_writes_recognised: this.#recognised,
    };
  }

  override async close(): Promise<void> {
    await this.#options.log.settled();
    await this.below.close();
  }

  async #readStrictly(at: number, into: Uint8Array): Promise<void> {
    const zone = this.#set.zoneAt(at);
    const isOne = at + into.length <= zone.at + this.#options.zoneBytes;
    if (!isOne && !this.#isConventional(at, into.length)) {
      throw wrong(zone, `a read of ${into.length} bytes at ${at} leaves it`);
    }
    await this.read(at, into);
  }

  async #readZone(zone: Zone, at: number, into: Uint8Array): Promise<void> {
    if (zone.condition === ZONE_OFFLINE) throw wrong(zone, 'it is offline');
    const end = zone.conventional ? Infinity : zone.at + zone.written;
    const there = Math.max(0, Math.min(into.length, end - at));
    into.fill(0, there);
    if (there > 0) await this.below.read(this.#options.dataAt + at, into.subarray(0, there));
  }

  async #write(at: number, from: Uint8Array, how: ZoneWriteOptions): Promise<void> {
    const zone = this.#set.zoneAt(at);
    if (zone.conventional) {
      if (!this.#isConventional(at, from.length)) throw wrong(zone, `a write at ${at} leaves it`);
      return this.below.write(this.#options.dataAt + at, from, how.fua);
    }
    const start = at - zone.at;
    if (how.again && (await this.#isDone(zone, start, from))) {
      if (how.fua) await this.below.flush();
      return;
    }
    // No await where nothing holds the zone: requests keep their order.
    while (zone.held !== null) await zone.held;
    this.#judge(zone, start, from.length);
    await this.#put(zone, from, how.fua, null);
  }

  async #append(
    at: number,
    from: Uint8Array,
    how: ZoneWriteOptions,
    tag: AppendTag | null,
  ): Promise<number> {
    const zone = this.#set.zoneAt(at);
    if (zone.conventional) throw wrong(zone, 'it is conventional: nothing can be appended');
    if (at !== zone.at) throw wrong(zone, `an append to byte ${at} does not name its beginning`);
    if (from.length > this.zones.shape.maxAppendBytes) {
      throw wrong(
        zone,
        `an append of ${from.length} bytes, more than ${this.zones.shape.maxAppendBytes}`,
      );
    }
    if (how.again && tag !== null) {
      const place = this.#options.log.placeOf(tag.queue, tag.order);
      if (place >= 0) {
        this.#recognised++;
        if (how.fua) await this.below.flush();
        return place;
      }
    }
    while (zone.held !== null) await zone.held;
    const start = zone.pointer;
    this.#judge(zone, start, from.length);
    await this.#put(zone, from, how.fua, tag);
    return zone.at + start;
  }

  /** May so many bytes be written there, now? Opens the zone. @throws ZoneError. */
  #judge(zone: Zone, start: number, sizeBytes: number): void {
    const { zoneBytes, capacityBytes, granularityBytes, readOnly } = this.#options;
    const { condition } = zone;
    if (condition === ZONE_OFFLINE || condition === ZONE_READ_ONLY || readOnly) {
      throw wrong(zone, `it is ${condition === ZONE_OFFLINE ? 'offline' : 'read-only'}`);
    }
    if (start + sizeBytes > zoneBytes) throw wrong(zone, `${sizeBytes} bytes at ${start} leave it`);
    if (condition === ZONE_FULL) throw wrong(zone, 'it is full');
    if (start !== zone.pointer || sizeBytes % granularityBytes !== 0) {
      const text = `${sizeBytes} bytes at ${start}, its write pointer is at ${zone.pointer}`;
      throw new ZoneError('unaligned', `zone ${zone.index}: ${text}`);
    }
    if (start + sizeBytes > capacityBytes) {
      throw wrong(zone, `${sizeBytes} bytes at ${start} are more than is writable`);
    }
    if (!zone.isOpen) this.#set.open(zone, ZONE_IMPLICIT_OPEN);
  }

  /** Resolves when the bytes are data of the zone. It was judged. */
  async #put(zone: Zone, from: Uint8Array, fua: boolean, tag: AppendTag | null): Promise<void> {
    const { capacityBytes, dataAt } = this.#options;
    const start = zone.pointer;
    zone.pointer += from.length;
    if (zone.pointer === capacityBytes) this.#set.become(zone, ZONE_FULL);
    zone.underWay++;
    const data = this.below.write(dataAt + zone.at + start, from, false);
    const queued = this.#enqueue(zone, start, from, tag, data, zone.queued);
    zone.queued = queued.catch(() => undefined);
    const ended = this.#end(zone, start + from.length, queued);
    zone.ended = Promise.allSettled([zone.ended, ended]);
    await ended;
    if (fua) await this.below.flush();
  }

  /** Resolves when the entry has its place in the log's queue, to the promise that it is there. */
  async #enqueue(
    zone: Zone,
    from: number,
    bytes: Uint8Array,
    tag: AppendTag | null,
    data: Promise<void>,
    before: Promise<unknown>,
  ): Promise<{ logged: Promise<void> }> {
    const dataCrc = crc32(bytes);
    const [own] = await Promise.allSettled([data, before]);
    if (zone.failed) {
      const text = `zone ${zone.index}: a write in front of byte ${from} failed`;
      throw new ZoneError('unaligned', text);
    }
    if (own.status === 'rejected') {
      zone.failed = true;
      throw own.reason;
    }
    const { index, generation } = zone;
    const place = { zone: index, generation, from, sizeBytes: bytes.length };
    const logged = this.#options.log.append({ kind: RECORD_DATA, ...place, dataCrc, tag });
    return { logged };
  }

  async #end(zone: Zone, end: number, queued: Promise<{ logged: Promise<void> }>): Promise<void> {
    try {
      const { logged } = await queued;
      await logged;
      zone.written = end;
    } catch (error) {
      zone.failed = true;
      throw error;
    } finally {
      zone.underWay--;
      if (zone.failed) this.#rewind(zone);
    }
  }

  /** Back to where data ends, when nothing that failed is under way any more. */
  #rewind(zone: Zone): void {
    if (zone.underWay > 0) {
      if (zone.held === null) zone.release = zone.hold();
      return;
    }
    zone.pointer = zone.written;
    zone.failed = false;
    if (zone.condition === ZONE_FULL) this.#set.become(zone, ZONE_CLOSED);
    if (zone.pointer === 0 && zone.condition !== ZONE_EXPLICIT_OPEN) {
      this.#set.become(zone, ZONE_EMPTY);
    }
    zone.release?.();
    zone.release = null;
  }

  /** Of a write that was begun before a crash: the zone has its bytes already. */
  async #isDone(zone: Zone, start: number, from: Uint8Array): Promise<boolean> {
    if (start + from.length > zone.written || zone.condition === ZONE_OFFLINE) return false;
    const there = new Uint8Array(from.length);
    await this.below.read(this.#options.dataAt + zone.at + start, there);
    if (!Buffer.from(there.buffer).equals(from)) return false;
    this.#recognised++;
    return true;
  }

  #report(at: number, most: number): ZoneInfo[] {
    const first = this.#set.zoneAt(at).index;
    return this.#set.all.slice(first, first + most).map((zone) => this.#set.info(zone));
  }

  async #manage(action: ZoneAction, at: number, again: boolean): Promise<void> {
    if (action === 'reset-all') return this.#manager.resetAll();
    const zone = this.#set.zoneAt(at);
    if (zone.conventional) throw wrong(zone, `it is conventional: no ${action}`);
    if (at !== zone.at) throw wrong(zone, `byte ${at} is not its beginning`);
    await this.#manager.act(action, zone, again);
  }

  #isConventional(at: number, sizeBytes: number): boolean {
    return at + sizeBytes <= this.#options.conventional * this.#options.zoneBytes;
  }
}

function wrong(zone: Zone, text: string): ZoneError {
  return new ZoneError('invalid', `zone ${zone.index}: ${text}`);
}
