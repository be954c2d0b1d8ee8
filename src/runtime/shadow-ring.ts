/**
 * One vring with a ring of ours between its driver and its device. As QEMU's shadow virtqueue.
 *
 * Theory of operation. Towards the driver we are the device: chains are taken from its ring and
 * put, with their buffers' guest-physical addresses, into the shadow ring, whose driver we are; the
 * device works on the guest's buffers as before, and knows nothing of the guest's ring. What it has
 * used is put into the guest's ring by us, and so we know which pages it wrote.
 *
 * Two eventfds of the guest's (kick, call) and two of ours stand at the ends. A turn moves batches
 * both ways until there is nothing more, asks both sides for notifications, and looks once more;
 * one that finds too much work goes on in the next turn of the event loop. While the shadow ring is
 * full the driver is not asked to kick: the device's next call goes on.
 *
 * A driver that breaks virtio breaks this ring; a device that does so ends the back-end.
 */
import { VringError } from '../base/errors.ts';
import { BATCH, BATCH_SEGMENTS } from '../base/limits.ts';
import type { AddressMap } from '../memory/index.ts';
import {
  arena,
  createEventfd,
  drainEventfd,
  type Fd,
  type Poll,
  pollFd,
  signalEventfd,
  signalForeignEventfd,
} from '../sys/index.ts';
import type { QueueLog } from '../virtqueue/dirty-log.ts';
import {
  addChains,
  disableCalls,
  DriverBatch,
  DriverQueue,
  enableCalls,
  needsKick,
  publish,
  reapUsed,
  tableBytes,
  UsedBatch,
} from '../virtqueue/driver/index.ts';
import {
  ChainBatch,
  DeviceQueue,
  disableKicks,
  enableKicks,
  FAULT_CHAIN_TOO_LONG,
  FAULT_MEMORY_GONE,
  faultName,
  needsCall,
  putUsed,
  ringBase,
  takeChains,
  untakeChains,
  type VringConfig,
} from '../virtqueue/index.ts';
import { PACKED_BASE_FRESH, ringLayout } from '../wire/virtio.ts';
import { ShadowChains } from './shadow-chains.ts';
import type { ShadowArea, ShadowMemory } from './shadow-memory.ts';

export type ShadowRingSetup = {
  readonly index: number;
  /** The guest's ring. */
  readonly config: VringConfig;
  readonly map: AddressMap;
  readonly log: QueueLog | null;
  readonly memory: ShadowMemory;
  /** eventfds of the driver, lent as long as the ring lives; null: it polls. */
  readonly kick: number | null;
  readonly call: number | null;
  readonly err: number | null;
  /** The device broke virtio. */
  readonly onDeviceFault: (error: VringError) => void;
};

/** Descriptors of an indirect table: a longer chain goes into the shadow ring itself. */
const TABLE_ENTRIES = 32;
const BATCHES_PER_TURN = 8;
/** How long a device may take to finish older chains than those that it has finished. */
const DRAIN_MS = 1000;
/** For a driver that never kicks. */
const POLL_MS = 1;

/** Bytes of memory of ours that the shadow of a ring takes. */
export function shadowBytes(config: Omit<VringConfig, 'base'>): number {
  const { size, packed, indirect } = config;
  return ringLayout(size, packed).totalBytes + tableBytes(size, indirect ? TABLE_ENTRIES : 0);
}

export class ShadowRing {
  /** Ours, for the device. */
  readonly deviceKick: Fd;
  readonly deviceCall: Fd;
  /** Base at which the device begins: the shadow ring is new. */
  readonly freshBase: number;
  call: number | null;
  err: number | null;

  readonly #setup: ShadowRingSetup;
  readonly #area: ShadowArea;
  readonly #driver: DriverQueue;
  readonly #chains: ShadowChains;
  readonly #taken = new ChainBatch();
  /** Chains of nothing but empty buffers take one segment more than in `#taken`. */
  readonly #out = new DriverBatch(BATCH, BATCH_SEGMENTS + BATCH);
  readonly #used = new UsedBatch();
  readonly #polls: Poll[] = [];
  #q: DeviceQueue;
  #turn: NodeJS.Immediate | null = null;
  #timer: NodeJS.Timeout | null = null;
  #full = false;
  /** Nothing more is taken from the driver. */
  #paused = false;
  #closed = false;

  constructor(setup: ShadowRingSetup) {
    const { index, config, memory } = setup;
    this.#setup = setup;
    this.call = setup.call;
    this.err = setup.err;
    this.#area = memory.area(index);
    this.freshBase = config.packed ? PACKED_BASE_FRESH : 0;
    this.#q = new DeviceQueue(config, setup.map, arena().buffer, { log: setup.log });
    this.#driver = this.#makeDriver();
    this.#chains = new ShadowChains(config.size);
    this.deviceKick = createEventfd(`shadow kick of vring ${index}`);
    this.deviceCall = createEventfd(`shadow call of vring ${index}`);
  }

  /** Addresses of the shadow ring as the front-end of the device would give them. */
  get addresses(): { descUva: bigint; availUva: bigint; usedUva: bigint } {
    const { size, packed } = this.#setup.config;
    const { availAt, usedAt } = ringLayout(size, packed);
    const { userAddr } = this.#area;
    const at = (offset: number): bigint => userAddr + BigInt(offset);
    return { descUva: at(0), availUva: at(availAt), usedUva: at(usedAt) };
  }

  /** FAULT_* of the driver, 0 while the ring works. */
  get fault(): number {
    return this.#q.fault;
  }

  /** Chains that the device has. */
  get outstanding(): number {
    return this.#chains.count;
  }

  get chainsTaken(): number {
    return this.#q.chainsTaken;
  }

  /** The device knows the ring. */
  start(): void {
    const { kick } = this.#setup;
    this.#watch(this.deviceCall.number);
    if (kick === null) this.#pollDriver();
    else this.#watch(kick);
    this.work();
  }

  /** From now on, or no more: pages that are written are marked there. */
  setLog(log: QueueLog | null, map: AddressMap): void {
    const old = this.#q;
    const config = { ...this.#setup.config, base: ringBase(old) };
    const q = new DeviceQueue(config, map, arena().buffer, { log });
    carryOver(old, q);
    this.#q = q;
  }

  setCall(call: number | null): void {
    this.call = call;
    if (call !== null) signalForeignEventfd(call); // what the old one was told may be unknown
  }

  /** Takes nothing more; resolves when a base can say what is out, or after a second. */
  async pause(): Promise<void> {
    this.#paused = true;
    const end = performance.now() + DRAIN_MS;
    while (!this.#closed && !this.#chains.isSuffix && performance.now() < end) {
      await new Promise((resolve) => setTimeout(resolve, 1));
      this.work();
    }
  }

  /**
   * The device has let go of the shadow ring. Returns the guest's ring's base: what the device did
   * not finish is done again.
   * @throws VringError ERR_VRING_SHADOW_ORDER: it finished later chains than those that are out.
   */
  finish(): number {
    this.#paused = true;
    while (this.#takeBack() > 0);
    this.#notifyDriver();
    const q = this.#q;
    const isSuffix = this.#chains.isSuffix;
    this.close();
    if (!isSuffix) {
      const text =
        `vring ${this.#setup.index} was stopped while its device had finished later requests ` +
        'than some that are out: no base says which; the driver has to reset the device';
      throw new VringError('ERR_VRING_SHADOW_ORDER', text, { recovery: 'reset' });
    }
    q.nextAvail = q.nextUsed;
    q.availWrap = q.usedWrap;
    return ringBase(q);
  }

  /** Idempotent. The ring is not touched afterwards. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const poll of this.#polls) poll.close();
    if (this.#turn !== null) clearImmediate(this.#turn);
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.deviceKick.close();
    this.deviceCall.close();
  }

  /** One turn. */
  work(): void {
    if (this.#closed) return;
    if (this.#q.fault === 0) disableKicks(this.#q);
    disableCalls(this.#driver);
    for (let i = 0; i < BATCHES_PER_TURN; i++) {
      const back = this.#takeBack();
      const on = this.#closed ? 0 : this.#passOn();
      if (this.#closed) return;
      if (back + on > 0) continue;
      this.#notifyDriver();
      const more = enableCalls(this.#driver);
      const wantsKicks = !this.#full && !this.#paused && this.#q.fault === 0;
      if ((wantsKicks && enableKicks(this.#q)) || more) continue;
      return;
    }
    this.#notifyDriver();
    this.#turn ??= setImmediate(() => {
      this.#turn = null;
      this.work();
    });
  }

  /** From the device to the driver. Returns how many chains. */
  #takeBack(): number {
    const count = reapUsed(this.#driver, this.#used, this.#used.capacity);
    if (count < 0) {
      this.#deviceFault(count);
      return 0;
    }
    for (let done = 0; done < count;) {
      const batch = this.#chains.collect(this.#used, done, this.#q);
      putUsed(this.#q, batch, 0, batch.count);
      done += batch.count;
    }
    if (count > 0) this.#full = false;
    return count;
  }

  /** From the driver to the device. Returns how many chains. */
  #passOn(): number {
    const q = this.#q;
    if (this.#paused || this.#full || q.fault !== 0) return 0;
    const taken = this.#taken;
    const count = takeChains(q, taken, taken.capacity);
    // Known once it was touched: then what was read is void.
    if (this.#setup.memory.isTruncated) return this.#driverFault(FAULT_MEMORY_GONE);
    if (count < 0) return this.#driverFault(count);
    if (count === 0) return 0;
    this.#translate(count);
    const added = addChains(this.#driver, this.#out, 0, count);
    for (let row = 0; row < added; row++) this.#chains.add(this.#out.id[row]!, taken, row);
    untakeChains(q, taken, added);
    if (added < count) {
      this.#full = true;
      // It does not fit an empty ring either.
      if (this.#chains.count === 0) return this.#driverFault(FAULT_CHAIN_TOO_LONG);
    }
    publish(this.#driver);
    if (needsKick(this.#driver)) signalEventfd(this.deviceKick.number);
    return added;
  }

  /** The chains taken, with addresses as the device knows them. */
  #translate(count: number): void {
    const { memory } = this.#setup;
    const taken = this.#taken;
    const out = this.#out;
    out.clear();
    for (let row = 0; row < count; row++) {
      const first = taken.segFirst[row]!;
      const segments = taken.readSegs[row]! + taken.writeSegs[row]!;
      out.segFirst[row] = out.segments;
      out.readSegs[row] = taken.readSegs[row]!;
      out.writeSegs[row] = taken.writeSegs[row]!;
      out.indirect[row] = segments <= TABLE_ENTRIES ? 1 : 0;
      for (let s = 0; s < segments; s++) {
        out.segGpa[out.segments] = memory.gpaOf(taken.segOffset[first + s]!);
        out.segLen[out.segments++] = taken.segLen[first + s]!;
      }
      if (segments > 0) continue;
      // A chain of nothing but empty buffers: the device gets to see one, too.
      out.readSegs[row] = 1;
      out.segGpa[out.segments] = Number(this.#area.gpa);
      out.segLen[out.segments++] = 0;
    }
    out.count = count;
  }

  #notifyDriver(): void {
    if (needsCall(this.#q) && this.call !== null) signalForeignEventfd(this.call);
  }

  #driverFault(fault: number): number {
    this.#q.fault = fault;
    if (this.err !== null) signalForeignEventfd(this.err);
    return 0;
  }

  #deviceFault(fault: number): void {
    const { index, onDeviceFault } = this.#setup;
    this.close();
    const text = `the device broke virtio in the shadow of vring ${index}: ${faultName(fault)}`;
    onDeviceFault(new VringError('ERR_VRING_SHADOW_DEVICE', text, { recovery: 'reset' }));
  }

  #watch(fd: number): void {
    const poll = pollFd(fd, { read: true }, () => {
      drainEventfd(fd);
      this.work();
    });
    this.#polls.push(poll);
  }

  #pollDriver(): void {
    this.#timer = setTimeout(() => {
      this.#pollDriver();
      this.work();
    }, POLL_MS);
  }

  #makeDriver(): DriverQueue {
    const { config } = this.#setup;
    const { size, packed, indirect } = config;
    const layout = ringLayout(size, packed);
    const { memory, gpa } = this.#area;
    const tables = {
      offset: memory.offset + layout.totalBytes,
      gpa: Number(gpa) + layout.totalBytes,
      entries: TABLE_ENTRIES,
    };
    return new DriverQueue(
      {
        ...config,
        descOffset: memory.offset,
        availOffset: memory.offset + layout.availAt,
        usedOffset: memory.offset + layout.usedAt,
        ...(indirect ? { tables } : {}),
      },
      arena().buffer,
    );
  }
}

/** Where a queue is, to one that takes its place with chains out. */
function carryOver(from: DeviceQueue, to: DeviceQueue): void {
  to.fault = from.fault;
  to.nextAvail = from.nextAvail;
  to.nextUsed = from.nextUsed;
  to.availWrap = from.availWrap;
  to.usedWrap = from.usedWrap;
  to.slotsPerChain = from.slotsPerChain;
  to.sinceCall = from.sinceCall;
  to.callKnown = from.callKnown;
  to.counters.set(from.counters);
}
