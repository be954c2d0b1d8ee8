/**
 * The control queue: task management, and notifications, of which a disk has none. Virtio 1.2,
 * 5.6.6.2; SAM-5 7 for what the functions mean.
 *
 * A request that an engine has cannot be taken from it: a function that ends requests marks them,
 * so that their answer is that they were ended, and is answered itself when the last of them was.
 * What it promises, that nothing of them happens any more, is true then.
 */
import { arena } from '../../sys/index.ts';
import type { ChainBatch } from '../../virtqueue/chain-batch.ts';
import * as virtio from '../../wire/virtio-scsi.ts';
import type { CommandRules } from './command-rules.ts';
import { scatter } from './respond-slowly.ts';
import { ATTENTION_NEXUS_LOSS, ATTENTION_RESET, type Lun } from './lun.ts';
import type { Task } from './medium-job.ts';
import { COUNT_TASKS, type ScsiFlight, type ScsiVring } from './scsi-vring.ts';

const {
  VIRTIO_SCSI_S_OK: COMPLETE,
  VIRTIO_SCSI_S_ABORTED: ABORTED,
  VIRTIO_SCSI_S_BAD_TARGET: BAD_TARGET,
  VIRTIO_SCSI_S_RESET: RESET,
  VIRTIO_SCSI_S_FAILURE: FAILURE,
  VIRTIO_SCSI_S_FUNCTION_SUCCEEDED: SUCCEEDED,
  VIRTIO_SCSI_S_FUNCTION_REJECTED: REJECTED,
  VIRTIO_SCSI_S_INCORRECT_LUN: INCORRECT_LUN,
} = virtio;

/** The longest of the requests. */
const REQUEST_BYTES = virtio.ScsiTaskRequest.size;

/** A function that waits for commands to end. */
type Waiting = { readonly flight: ScsiFlight; readonly row: number; tasks: Task[] };

type Address = { readonly target: number; readonly lun: Lun | null; readonly isThere: boolean };

export class Tasks {
  readonly #rules: CommandRules;
  /** Of the request queues. */
  readonly #vrings: () => readonly (ScsiVring | null)[];
  #waiting: Waiting[] = [];
  readonly #arena = arena();

  constructor(rules: CommandRules, vrings: () => readonly (ScsiVring | null)[]) {
    this.#rules = rules;
    this.#vrings = vrings;
  }

  get isWaiting(): boolean {
    return this.#waiting.length > 0;
  }

  /** Carries the rows of a batch of the control queue out; some may go on waiting. */
  start(vring: ScsiVring, flight: ScsiFlight): void {
    for (let row = 0; row < flight.count; row++) {
      vring.counts[COUNT_TASKS]!++;
      flight.pending[row] = 1;
      const request = readRequest(flight.chains, row, this.#arena.view);
      const tasks = this.#carryOut(flight, row, request);
      if (tasks.length > 0) this.#waiting.push({ flight, row, tasks });
      else flight.pending[row] = 0;
    }
    flight.touched = true;
  }

  /** Commands have ended: functions that wait for none any more are done. True: there are some. */
  look(): boolean {
    let isDone = false;
    this.#waiting = this.#waiting.filter((waiting) => {
      waiting.tasks = waiting.tasks.filter(({ flight, row }) => flight.pending[row]! > 0);
      if (waiting.tasks.length > 0) return true;
      waiting.flight.pending[waiting.row] = 0;
      waiting.flight.touched = true;
      isDone = true;
      return false;
    });
    return isDone;
  }

  /** Writes the answer of each row that has one. */
  static respond(flight: ScsiFlight, view: DataView): void {
    const { chains } = flight;
    for (let row = 0; row < flight.count; row++) {
      if (flight.pending[row] !== 0) continue;
      const bytes = new Uint8Array(flight.bytes[row]!);
      bytes[bytes.length - 1] = flight.response[row]!;
      const size = Math.min(bytes.length, chains.writeBytes[row]!);
      const first = chains.segFirst[row]! + chains.readSegs[row]!;
      scatter(chains, first, 0, bytes, size, view);
      chains.written[row] = size;
    }
  }

  /** Returns what must end first. */
  #carryOut(flight: ScsiFlight, row: number, request: Uint8Array): Task[] {
    const type = new DataView(request.buffer).getUint32(0, true);
    const isTask = type === virtio.VIRTIO_SCSI_T_TMF;
    const isNotify =
      type === virtio.VIRTIO_SCSI_T_AN_QUERY || type === virtio.VIRTIO_SCSI_T_AN_SUBSCRIBE;
    flight.bytes[row] = isNotify ? virtio.ScsiNotifyResponse.size : 1;
    flight.response[row] = FAILURE;
    if (isTask && request.length >= virtio.ScsiTaskRequest.size) {
      return this.#manage(flight, row, virtio.ScsiTaskRequest.decode(request));
    }
    if (isNotify && request.length >= virtio.ScsiNotifyRequest.size) {
      // No event that can be subscribed to is one of disks: none is actually reported.
      const { lun } = virtio.ScsiNotifyRequest.decode(request);
      flight.response[row] = this.#find(lun).isThere ? COMPLETE : BAD_TARGET;
    }
    return [];
  }

  #manage(flight: ScsiFlight, row: number, request: virtio.ScsiTaskRequest): Task[] {
    const { subtype, tag } = request;
    const { target, lun, isThere } = this.#find(request.lun);
    const respond = (response: number): Task[] => {
      flight.response[row] = response;
      return [];
    };
    if (!isThere) return respond(BAD_TARGET);
    if (subtype === virtio.VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET) {
      respond(COMPLETE);
      const units = this.#rules.luns.filter(
        (one) => one !== null && one.target === target,
      ) as Lun[];
      for (const unit of units) unit.reset(ATTENTION_NEXUS_LOSS);
      return units.flatMap((unit) => this.#end(unit, null, RESET));
    }
    if (lun === null) return respond(INCORRECT_LUN);
    switch (subtype) {
      case virtio.VIRTIO_SCSI_T_TMF_ABORT_TASK:
        respond(COMPLETE);
        return this.#end(lun, tag, ABORTED);
      case virtio.VIRTIO_SCSI_T_TMF_ABORT_TASK_SET:
      case virtio.VIRTIO_SCSI_T_TMF_CLEAR_TASK_SET:
        respond(COMPLETE);
        return this.#end(lun, null, ABORTED);
      case virtio.VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET:
        respond(COMPLETE);
        lun.reset(ATTENTION_RESET);
        return this.#end(lun, null, RESET);
      case virtio.VIRTIO_SCSI_T_TMF_QUERY_TASK:
        return respond(this.#tasks(lun, tag).length > 0 ? SUCCEEDED : COMPLETE);
      case virtio.VIRTIO_SCSI_T_TMF_QUERY_TASK_SET:
        return respond(this.#tasks(lun, null).length > 0 ? SUCCEEDED : COMPLETE);
      default: // CLEAR ACA among them, as SAM-5 7.4 wants it of who has none (NORMACA is 0)
        return respond(REJECTED);
    }
  }

  /** `target` without such a unit: `lun` is null. */
  #find(address: Uint8Array): Address {
    const [one, target, high, low] = address as unknown as [number, number, number, number];
    const isThere = one === 1 && this.#rules.unitsOfTarget[target]! > 0;
    const method = high >> 6;
    const number = ((high & 0x3f) << 8) | low;
    const index =
      isThere && method < 2 && number < 256 ? this.#rules.table[target * 256 + number]! : -1;
    return { target, lun: index < 0 ? null : this.#rules.luns[index]!, isThere };
  }

  #end(lun: Lun, tag: bigint | null, response: number): Task[] {
    const tasks = this.#tasks(lun, tag);
    for (const { flight, row } of tasks) flight.aborted[row] = response;
    return tasks;
  }

  /** Commands of the unit that are under way; of this tag, or all. */
  #tasks(lun: Lun, tag: bigint | null): Task[] {
    const tasks = tasksOf(this.#vrings(), lun);
    if (tag === null) return tasks;
    const [lo, hi] = [Number(tag & 0xffff_ffffn) | 0, Number(tag >> 32n) | 0];
    return tasks.filter(({ flight, row }) => flight.tagLo[row] === lo && flight.tagHi[row] === hi);
  }
}

/** Commands of the unit that are under way. */
export function tasksOf(vrings: readonly (ScsiVring | null)[], lun: Lun): Task[] {
  const found: Task[] = [];
  for (const vring of vrings) {
    for (const flight of vring?.flights ?? []) {
      for (let row = 0; flight.left > 0 && row < flight.count; row++) {
        if (flight.pending[row]! > 0 && flight.lun[row] === lun.index) found.push({ flight, row });
      }
    }
  }
  return found;
}

/** At most REQUEST_BYTES of it, copied. */
function readRequest(chains: ChainBatch, row: number, view: DataView): Uint8Array {
  const size = Math.min(chains.readBytes[row]!, REQUEST_BYTES);
  const bytes = new Uint8Array(size);
  let seg = chains.segFirst[row]!;
  for (let done = 0, from = 0; done < size;) {
    if (from === chains.segLen[seg]!) {
      seg++;
      from = 0;
      continue;
    }
    bytes[done++] = view.getUint8(chains.segOffset[seg]! + from++);
  }
  return bytes;
}
