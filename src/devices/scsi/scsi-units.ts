/**
 * All units of one SCSI device in its worker: their engines, and the rings whose commands they
 * carry out.
 *
 * A batch of chains becomes a *flight*, as for block devices; its READs and WRITEs go to the
 * engines of their units, batch-wise, all other commands are carried out one by one when the batch
 * has been read. A unit whose engine has no room answers TASK SET FULL, so it never holds up its
 * neighbours.
 */
import { assert } from '../../base/assert.ts';
import type { VringAttach } from '../../runtime/data-plane.ts';
import { type Engine, IO_EXTENTS, IO_READ, IO_WRITE } from '../../storage/index.ts';
import { putUsed, takeChains } from '../../virtqueue/device.hot.ts';
import { FAULT_CHAIN_SHORT } from '../../virtqueue/faults.ts';
import * as virtio from '../../wire/virtio-scsi.ts';
import { hasFeature, VIRTIO_F_VERSION_1 } from '../../wire/virtio.ts';
import { keepFailing } from '../disk/failed-flush.ts';
import { firstId, flightOfId, ringOfId } from '../disk/flight.ts';
import { RequestDevice, type RequestDeviceOptions } from '../disk/request-device.ts';
import { Command } from './command.ts';
import { CommandRules } from './command-rules.ts';
import { EventQueue } from './event-queue.ts';
import { noteDone, useCommands } from './finish-commands.hot.ts';
import { MAX_CDB_BYTES } from './limits.ts';
import {
  ATTENTION_CAPACITY,
  ATTENTION_LUNS,
  ATTENTION_POWER_ON,
  HOLDING,
  Lun,
  type LunOptions,
} from './lun.ts';
import { type Job, ringOf } from './medium-job.ts';
import { MediumWork, slotOfId, type WorkMemory } from './medium-work.ts';
import { execute } from './opcodes.ts';
import { readCommands, readTransfer } from './read-commands.hot.ts';
import { CDB_SIZE, resetSizes, SENSE_SIZE } from './scsi-device.ts';
import { COUNT_OTHER, type ScsiFlight, ScsiVring } from './scsi-vring.ts';
import { Tasks, tasksOf } from './tasks.ts';

const { VIRTIO_SCSI_CONTROLQ: CONTROL, VIRTIO_SCSI_EVENTQ: EVENTS } = virtio;
const CDB_AT = virtio.ScsiCommandRequest.size;

/** 2A/09, CAPACITY DATA HAS CHANGED, as `virtio_scsi_event.reason` has it. */
const CAPACITY_CHANGED = 0x2a | (0x09 << 8);

export type ScsiUnitsOptions = RequestDeviceOptions & {
  /** `ScsiDevice.sizes`. */
  readonly sizes: Int32Array;
  readonly work: WorkMemory;
};

export type UnitOptions = Omit<LunOptions, 'index'>;

export class ScsiUnits extends RequestDevice<ScsiFlight, ScsiVring> {
  readonly #rules = new CommandRules();
  readonly #work: MediumWork;
  readonly #command: Command;
  readonly #tasks = new Tasks(this.#rules, () => this.vrings.slice(virtio.VIRTIO_SCSI_REQUESTQ));
  readonly #events = new EventQueue();
  readonly #sizes: Int32Array;
  /** Acknowledged by the driver. */
  #features = 0n;

  constructor(options: ScsiUnitsOptions) {
    super(options);
    this.#sizes = options.sizes;
    this.#work = new MediumWork(options.work, {
      tasks: (lun) => tasksOf(this.vrings.slice(virtio.VIRTIO_SCSI_REQUESTQ), lun),
      isVoid: ({ flight, row }, id) => {
        const vring = this.vrings[ringOfId(id)] as ScsiVring;
        return flight.aborted[row] !== 0 || vring.fault !== 0 || this.memoryGone(vring);
      },
      ended: ({ flight, row }, id, lun, count) => {
        flight.pending[row]! -= count;
        if (flight.pending[row] === 0) lun.underWay--;
        this.land(this.vrings[ringOfId(id)] as ScsiVring, flight);
      },
    });
    this.#command = new Command(this.#rules, this.#work);
  }

  get units(): Lun[] {
    return this.#rules.luns.filter((lun) => lun !== null);
  }

  /** The caller has seen to it that there is room, and no such unit. */
  addUnit(options: UnitOptions): Lun {
    const { luns, table, unitsOfTarget } = this.#rules;
    const index = luns.indexOf(null);
    const { target, lun: number } = options;
    assert(index >= 0 && table[target * 256 + number] === -1, 'there is room for the unit');
    const lun = new Lun({ ...options, index });
    luns[index] = lun;
    table[target * 256 + number] = index;
    unitsOfTarget[target]!++;
    this.#lunsChanged(lun);
    this.#tell(lun, virtio.VIRTIO_SCSI_T_TRANSPORT_RESET, virtio.VIRTIO_SCSI_EVT_RESET_RESCAN);
    return lun;
  }

  find(target: number, lun: number): Lun | null {
    const found = this.#rules.luns.find((one) => one?.target === target && one.lun === lun);
    return found ?? null;
  }

  /** Nothing new is taken for it. True once nothing is under way, and it is gone. */
  removeUnit(lun: Lun): boolean {
    const { luns, table, unitsOfTarget } = this.#rules;
    if (!lun.leaving) {
      lun.leaving = true;
      table[lun.target * 256 + lun.lun] = -1;
      unitsOfTarget[lun.target]!--;
      this.#lunsChanged(lun);
      this.#tell(lun, virtio.VIRTIO_SCSI_T_TRANSPORT_RESET, virtio.VIRTIO_SCSI_EVT_RESET_REMOVED);
    }
    if (lun.underWay > 0 || lun.engine.pending > 0) return false;
    luns[lun.index] = null;
    return true;
  }

  /** Nothing new is taken, and drivers wait. True once nothing is under way, at no engine. */
  parkUnit(lun: Lun): boolean {
    const isParked = lun.park();
    if (isParked) return true;
    lun.engine.hurry?.();
    this.complete(lun.index);
    return lun.park();
  }

  /** With another engine, and perhaps with another size, of which its driver is told. */
  unparkUnit(lun: Lun, engine: Engine, failedFlush: number): void {
    const before = lun.blocks[0]!;
    lun.unpark(engine, failedFlush);
    if (lun.blocks[0] !== before) this.#sizeChanged(lun);
  }

  /** Of a smaller unit nothing is under way any more: a write would make its file larger again. */
  resizeUnit(lun: Lun, sizeBytes: number): void {
    if (sizeBytes < lun.engine.sizeBytes) this.#settle(lun);
    lun.engine.resize(sizeBytes);
    lun.setSize(sizeBytes);
    this.#sizeChanged(lun);
  }

  #sizeChanged(lun: Lun): void {
    lun.state |= ATTENTION_CAPACITY;
    this.#tell(lun, virtio.VIRTIO_SCSI_T_PARAM_CHANGE, CAPACITY_CHANGED);
  }

  /** Events that the driver has not been told of; who serves it next says that some were missed. */
  get hasEvents(): boolean {
    return this.#events.isWaiting;
  }

  set missedEvents(missed: boolean) {
    if (missed) this.#events.miss();
  }

  attach(attach: VringAttach): ScsiVring {
    const { index, features } = attach;
    assert(this.vrings[index] === null, () => `vring ${index} of a SCSI device is attached`);
    const vring = new ScsiVring(attach, this.arena.buffer, index === EVENTS);
    this.vrings[index] = vring;
    this.#features = features;
    const [cdb, sense] = [CDB_SIZE, SENSE_SIZE].map((cell) => Atomics.load(this.#sizes, cell));
    this.#rules.setSizes(cdb!, sense!);
    this.iotlb.attach(attach);
    vring.start(false);
    return vring;
  }

  /** The session is over: the next driver finds everything as after power on. */
  reset(): void {
    resetSizes(this.#sizes);
    for (const lun of this.units) lun.reset(ATTENTION_POWER_ON);
    this.#events.clear();
    this.#features = 0n;
    this.iotlb.reset();
  }

  /** Event buffers wait for events; an event waits for a kick, or a look where there are none. */
  waits(vring: ScsiVring): boolean {
    if (vring.index === EVENTS) return vring.kickFd >= 0 || !this.#events.isWaiting;
    return vring.isFull;
  }

  work(vring: ScsiVring, nowMs: number): number {
    if (!vring.usable || vring.dueFault !== 0 || vring.draining) return 0;
    if (vring.index === EVENTS) return this.#deliver(vring);
    // All of it is work: engines that were given some are to be looked at.
    const others = vring.index === CONTROL ? this.#takeAll(nowMs) : 0;
    return others + this.#take(vring, nowMs);
  }

  complete(part: number): number {
    const lun = this.#rules.luns[part] as Lun;
    let completed = 0;
    for (let progress = true; progress;) {
      const reaped = this.#reap(lun);
      completed += reaped;
      if (lun.isWorking) this.#work.advance(lun);
      progress = (lun.isCongested && this.#submit(lun)) || reaped === lun.done.capacity;
    }
    if (this.#tasks.isWaiting && this.#tasks.look()) this.#landTasks();
    return completed;
  }

  settle(): void {
    for (const lun of this.units) this.#settle(lun);
  }

  #settle(lun: Lun): void {
    while (lun.engine.pending > 0 || lun.isCongested || lun.isWorking) {
      lun.engine.settle();
      this.complete(lun.index);
    }
  }

  protected override hurry(): void {
    for (const lun of this.units) {
      lun.engine.hurry?.();
      if (lun.isCongested) this.complete(lun.index);
    }
  }

  close(): void {
    this.#work.close();
  }

  protected use(vring: ScsiVring, flight: ScsiFlight): number {
    if (vring.index !== CONTROL) {
      const tookMs = performance.now() - flight.takenMs;
      return useCommands(vring, flight, this.#rules, this.arena.view, tookMs);
    }
    Tasks.respond(flight, this.arena.view);
    let used = 0;
    for (let row = 0; row < flight.count; row++) {
      if (flight.pending[row] !== 0) continue;
      putUsed(vring.queue, flight.chains, row, 1);
      flight.pending[row] = -1;
      used++;
    }
    flight.left -= used;
    return used;
  }

  /** One batch of the ring. */
  #take(vring: ScsiVring, nowMs: number): number {
    const flight = vring.board();
    if (flight === null) return 0;
    const taken = takeChains(vring.queue, flight.chains, flight.chains.capacity);
    if (taken <= 0) {
      vring.land(flight);
      if (taken < 0) vring.dueFault = taken;
      if (vring.busy === 0) this.breakDue(vring);
    } else {
      vring.chains += taken;
      flight.takenMs = nowMs;
      if (vring.index === CONTROL) this.#startTasks(vring, flight, taken);
      else this.#start(vring, flight, taken);
    }
    if (vring.queue.missed !== 0) this.iotlb.report(vring);
    return Math.max(taken, 0);
  }

  /** What a task function is about was sent before it: nothing of that is left in a ring. */
  #takeAll(nowMs: number): number {
    let taken = 0;
    for (let index = virtio.VIRTIO_SCSI_REQUESTQ; index < this.vrings.length; index++) {
      const vring = this.vrings[index] ?? null;
      if (vring === null) continue;
      vring.start(false);
      for (let some = -1; some !== 0; taken += some) some = this.work(vring, nowMs);
    }
    return taken;
  }

  #start(vring: ScsiVring, flight: ScsiFlight, taken: number): void {
    const rules = this.#rules;
    const base = firstId(vring.index, flight.number);
    const count = readCommands(flight, rules, this.arena.view, base);
    flight.count = flight.left = count;
    flight.touched = true;
    if (count < taken) vring.dueFault = FAULT_CHAIN_SHORT;
    // What was read from memory that is gone by now must not reach the medium.
    if (this.memoryGone(vring)) this.#forget(flight);
    this.#submitTouched();
    for (let i = 0; i < rules.deferredCount; i++) this.#execute(flight, i, base);
    if (flight.touched) this.land(vring, flight); // rows that needed no engine
  }

  #execute(flight: ScsiFlight, i: number, idBase: number): void {
    const [rules, command] = [this.#rules, this.#command];
    const row = rules.deferredRow[i]!;
    const at = i * MAX_CDB_BYTES;
    const { buffer } = rules.deferredCdb;
    command.flight = flight;
    command.row = row;
    command.idBase = idBase;
    command.target = rules.deferredTarget[i]!;
    command.lun = flight.lun[row]! < 0 ? null : rules.luns[flight.lun[row]!]!;
    command.cdb = new DataView(buffer, at, MAX_CDB_BYTES);
    flight.kind[row] = COUNT_OTHER;
    if (!execute(command)) {
      new Uint8Array(rules.scratch.buffer).set(rules.deferredCdb.subarray(at, at + 16), CDB_AT);
      readTransfer(flight, row, command.unit, rules, idBase);
    }
    const { lun } = command;
    if (lun !== null && lun.touched && (lun.state & HOLDING) !== 0) this.#work.hold(lun, command);
    flight.pending[row]!--;
    flight.touched = true;
    this.#submitTouched();
    if (lun !== null && lun.isWorking) this.complete(lun.index);
  }

  #startTasks(vring: ScsiVring, flight: ScsiFlight, taken: number): void {
    let count = 0;
    while (count < taken && flight.chains.writeBytes[count]! > 0) count++;
    flight.count = flight.left = count;
    if (count < taken) vring.dueFault = FAULT_CHAIN_SHORT;
    this.#tasks.start(vring, flight);
    this.land(vring, flight);
    // What waits and was ended need not wait any longer.
    for (const lun of this.units) if (lun.isWorking) this.complete(lun.index);
  }

  #landTasks(): void {
    const control = this.vrings[CONTROL] ?? null;
    if (control === null) return;
    for (const flight of control.flights) if (flight.touched) this.land(control, flight);
  }

  /** Gives the engines what the batch has for them, and takes what they have done already. */
  #submitTouched(): void {
    const rules = this.#rules;
    const count = rules.touchedCount;
    rules.touchedCount = 0;
    for (let i = 0; i < count; i++) {
      const lun = rules.luns[rules.touched[i]!] as Lun;
      lun.touched = false;
      this.#submit(lun);
      this.complete(lun.index);
    }
  }

  /** False: the engine had no room. */
  #submit(lun: Lun): boolean {
    const accepted = lun.engine.submit(lun.io, lun.submitted);
    lun.submitted += accepted;
    return accepted > 0;
  }

  #reap(lun: Lun): number {
    const { done } = lun;
    const count = lun.engine.reap(done);
    if (lun.failedFlush !== 0) keepFailing(done, lun, lun.inheritsFailure, lun.writeCache === 0);
    for (let i = 0; i < count; i++) {
      const id = done.id[i]!;
      if (id < 0) {
        this.#resume(lun, i);
        continue;
      }
      const vring = this.vrings[ringOfId(id)] as ScsiVring;
      if (noteDone(done, i, vring.flights[flightOfId(id)]!, lun) !== 0) {
        this.#failed(vring, lun, i);
      }
    }
    for (let i = 0; i < count; i++) {
      const id = done.id[i]!;
      if (id < 0) continue;
      const vring = this.vrings[ringOfId(id)] as ScsiVring;
      const flight = vring.flights[flightOfId(id)]!;
      if (flight.touched) this.land(vring, flight);
    }
    return count;
  }

  /** A job's request has completed, at `row` of `done`. */
  #resume(lun: Lun, row: number): void {
    const { done } = lun;
    const slot = slotOfId(done.id[row]!);
    const status = done.status[row]!;
    if (status !== 0 && done.op[row] !== IO_EXTENTS) {
      this.#failed(this.vrings[ringOf(lun.running[slot] as Job)] as ScsiVring, lun, row);
    }
    this.#work.resume(lun, slot, status);
  }

  #failed(vring: ScsiVring, lun: Lun, row: number): void {
    const op = lun.done.op[row];
    if (op === IO_READ) lun.readErrors++;
    else if (op === IO_WRITE) lun.writeErrors++;
    this.failed(vring, lun.done, row, lun);
  }

  /** Rows of the batch that no engine has seen: they are dropped with their ring. */
  #forget(flight: ScsiFlight): void {
    const rules = this.#rules;
    for (let i = 0; i < rules.touchedCount; i++) {
      const lun = rules.luns[rules.touched[i]!] as Lun;
      lun.touched = false;
      lun.io.count = lun.batchAt;
    }
    for (let row = 0; row < flight.count; row++) {
      if (flight.pending[row]! > 0 && flight.lun[row]! >= 0) {
        const isDeferred = rules.deferredRow.subarray(0, rules.deferredCount).includes(row);
        if (!isDeferred) (rules.luns[flight.lun[row]!] as Lun).underWay--;
      }
      flight.pending[row] = 0;
    }
    rules.touchedCount = rules.deferredCount = 0;
  }

  #deliver(vring: ScsiVring): number {
    const count = this.#events.deliver(vring);
    if (vring.queue.missed !== 0) this.iotlb.report(vring);
    if (count < 0) {
      vring.dueFault = count;
      this.breakDue(vring);
      return 0;
    }
    vring.notify();
    return count;
  }

  /** Tells the driver, where there is one that listens. */
  #tell(lun: Lun, event: number, reason: number): void {
    const vring = this.vrings[EVENTS] ?? null;
    if (vring === null || !this.#wants(event)) return;
    this.#events.add({ event, target: lun.target, lun: lun.lun, reason });
    vring.start(false);
    if (vring.usable && !vring.draining) this.#deliver(vring);
  }

  /**
   * A front-end that passes no device features on, as QEMU up to 7.2 does with CHANGE, does not say
   * VERSION_1 either: then the driver is told, which may have them all the same.
   */
  #wants(event: number): boolean {
    const isChange = event === virtio.VIRTIO_SCSI_T_PARAM_CHANGE;
    const bit = isChange ? virtio.VIRTIO_SCSI_F_CHANGE : virtio.VIRTIO_SCSI_F_HOTPLUG;
    return hasFeature(this.#features, bit) || !hasFeature(this.#features, VIRTIO_F_VERSION_1);
  }

  /** Whoever comes later finds out by himself. */
  #lunsChanged(changed: Lun): void {
    if (this.vrings.every((vring) => vring === null)) return;
    for (const lun of this.units) {
      if (lun !== changed && lun.target === changed.target) lun.state |= ATTENTION_LUNS;
    }
  }
}
