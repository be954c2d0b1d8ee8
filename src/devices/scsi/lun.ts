/** One logical unit: a disk behind an engine, and what its driver has set and not yet been told. */
import { BATCH, BATCH_SEGMENTS } from '../../base/limits.ts';
import { type Engine, IoBatch, IoDone, MAX_IO_RANGES } from '../../storage/index.ts';
import * as scsi from '../../wire/scsi.ts';
import { LATENCY_OPS, RequestLatency } from '../disk/request-latency.ts';
import { Buffers } from './buffers.ts';
import { UNIT_JOBS } from './limits.ts';
import type { Held, Job } from './medium-job.ts';
import type { ErrorTally, LastError } from '../disk/failed-flush.ts';
import { Reservation, type ReservationState } from './reservation.ts';
import { COUNTS } from './scsi-vring.ts';

// Unit attentions, bits of `Lun.state`; the lowest is reported first.
export const ATTENTION_POWER_ON = 1;
export const ATTENTION_NEXUS_LOSS = 2;
export const ATTENTION_RESET = 4;
export const ATTENTION_CAPACITY = 8;
export const ATTENTION_LUNS = 16;
const ATTENTIONS = 31;
/** START STOP UNIT stopped it. */
export const STOPPED = 256;
/** A command of medium-work.ts holds blocks: others are looked at one by one. */
export const HOLDING = 512;
/** It has no engine for a while: `Lun.park`. */
export const PARKED = 1024;

const ATTENTION_SENSE: ReadonlyMap<number, number> = new Map([
  [ATTENTION_POWER_ON, scsi.SENSE_POWER_ON],
  [ATTENTION_NEXUS_LOSS, scsi.SENSE_NEXUS_LOSS],
  [ATTENTION_RESET, scsi.SENSE_RESET],
  [ATTENTION_CAPACITY, scsi.SENSE_CAPACITY_CHANGED],
  [ATTENTION_LUNS, scsi.SENSE_LUNS_CHANGED],
]);

export type LunOptions = {
  /** Its place among the device's units. */
  readonly index: number;
  readonly target: number;
  readonly lun: number;
  readonly engine: Engine;
  /** Logical block: 512 or 4096 bytes. */
  readonly blockBytes: number;
  /** At most 36 characters of ASCII; who gives none gets one made of target and LUN. */
  readonly serial: string;
  /** `Lun.failedFlush` of the same bytes, served before. */
  readonly failedFlush?: number;
  /** `Lun.save` of the same unit, served before. */
  readonly state?: LunState;
};

/** What a driver has set, and has still to be told: plain data, for who serves the unit next. */
export type LunState = {
  readonly attentions: number;
  readonly writeCache: number;
  readonly descriptorSense: number;
  readonly softwareProtect: number;
  readonly reservation: ReservationState;
};

export class Lun implements ErrorTally {
  readonly index: number;
  readonly target: number;
  readonly lun: number;
  engine: Engine;
  readonly blockBytes: number;
  readonly serial: string;
  readonly io = new IoBatch(BATCH * MAX_IO_RANGES, BATCH_SEGMENTS);
  readonly done = new IoDone();
  /** Rows of `io` that the engine has taken. */
  submitted = 0;
  /** Commands that the engine works on. */
  underWay = 0;
  /** Rows were added to `io` by the batch that is being read: from this one on. */
  touched = false;
  batchAt = 0;
  /** Attentions, STOPPED, HOLDING and PARKED; 0: commands are carried out without further ado. */
  state = ATTENTION_POWER_ON;
  /** Commands of medium-work.ts, in the order in which they came. */
  readonly jobs: Job[] = [];
  /** Those of them that have scratch memory, by its number. */
  readonly running: (Job | null)[] = Array.from({ length: UNIT_JOBS }, () => null);
  /** Commands that wait for blocks that one of them holds. */
  readonly held: Held[] = [];
  /** Commands that were carried out; and by the same ops what they moved, in bytes. */
  readonly latency = new RequestLatency();
  readonly movedBytes = new Float64Array(LATENCY_OPS.length);
  /** Reads, and writes, that the medium failed. */
  readErrors = 0;
  writeErrors = 0;
  /** How often START STOP UNIT started it when it was stopped. */
  starts = 0;
  /** 0 or 1 each, of the mode pages: WCE, D_SENSE, SWP. */
  writeCache = 1;
  descriptorSense = 0;
  softwareProtect = 0;
  readonly reservation = new Reservation();
  readonly buffers = new Buffers();
  /** Nothing can be written: 0 or 1. */
  readOnly: number;
  /** Blocks; a cell, because a field would be boxed above 2^31. */
  readonly blocks = new Float64Array(1);
  /** Nothing new is taken; it goes when nothing is under way. */
  leaving = false;
  /** As `ScsiVring.counts`, of this unit. */
  readonly counts = new Float64Array(COUNTS);
  errors = 0;
  lastError: LastError | null = null;
  failedFlush: number;
  toldErrorMs = -Infinity;
  /** The flush failed with an engine before this one: all others fail, too. */
  inheritsFailure: boolean;

  constructor(options: LunOptions) {
    const { index, target, lun, engine, blockBytes, serial, failedFlush = 0 } = options;
    this.index = index | 0;
    this.target = target;
    this.lun = lun;
    this.engine = engine;
    this.blockBytes = blockBytes | 0;
    this.serial = serial === '' ? `vring-${target}-${lun}` : serial;
    this.readOnly = engine.readOnly ? 1 : 0;
    this.failedFlush = failedFlush;
    this.inheritsFailure = failedFlush !== 0;
    this.setSize(engine.sizeBytes);
    if (options.state !== undefined) this.load(options.state);
  }

  get part(): number {
    return this.target * 256 + this.lun;
  }

  /** What does not fill a block at the end is not there. */
  setSize(sizeBytes: number): void {
    this.blocks[0] = Math.floor(sizeBytes / this.blockBytes);
  }

  get isCongested(): boolean {
    return this.submitted < this.io.count;
  }

  /** There are jobs, or what waits for them. */
  get isWorking(): boolean {
    return this.jobs.length > 0 || this.held.length > 0;
  }

  /** Room for one more request of so many segments in `io`. */
  hasRoom(segments: number): boolean {
    const { io } = this;
    if (!this.isCongested) {
      io.clear();
      this.submitted = 0;
    }
    return io.count < io.capacity && io.segments + segments <= io.segCapacity;
  }

  /** Takes one attention away; its sense, or 0. */
  takeAttention(): number {
    const lowest = this.state & ATTENTIONS & -(this.state & ATTENTIONS);
    if (lowest === 0) return 0;
    this.state &= ~lowest;
    return ATTENTION_SENSE.get(lowest) as number;
  }

  /** As after power on: another initiator comes. */
  reset(attention: number): void {
    this.state = attention | (this.state & (HOLDING | PARKED));
    this.writeCache = 1;
    this.descriptorSense = 0;
    this.protect(0);
    this.reservation.reset(attention === ATTENTION_POWER_ON);
    this.buffers.clear();
  }

  /** False: commands are under way, ask again. Afterwards nothing uses its engine. */
  park(): boolean {
    this.state |= PARKED;
    return this.underWay === 0 && this.engine.pending === 0;
  }

  /**
   * Goes on with another engine, after `park`, and counts anew. `failedFlush` 0: what was lost is
   * forgotten.
   */
  unpark(engine: Engine, failedFlush: number): void {
    this.engine = engine;
    this.counts.fill(0);
    this.latency.clear();
    this.readErrors = this.writeErrors = this.errors = 0;
    this.lastError = null;
    this.state &= ~PARKED;
    this.failedFlush = failedFlush;
    this.inheritsFailure = failedFlush !== 0;
    this.protect(this.softwareProtect);
    this.setSize(engine.sizeBytes);
  }

  save(): LunState {
    const { writeCache, descriptorSense, softwareProtect } = this;
    const attentions = this.state & (ATTENTIONS | STOPPED);
    const reservation = this.reservation.save();
    return { attentions, writeCache, descriptorSense, softwareProtect, reservation };
  }

  load(state: LunState): void {
    this.state = (state.attentions & (ATTENTIONS | STOPPED)) | (this.state & (HOLDING | PARKED));
    this.writeCache = state.writeCache;
    this.descriptorSense = state.descriptorSense;
    this.protect(state.softwareProtect);
    this.reservation.load(state.reservation);
  }

  protect(softwareProtect: number): void {
    this.softwareProtect = softwareProtect;
    this.readOnly = this.engine.readOnly || softwareProtect !== 0 ? 1 : 0;
  }
}

/** Commands are answered with TASK SET FULL, or wait at their driver. */
export const isParked = (lun: Lun): boolean => (lun.state & PARKED) !== 0;

export const isStopped = (lun: Lun): boolean => (lun.state & STOPPED) !== 0;
