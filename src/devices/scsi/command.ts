/**
 * One command that is no READ or WRITE while it is carried out: its CDB, its data, its answer.
 * There is one object of it per device, pointed at one row after another; a command that goes on
 * has a copy.
 */
import { arena } from '../../sys/index.ts';
import { IO_FLUSH } from '../../storage/index.ts';
import {
  SENSE_LBA,
  SENSE_WRITE_PROTECTED,
  STATUS_CHECK_CONDITION,
  STATUS_RESERVATION_CONFLICT,
  STATUS_TASK_SET_FULL,
} from '../../wire/scsi.ts';
import { VIRTIO_SCSI_S_OVERRUN, VIRTIO_SCSI_S_TARGET_FAILURE } from '../../wire/virtio-scsi.ts';
import type { CommandRules } from './command-rules.ts';
import { scatter } from './respond-slowly.ts';
import { CMD_PER_LUN } from './limits.ts';
import type { Lun } from './lun.ts';
import type { JobOptions } from './medium-job.ts';
import type { MediumWork } from './medium-work.ts';
import { NONE } from './sense.ts';
import { ScsiFlight } from './scsi-vring.ts';

export class Command {
  readonly rules: CommandRules;
  readonly work: MediumWork;
  flight = new ScsiFlight(0);
  row = 0;
  /** First of the ids of its flight. */
  idBase = 0;
  /** Null: the target has no such unit, or it is the REPORT LUNS unit. */
  lun: Lun | null = null;
  target = 0;
  cdb = new DataView(new ArrayBuffer(16));
  readonly #arena = arena();

  constructor(rules: CommandRules, work: MediumWork) {
    this.rules = rules;
    this.work = work;
  }

  /** Bytes of data-out, and room for data-in; one of them is 0. */
  get outBytes(): number {
    return this.flight.chains.readBytes[this.row]! - this.rules.headerBytes;
  }

  get inBytes(): number {
    return this.flight.chains.writeBytes[this.row]! - this.rules.responseBytes;
  }

  /** Of a command that only a unit gets. */
  get unit(): Lun {
    return this.lun as Lun;
  }

  u8(at: number): number {
    return this.cdb.getUint8(at);
  }

  u16(at: number): number {
    return this.cdb.getUint16(at);
  }

  u32(at: number): number {
    return this.cdb.getUint32(at);
  }

  /** Rounded above 2^53, where no block is. */
  u64(at: number): number {
    return Number(this.cdb.getBigUint64(at));
  }

  set kind(kind: number) {
    this.flight.kind[this.row] = kind;
  }

  /** Ends with CHECK CONDITION. `field`: a byte of the CDB, with IN_PARAMETERS of the data. */
  fail(sense: number, field = NONE, information = NONE): void {
    const { flight, row } = this;
    flight.status[row] = STATUS_CHECK_CONDITION;
    flight.sense[row] = sense;
    flight.field[row] = field;
    flight.information[row] = information;
  }

  /** Ends with TASK SET FULL: the driver sends it again. */
  refuse(): void {
    this.flight.status[this.row] = STATUS_TASK_SET_FULL;
  }

  /** Ends with RESERVATION CONFLICT. */
  conflict(): void {
    this.flight.status[this.row] = STATUS_RESERVATION_CONFLICT;
  }

  respond(response: number): void {
    this.flight.response[this.row] = response;
  }

  /** Data-in: what was allocated for it in the CDB may be less, and the rest is left out. */
  answer(bytes: Uint8Array, allocatedBytes: number): void {
    const { flight, row } = this;
    const size = Math.min(bytes.length, allocatedBytes);
    if (size > this.inBytes) {
      this.respond(VIRTIO_SCSI_S_OVERRUN);
      flight.residual[row] = 0;
      return;
    }
    const { chains } = flight;
    const first = chains.segFirst[row]! + chains.readSegs[row]!;
    scatter(chains, first, this.rules.responseBytes, bytes, size, this.#arena.view);
    flight.bytes[row] = size;
    flight.residual[row] = this.inBytes - size;
  }

  /** The first bytes of data-out, copied; null: the driver gave fewer, and that is the answer. */
  parameters(sizeBytes: number): Uint8Array | null {
    if (!this.needsOut(sizeBytes)) return null;
    const bytes = new Uint8Array(sizeBytes);
    let at = 0;
    this.eachOut(0, sizeBytes, (from, len) => {
      bytes.set(this.#arena.bytes.subarray(from, from + len), at);
      at += len;
    });
    return bytes;
  }

  /** False: there is less data-out than that, and that is the answer. */
  needsOut(sizeBytes: number): boolean {
    const { flight, row } = this;
    if (this.outBytes < sizeBytes) {
      this.respond(VIRTIO_SCSI_S_OVERRUN);
      flight.residual[row] = 0;
      return false;
    }
    flight.bytes[row] = sizeBytes;
    flight.residual[row] = this.outBytes + Math.max(this.inBytes, 0) - sizeBytes;
    return true;
  }

  /** Calls with the pieces of data-out, arena offset and length, of bytes [skip, skip + size). */
  eachOut(skip: number, sizeBytes: number, piece: (from: number, len: number) => void): void {
    const { chains } = this.flight;
    let seg = chains.segFirst[this.row]!;
    let from = skip + this.rules.headerBytes;
    for (let left = sizeBytes; left > 0; seg++) {
      const len = chains.segLen[seg]!;
      if (from >= len) {
        from -= len;
        continue;
      }
      const here = Math.min(len - from, left);
      piece(chains.segOffset[seg]! + from, here);
      left -= here;
      from = 0;
    }
  }

  /**
   * Gives a request to the unit's engine; the command ends when all of them have. `segments`: arena
   * offsets and lengths. False: the unit has no room, and that is the answer.
   */
  submit(
    op: number,
    at: number,
    sizeBytes: number,
    flags = 0,
    segments: readonly (readonly [offset: number, len: number])[] = [],
  ): boolean {
    const { flight, row, unit: lun } = this;
    if (!lun.hasRoom(segments.length)) {
      // Its first request: while a row is carried out, 1 is pending.
      if (flight.pending[row] === 1) this.refuse();
      else this.respond(VIRTIO_SCSI_S_TARGET_FAILURE);
      return false;
    }
    if (!this.#occupy()) return false;
    const { io } = lun;
    const to = io.add(op, at, sizeBytes, segments, flags);
    io.id[to] = this.idBase + row;
    if (!lun.touched) {
      lun.touched = true;
      lun.batchAt = to;
      this.rules.touched[this.rules.touchedCount++] = lun.index;
    }
    return true;
  }

  /** Goes on beyond this call: see medium-work.ts. */
  begin(options: JobOptions): void {
    if (this.#occupy()) this.work.add(this.#copy(), options);
  }

  /** Something of the row is under way. False: the unit has as many rows as it takes. */
  #occupy(): boolean {
    const { flight, row, unit: lun } = this;
    if (flight.pending[row] === 1) {
      if (lun.underWay >= CMD_PER_LUN) {
        this.refuse();
        return false;
      }
      lun.underWay++;
    }
    flight.pending[row]!++;
    return true;
  }

  /** One that stays with its row. Its CDB is the next one's soon. */
  #copy(): Command {
    const copy = new Command(this.rules, this.work);
    copy.flight = this.flight;
    copy.row = this.row;
    copy.idBase = this.idBase;
    copy.lun = this.lun;
    copy.target = this.target;
    return copy;
  }

  /** What was written is durable when the command ends. */
  flush(): void {
    this.submit(IO_FLUSH, 0, 0);
  }

  /**
   * Judges a range of the medium. False: it is not all there, or `changes` and the unit may not be
   * changed, and that is the answer.
   */
  checkRange(lba: number, blocks: number, changes: boolean, field = NONE): boolean {
    const capacity = this.unit.blocks[0]!;
    if (lba > capacity || blocks > capacity - lba) this.fail(SENSE_LBA, field);
    else if (changes && this.unit.readOnly !== 0) this.fail(SENSE_WRITE_PROTECTED);
    else return true;
    return false;
  }
}
