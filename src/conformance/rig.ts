/**
 * The guest of a check: memory of its own, vrings in it and the driver's side of each. A check
 * may drive the rings properly (`submit`, `collect`) or write any word into them.
 */
import type { BackendMemoryRegion } from '../base/vhost-backend.ts';
import { GuestMemory } from '../memory/index.ts';
import { arena, createEventfd, drainEventfd, type Fd, signalEventfd } from '../sys/index.ts';
import { faultName } from '../virtqueue/index.ts';
import {
  addChains,
  DriverBatch,
  DriverQueue,
  publish,
  reapUsed,
  tableBytes,
  UsedBatch,
} from '../virtqueue/driver/index.ts';
import { VHOST_VRING_F_LOG, type VringAddr } from '../wire/vhost-user.ts';
import { PACKED_BASE_FRESH, ringLayout, type RingLayout } from '../wire/virtio.ts';
import { CheckFailed } from './check.ts';

export type RigOptions = {
  readonly rings: number;
  readonly size?: number;
  readonly packed?: boolean;
  readonly eventIdx?: boolean;
  readonly indirect?: boolean;
  /** Split: where both indices of every ring begin, as if it had been used before. */
  readonly base?: number;
  /** Split: the used index, where it shall differ from `base`. */
  readonly usedBase?: number;
  /** With an IOMMU: what is added to a guest-physical address to get its I/O virtual one. */
  readonly iovaDelta?: number;
};

export type Segment = { readonly gpa: number; readonly len: number };
export type Used = { readonly id: number; readonly len: number };

/** Above 4 GiB: both words of an address matter. */
const BASE_GPA = 0x1_4000_0000;
const MEMORY_BYTES = 8 << 20;
const RING_SLOT_BYTES = 0x20000;
const DATA_AT = 2 << 20;
const TABLE_ENTRIES = 4;
const POLL_MS = 1;

export class TestRing {
  readonly index: number;
  readonly queue: DriverQueue;
  readonly layout: RingLayout;
  /** Arena offset of the descriptor table; the other areas follow as `layout` says. */
  readonly at: number;
  readonly kick: Fd;
  readonly call: Fd;
  readonly err: Fd;
  readonly base: number;
  /** Where the ring is for SET_VRING_ADDR: a user address, or an IOVA. */
  readonly #areas: number;
  readonly #logGpa: number;

  constructor(memory: GuestMemory, index: number, options: RigOptions) {
    const { size = 64, packed = false, eventIdx = false, indirect = false } = options;
    this.index = index;
    this.layout = ringLayout(size, packed, eventIdx);
    const slot = index * RING_SLOT_BYTES;
    this.at = memory.offset + slot;
    const tables = slot + RING_SLOT_BYTES - tableBytes(size, TABLE_ENTRIES);
    this.queue = new DriverQueue(
      {
        size,
        packed,
        eventIdx,
        indirect,
        inOrder: false,
        descOffset: this.at,
        availOffset: this.at + this.layout.availAt,
        usedOffset: this.at + this.layout.usedAt,
        tables: {
          offset: memory.offset + tables,
          gpa: memory.baseGpa + tables,
          entries: TABLE_ENTRIES,
        },
      },
      arena().buffer,
    );
    this.kick = createEventfd(`kick of ring ${index}`);
    this.call = createEventfd(`call of ring ${index}`);
    this.err = createEventfd(`err of ring ${index}`);
    const delta = options.iovaDelta;
    this.#areas = slot + (delta === undefined ? memory.baseUva : memory.baseGpa + delta);
    this.#logGpa = memory.baseGpa + slot + this.layout.usedAt;
    this.base = packed ? PACKED_BASE_FRESH : (options.base ?? 0);
    if (!packed && this.base !== 0) this.#beginAt(this.base, options.usedBase ?? this.base);
  }

  #beginAt(base: number, usedBase: number): void {
    const { queue } = this;
    queue.nextAvail = base;
    queue.nextUsed = usedBase;
    queue.avail[1] = base;
    queue.usedCells[1] = usedBase;
  }

  /** `log`: with VHOST_VRING_F_LOG; the used ring is logged where it is, or at `logGpa`. */
  addr(log = false, logGpa = this.#logGpa): VringAddr {
    const uva = BigInt(this.#areas);
    return {
      index: this.index,
      flags: log ? VHOST_VRING_F_LOG : 0,
      descUva: uva,
      availUva: uva + BigInt(this.layout.availAt),
      usedUva: uva + BigInt(this.layout.usedAt),
      logGpa: BigInt(logGpa),
    };
  }

  /** Split: what the device has published, now. */
  get usedIndex(): number {
    return Atomics.load(this.queue.usedCells, 1);
  }

  signal(): void {
    signalEventfd(this.kick.number);
  }

  /** How often the device called since the last question. */
  calls(): number {
    return drainEventfd(this.call.number);
  }

  close(): void {
    for (const fd of [this.kick, this.call, this.err]) fd.close();
  }
}

export class Rig {
  readonly memory: GuestMemory;
  readonly rings: readonly TestRing[];
  readonly options: RigOptions;
  readonly #batch = new DriverBatch(64, 512);
  readonly #used = new UsedBatch(64);
  #next = DATA_AT;

  constructor(options: RigOptions) {
    this.options = options;
    this.memory = GuestMemory.create(MEMORY_BYTES, { baseGpa: BASE_GPA });
    this.rings = Array.from(
      { length: options.rings },
      (_, index) => new TestRing(this.memory, index, options),
    );
  }

  ring(index: number): TestRing {
    return this.rings[index] as TestRing;
  }

  get endGpa(): number {
    return BASE_GPA + this.memory.sizeBytes;
  }

  /** Guest-physical address of fresh zeros. */
  alloc(bytes: number): number {
    const at = this.#next;
    this.#next += Math.ceil(bytes / 64) * 64;
    if (this.#next > this.memory.sizeBytes) this.#next = DATA_AT; // wraps: checks are short
    arena().bytes.fill(0, this.memory.offset + at, this.memory.offset + at + bytes);
    return BASE_GPA + at;
  }

  /** At the next page boundary, and nothing else in those pages. */
  allocPages(pages: number): number {
    this.#next = Math.ceil(this.#next / 4096) * 4096;
    const at = this.alloc(4096 * pages);
    return at;
  }

  offsetOf(gpa: number): number {
    return this.memory.offset + (gpa - BASE_GPA);
  }

  write(gpa: number, bytes: Uint8Array): void {
    arena().bytes.set(bytes, this.offsetOf(gpa));
  }

  read(gpa: number, bytes: number): Uint8Array {
    const at = this.offsetOf(gpa);
    return arena().bytes.slice(at, at + bytes);
  }

  /** All memory, cut into `count` regions that have offsets of their own in the one fd. */
  regions(count = 1): BackendMemoryRegion[] {
    const whole = this.memory.backendRegion();
    const each = BigInt(this.memory.sizeBytes / count);
    return Array.from({ length: count }, (_, n) => ({
      guestPhysAddr: whole.guestPhysAddr + BigInt(n) * each,
      sizeBytes: each,
      userAddr: whole.userAddr + BigInt(n) * each,
      fd: whole.fd,
      fdOffset: BigInt(n) * each,
    }));
  }

  /** Adds one chain and shows it to the device. Returns its identity. */
  submit(
    ring: TestRing,
    readable: readonly Segment[],
    writable: readonly Segment[],
    indirect = false,
  ): number {
    const delta = this.options.iovaDelta ?? 0;
    const shift = ({ gpa, len }: Segment): Segment => ({ gpa: gpa + delta, len });
    this.#batch.clear();
    this.#batch.addChain(readable.map(shift), writable.map(shift), indirect);
    if (addChains(ring.queue, this.#batch, 0, 1) !== 1) throw new Error('the ring is full');
    publish(ring.queue);
    return this.#batch.id[0] as number;
  }

  /** What has come back by now. @throws CheckFailed when the device broke the used ring. */
  reap(ring: TestRing): Used[] {
    const count = reapUsed(ring.queue, this.#used, 64);
    if (count < 0) {
      throw new CheckFailed(`the device wrote a wrong used entry: ${faultName(count)}`);
    }
    return Array.from({ length: count }, (_, i) => ({
      id: this.#used.id[i] as number,
      len: this.#used.len[i] as number,
    }));
  }

  /** Waits until `count` chains came back, or the time is over; returns those that did. */
  async collect(ring: TestRing, count: number, timeoutMs: number): Promise<Used[]> {
    const deadline = performance.now() + timeoutMs;
    const used: Used[] = [];
    for (;;) {
      used.push(...this.reap(ring));
      if (used.length >= count || performance.now() > deadline) return used;
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
  }

  close(): void {
    for (const ring of this.rings) ring.close();
    this.memory.close();
  }
}
