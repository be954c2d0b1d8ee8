/** One logical unit: a disk behind an engine, and what its driver has set and not yet been told. */
import { BATCH, BATCH_SEGMENTS } from '../../base/limits.ts';
import { type Engine, IoBatch, IoDone, MAX_IO_RANGES } from '../../storage/index.ts';
import * as scsi from '../../wire/scsi.ts';

// Unit attentions, bits of `Lun.state`; the lowest is reported first.
export const ATTENTION_POWER_ON = 1;
export const ATTENTION_NEXUS_LOSS = 2;
export const ATTENTION_RESET = 4;
export const ATTENTION_CAPACITY = 8;
export const ATTENTION_LUNS = 16;
const ATTENTIONS = 31;
/** START STOP UNIT stopped it. */
export const STOPPED = 256;

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
};

export class Lun {
  readonly index: number;
  readonly target: number;
  readonly lun: number;
  readonly engine: Engine;
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
  /** Attentions and STOPPED; 0: commands are carried out without further ado. */
  state = ATTENTION_POWER_ON;
  /** 0 or 1 each, of the mode pages: WCE, D_SENSE, SWP. */
  writeCache = 1;
  descriptorSense = 0;
  softwareProtect = 0;
  /** Nothing can be written: 0 or 1. */
  readOnly: number;
  /** Blocks; a cell, because a field would be boxed above 2^31. */
  readonly blocks = new Float64Array(1);
  /** Nothing new is taken; it goes when nothing is under way. */
  leaving = false;

  constructor(options: LunOptions) {
    const { index, target, lun, engine, blockBytes, serial } = options;
    this.index = index | 0;
    this.target = target;
    this.lun = lun;
    this.engine = engine;
    this.blockBytes = blockBytes | 0;
    this.serial = serial === '' ? `vring-${target}-${lun}` : serial;
    this.readOnly = engine.readOnly ? 1 : 0;
    this.setSize(engine.sizeBytes);
  }

  /** What does not fill a block at the end is not there. */
  setSize(sizeBytes: number): void {
    this.blocks[0] = Math.floor(sizeBytes / this.blockBytes);
  }

  get isCongested(): boolean {
    return this.submitted < this.io.count;
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
    this.state = attention;
    this.writeCache = 1;
    this.descriptorSense = 0;
    this.protect(0);
  }

  protect(softwareProtect: number): void {
    this.softwareProtect = softwareProtect;
    this.readOnly = this.engine.readOnly || softwareProtect !== 0 ? 1 : 0;
  }
}
