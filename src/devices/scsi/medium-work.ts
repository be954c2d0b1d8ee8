/**
 * Commands that read the medium and go by what they find (VERIFY with data, COMPARE AND WRITE, GET
 * LBA STATUS) or that write what is not in the guest's memory as it is (WRITE SAME, WRITE AND
 * VERIFY). Each is a *job*: its requests go to the unit's engine one after the other, among those
 * of everybody else, and nobody waits for them.
 *
 * A job that changes the medium *holds* its blocks from its arrival to its end: that makes COMPARE
 * AND WRITE atomic. It begins when what changes the unit and came before it has ended, as far as it
 * holds the same blocks or is no job; and what comes after it and changes any of these blocks waits
 * for its end, before an engine has seen it. So everybody waits for those who came before, and
 * nobody in a circle. Reads do not wait.
 *
 * While a unit holds blocks, HOLDING is in its `state`: READ and WRITE take the way of all other
 * commands, and the loop that they take otherwise asks nothing that it did not ask before.
 */
import { arena, releaseRegion, retainRegion, zeroArenaPages } from '../../sys/index.ts';
import { IO_FLUSH, IO_READ, type IoBatch } from '../../storage/index.ts';
import type { Command } from './command.ts';
import { MAX_LUNS, UNIT_JOBS, WORK_BYTES } from './limits.ts';
import { HOLDING, type Lun } from './lun.ts';
import {
  type Held,
  Job,
  type JobOptions,
  type Scratch,
  type Step,
  type Task,
} from './medium-job.ts';
import { COUNT_UNMAP, COUNT_WRITE, KIND_TAKEN } from './scsi-vring.ts';

/** WORK_MEMORY_BYTES of private memory, made by the main thread, which alone can. */
export type WorkMemory = { readonly offset: number; readonly handle: number };

/** What the device does for its jobs. */
export type WorkHost = {
  /** Commands of the unit that are under way. */
  tasks(lun: Lun): Task[];
  /** Nobody wants it any more: it was aborted, or its ring or memory is gone. */
  isVoid(task: Task, id: number): boolean;
  /** `count` of what the row had pending has ended. */
  ended(task: Task, id: number, lun: Lun, count: number): void;
};

export class MediumWork {
  readonly #offset: number;
  readonly #handle: number;
  readonly #host: WorkHost;
  /** Since `advance` looked last. */
  #hasEnded = false;

  constructor({ offset, handle }: WorkMemory, host: WorkHost) {
    this.#offset = offset;
    this.#handle = handle;
    this.#host = host;
    retainRegion(handle);
  }

  close(): void {
    releaseRegion(this.#handle);
  }

  /** Somewhere for data to go that nobody wants; no job's scratch memory. */
  sink(sizeBytes: number): [number, number][] {
    return repeated(this.#offset + MAX_LUNS * UNIT_JOBS * WORK_BYTES, sizeBytes);
  }

  /** Commands of the unit that are being carried out. */
  tasks(lun: Lun): Task[] {
    return this.#host.tasks(lun).filter(({ flight, row }) => flight.kind[row] !== KIND_TAKEN);
  }

  /** `command` stays as it is. The job begins at the next `advance`, or a later one. */
  add(command: Command, options: JobOptions): void {
    const lun = command.unit;
    const { holds, after = [] } = options;
    const blockers = holds === undefined ? [] : lun.jobs.filter((job) => job.holds(holds));
    const changes = holds === undefined ? [] : this.tasks(lun).filter(isChange);
    lun.jobs.push(new Job(command, options, [...after, ...changes], blockers));
    noteHolding(lun);
  }

  /**
   * The rows that the command added to the unit's batch are taken back, if one of them changes what
   * a job holds.
   */
  hold(lun: Lun, { flight, row, idBase }: Command): void {
    const { io } = lun;
    const requests: Step[] = [];
    for (let at = lun.batchAt; at < io.count; at++) requests.push(stepOf(io, at));
    const changes = requests.filter(({ op }) => op !== IO_READ && op !== IO_FLUSH);
    const blockers = lun.jobs.filter((job) => changes.some((step) => job.holds(step)));
    if (blockers.length === 0) return;
    io.segments = io.segFirst[lun.batchAt]!;
    io.count = lun.batchAt;
    lun.held.push({ flight, row, id: idBase + row, requests, blockers });
  }

  /** The engine is done with what job number `slot` gave it last. */
  resume(lun: Lun, slot: number, status: number): void {
    this.#step(lun, lun.running[slot] as Job, status);
  }

  /** Begins what has waited long enough: adds to the unit's batch. */
  advance(lun: Lun): void {
    // What ends here is not seen to end by anybody who comes later, and others may wait for it.
    do {
      this.#hasEnded = false;
      for (const held of lun.held.splice(0)) {
        if (!this.#release(lun, held)) lun.held.push(held);
      }
      for (const job of lun.jobs.slice()) {
        if (job.step !== null) this.#offer(lun, job, job.step);
        else if (job.slot < 0) this.#start(lun, job);
      }
    } while (this.#hasEnded);
  }

  /** False: it goes on waiting. */
  #release(lun: Lun, held: Held): boolean {
    const { requests, id } = held;
    if (this.#host.isVoid(held, id)) {
      this.#hasEnded = true;
      this.#host.ended(held, id, lun, requests.length);
      return true;
    }
    if (held.blockers.some((job) => !job.hasEnded)) return false;
    for (let step = requests[0]; step !== undefined; step = requests[0]) {
      if (!lun.hasRoom(step.segments.length)) return false;
      addStep(lun, step, id);
      requests.shift();
    }
    return true;
  }

  #start(lun: Lun, job: Job): void {
    const { steps } = job.options;
    if (this.#host.isVoid(job.command, job.command.idBase)) return this.#end(lun, job);
    if (!job.isFree) return;
    if (steps === undefined) return this.#end(lun, job);
    const slot = lun.running.indexOf(null);
    if (slot < 0) return;
    lun.running[slot] = job;
    job.slot = slot;
    job.steps = steps(job.command, this.#scratch(lun, slot));
    this.#step(lun, job, 0);
  }

  /** `status`: of its last step. */
  #step(lun: Lun, job: Job, status: number): void {
    const { command, steps } = job;
    if (this.#host.isVoid(command, command.idBase)) return this.#end(lun, job);
    const { done, value } = steps!.next(status);
    if (done === true) return this.#end(lun, job);
    // What was read from memory that is gone by now must not reach the medium.
    if (this.#host.isVoid(command, command.idBase)) this.#end(lun, job);
    else this.#offer(lun, job, value);
  }

  #offer(lun: Lun, job: Job, step: Step): void {
    const hasRoom = lun.hasRoom(step.segments.length);
    job.step = hasRoom ? null : step;
    if (hasRoom) addStep(lun, step, idOfSlot(job.slot));
  }

  #end(lun: Lun, job: Job): void {
    lun.jobs.splice(lun.jobs.indexOf(job), 1);
    job.hasEnded = this.#hasEnded = true;
    job.step = null;
    if (job.slot >= 0) {
      lun.running[job.slot] = null;
      zeroArenaPages(this.#place(lun, job.slot), WORK_BYTES);
    }
    noteHolding(lun);
    this.#host.ended(job.command, job.command.idBase, lun, 1);
  }

  #scratch(lun: Lun, slot: number): Scratch {
    const offset = this.#place(lun, slot);
    return { offset, bytes: arena().bytes.subarray(offset, offset + WORK_BYTES) };
  }

  #place(lun: Lun, slot: number): number {
    return this.#offset + (lun.index * UNIT_JOBS + slot) * WORK_BYTES;
  }
}

/** Ids of engine requests that belong to no row, whose ids go from 0 on; and back. */
const idOfSlot = (slot: number): number => -1 - slot;
export const slotOfId = (id: number): number => -1 - id;

/** WORK_BYTES at `offset`, as often as they fit. */
export function repeated(offset: number, sizeBytes: number): [number, number][] {
  const list: [number, number][] = [];
  for (let left = sizeBytes; left > 0; left -= WORK_BYTES) {
    list.push([offset, Math.min(left, WORK_BYTES)]);
  }
  return list;
}

/** A job says itself what it changes. */
function isChange({ flight, row }: Task): boolean {
  return flight.kind[row] === COUNT_WRITE || flight.kind[row] === COUNT_UNMAP;
}

function noteHolding(lun: Lun): void {
  const isHolding = lun.jobs.some((job) => job.options.holds !== undefined);
  lun.state = isHolding ? lun.state | HOLDING : lun.state & ~HOLDING;
}

function addStep(lun: Lun, { op, at, sizeBytes, segments, flags }: Step, id: number): void {
  lun.io.id[lun.io.add(op, at, sizeBytes, segments, flags)] = id;
}

function stepOf(io: IoBatch, row: number): Step {
  const first = io.segFirst[row]!;
  const segments = Array.from({ length: io.segCount[row]! }, (_, i): [number, number] => {
    return [io.segOffset[first + i]!, io.segLen[first + i]!];
  });
  const [op, at, sizeBytes] = [io.op[row]!, io.at[row]!, io.size[row]!];
  return { op, at, sizeBytes, segments, flags: io.flags[row]! };
}
