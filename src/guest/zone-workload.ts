/**
 * Work for a zoned disk, and a check of every byte: zones are filled by writes at their pointer,
 * one at a time, or by appends, many at a time, and reset when they are full. Every block names
 * itself (blk-pattern.hot.ts), so at the end each that was answered must be where the answer said,
 * each pointer right behind the last of them, and nothing else anywhere: a request that was lost
 * shows, and so does one that was done twice.
 */
import { ConfigError, VringError } from '../base/errors.ts';
import { VIRTIO_BLK_SECTOR_BYTES, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT } from '../wire/virtio-blk.ts';
import { askDisk } from './ask-disk.ts';
import { seededRandom } from './blk-chooser.ts';
import { BlkDisk } from './blk-disk.ts';
import type { BlkGuest } from './blk-driver.ts';
import { checkUnit, fillUnit, UNIT_GOOD, UNIT_ZERO } from './blk-pattern.hot.ts';
import { ZonedDisk, type ZoneReport } from './zoned-disk.ts';

export type ZoneWorkloadOptions = {
  readonly guest: BlkGuest;
  readonly seconds: number;
  /** Bytes of a request; default: the granularity. */
  readonly blockBytes?: number;
  /** Requests under way at a time; default 16. */
  readonly depth?: number;
  /** Of all writes; default 50. */
  readonly appendPercent?: number;
  /** Sequential zones that are used, the first ones; default 8, fewer where fewer may be active. */
  readonly zones?: number;
  /** A flush after so many writes; default 100. */
  readonly flushEvery?: number;
  readonly seed?: number;
  readonly signal?: AbortSignal;
};

export type ZoneWorkloadReport = {
  readonly seed: number;
  readonly seconds: number;
  readonly writes: number;
  readonly appends: number;
  readonly resets: number;
  readonly finishes: number;
  readonly flushes: number;
  readonly reconnects: number;
  /** Blocks that were compared at the end, and what is wrong: at most 16 of it. */
  readonly checked: number;
  readonly wrong: readonly string[];
};

const MAX_WRONG = 16;

/** One zone by what was answered. */
type Lane = {
  readonly at: number;
  readonly capacityBytes: number;
  /** By place in the zone: which write is there. */
  readonly stamps: (number | undefined)[];
  /** Blocks that were answered or are under way. */
  begun: number;
  underWay: number;
  /** Filled by appends until its next reset. */
  appends: boolean;
  /** A write, or a reset, is under way, and nothing may go beside it. */
  busy: boolean;
  finished: boolean;
};

/**
 * What is wrong is in the report, not an error.
 * @throws VringError: an answer that is no OK; ConfigError for sizes that do not fit the disk.
 */
export async function runZoneWorkload(options: ZoneWorkloadOptions): Promise<ZoneWorkloadReport> {
  const run = new ZoneRun(options);
  return run.run();
}

class ZoneRun {
  readonly #options: ZoneWorkloadOptions;
  readonly #guest: BlkGuest;
  readonly #zoned: ZonedDisk;
  readonly #seed: number;
  readonly #random: () => number;
  readonly #blockBytes: number;
  readonly #counts = { writes: 0, appends: 0, resets: 0, finishes: 0, flushes: 0 };
  readonly #wrong: string[] = [];
  #lanes: Lane[] = [];
  #stamp = 0;
  #checked = 0;

  constructor(options: ZoneWorkloadOptions) {
    const { guest } = options;
    this.#options = options;
    this.#guest = guest;
    this.#zoned = new ZonedDisk(guest);
    this.#seed = options.seed ?? (Math.random() * 2 ** 32) >>> 0;
    this.#random = seededRandom(this.#seed);
    const { granularityBytes, maxAppendBytes } = this.#zoned.zones;
    this.#blockBytes = options.blockBytes ?? granularityBytes;
    const most = Math.min(guest.requestBytes, maxAppendBytes);
    if (this.#blockBytes % granularityBytes === 0 && this.#blockBytes <= most) return;
    const expected = `a multiple of ${granularityBytes} up to ${most}`;
    throw new ConfigError('--block-size', `${this.#blockBytes} is not ${expected}`);
  }

  async run(): Promise<ZoneWorkloadReport> {
    const { seconds, depth = 16, signal } = this.#options;
    await this.#prepare();
    const startMs = performance.now();
    const endMs = startMs + 1000 * seconds;
    const goesOn = (): boolean => performance.now() < endMs && signal?.aborted !== true;
    const worker = async (): Promise<void> => {
      while (goesOn()) await this.#step();
    };
    const results = await Promise.allSettled(Array.from({ length: depth }, worker));
    for (const result of results) if (result.status === 'rejected') throw result.reason;
    const took = (performance.now() - startMs) / 1000;
    await this.#verify();
    return {
      seed: this.#seed,
      seconds: took,
      ...this.#counts,
      reconnects: this.#guest.reconnects,
      checked: this.#checked,
      wrong: this.#wrong,
    };
  }

  /** The first zones that can be written, empty. */
  async #prepare(): Promise<void> {
    const { zones = 8, appendPercent = 50 } = this.#options;
    const { maxActive } = this.#zoned.zones;
    const most = maxActive > 0 ? Math.min(zones, maxActive) : zones;
    const report = await this.#zoned.report();
    const usable = report.filter(isWritable).slice(0, most);
    if (usable.length === 0) {
      throw new VringError('ERR_VRING_GUEST_CONFIG', 'the disk has no zone that can be written');
    }
    for (const { at, capacityBytes } of usable) {
      await this.#zoned.act('reset', at);
      const appends = this.#random() * 100 < appendPercent;
      this.#lanes.push({ ...emptyLane(at, capacityBytes), appends });
    }
  }

  async #step(): Promise<void> {
    const { flushEvery = 100 } = this.#options;
    const { writes, appends, flushes } = this.#counts;
    if (flushEvery > 0 && writes + appends >= (flushes + 1) * flushEvery) {
      this.#counts.flushes++;
      await new BlkDisk(this.#guest).flush();
      return;
    }
    const lane = this.#lanes[Math.floor(this.#random() * this.#lanes.length)]!;
    const isFull = lane.finished || (lane.begun + 1) * this.#blockBytes > lane.capacityBytes;
    if (lane.busy || (isFull && lane.underWay > 0)) {
      await new Promise((resolve) => setImmediate(resolve));
    } else if (isFull) {
      await this.#reset(lane);
    } else if (lane.underWay === 0 && lane.begun > 0 && this.#random() < 0.01) {
      await this.#finish(lane);
    } else {
      await this.#put(lane);
    }
  }

  async #put(lane: Lane): Promise<void> {
    const stamp = ++this.#stamp;
    const bytes = new Uint8Array(this.#blockBytes);
    fillUnit(new Int32Array(bytes.buffer), 0, bytes.length / 4, stamp, 1, this.#seed | 0);
    const place = lane.begun++;
    lane.underWay++;
    if (lane.appends) {
      this.#counts.appends++;
      const at = await this.#zoned.append(lane.at, bytes);
      const index = (at - lane.at) / this.#blockBytes;
      if (lane.stamps[index] !== undefined) {
        this.#note(`two appends were answered with byte ${at}`);
      }
      lane.stamps[index] = stamp;
    } else {
      this.#counts.writes++;
      lane.busy = true;
      const sector = (lane.at + place * this.#blockBytes) / VIRTIO_BLK_SECTOR_BYTES;
      await askDisk(this.#guest, { type: VIRTIO_BLK_T_OUT, sector, write: bytes });
      lane.stamps[place] = stamp;
      lane.busy = false;
    }
    lane.underWay--;
  }

  async #reset(lane: Lane): Promise<void> {
    const { appendPercent = 50 } = this.#options;
    lane.busy = true;
    this.#counts.resets++;
    await this.#zoned.act('reset', lane.at);
    const appends = this.#random() * 100 < appendPercent;
    Object.assign(lane, { ...emptyLane(lane.at, lane.capacityBytes), appends });
  }

  async #finish(lane: Lane): Promise<void> {
    lane.busy = true;
    this.#counts.finishes++;
    await this.#zoned.act('finish', lane.at);
    lane.finished = true;
    lane.busy = false;
  }

  async #verify(): Promise<void> {
    for (const lane of this.#lanes) {
      const [zone] = await this.#zoned.report(lane.at, 1);
      const written = lane.stamps.length * this.#blockBytes;
      const isFull = lane.finished || written === lane.capacityBytes;
      const expected = isFull ? 'full' : `at ${lane.at + written}`;
      const found = zone!.condition === 'full' ? 'full' : `at ${zone!.pointer}`;
      if (found !== expected) {
        this.#note(`the zone at ${lane.at} is ${found}, and is to be ${expected}`);
      }
      await this.#verifyData(lane);
    }
  }

  async #verifyData(lane: Lane): Promise<void> {
    const { zoneBytes } = this.#zoned.zones;
    const found = new Int32Array(4);
    const words = this.#blockBytes / 4;
    for (let at = 0; at + this.#blockBytes <= zoneBytes; at += this.#blockBytes) {
      const sector = (lane.at + at) / VIRTIO_BLK_SECTOR_BYTES;
      const readBytes = this.#blockBytes;
      const { data } = await askDisk(this.#guest, { type: VIRTIO_BLK_T_IN, sector, readBytes });
      const stamp = lane.stamps[at / this.#blockBytes];
      const unit = new Int32Array(data.buffer, data.byteOffset, words);
      const verdict = checkUnit(unit, 0, words, stamp ?? 0, this.#seed | 0, found);
      if (verdict !== (stamp === undefined ? UNIT_ZERO : UNIT_GOOD)) {
        const due = stamp === undefined ? 'zeros' : `write ${stamp}`;
        const there = verdict === UNIT_ZERO ? 'zeros' : `write ${found[2]}`;
        this.#note(`byte ${lane.at + at}: ${due} is due, ${there} is there (verdict ${verdict})`);
      }
      if (stamp !== undefined) this.#checked++;
    }
  }

  #note(text: string): void {
    if (this.#wrong.length < MAX_WRONG) this.#wrong.push(text);
  }
}

function emptyLane(at: number, capacityBytes: number): Lane {
  const none = { begun: 0, underWay: 0, appends: false, busy: false, finished: false };
  return { at, capacityBytes, stamps: [], ...none };
}

function isWritable({ conventional, condition }: ZoneReport): boolean {
  return !conventional && condition !== 'read-only' && condition !== 'offline';
}
