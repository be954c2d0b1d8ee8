/**
 * The rings of a back-end that the kernel runs in this process's address space, as vhost-net and
 * vhost-vsock do: what each ring was told, the memory that all lie in, and the dirty log.
 *
 * Theory of operation. A ring *runs* while it is enabled and has its kick (`wanted`); the
 * back-end's `run` makes the kernel take it or let go of it. What vhost.c demands, and where it is
 * met:
 *
 * - A ring's size and base cannot change while it runs (EBUSY): the caller's mistake, passed on.
 * - Addresses are ours, not the front-end's: they are translated when they are told, so memory
 *   comes before rings. With ACCESS_PLATFORM they are the IOMMU's and go through as they are.
 * - A memory table is mapped anew wherever there is room, so addresses that the kernel holds die
 *   with the old one: rings stop, get their addresses again, and go on; the IOTLB is emptied.
 * - The kernel marks pages in the log without knowing how long it is. Every page of the memory
 *   table and every used ring must have its bit: checked here, before the kernel is told. The old
 *   bitmap stays mapped until it has a successor, because a ring may be told to log until then.
 * - Behind an IOMMU a ring starts by writing into its used ring, and fails (EFAULT) where that is
 *   not translated yet; the question is asked all the same, so the start is tried again when an
 *   answer came. Stopping a ring makes vhost-net forget the questions of all (`vhost_clear_msg`):
 *   rings that still run get a kick, and ask again.
 * - A call that the kernel wanted to make while there was no eventfd is lost. A new one is
 *   signalled once: a spurious call is allowed, a lost one is not.
 */
import { VringError } from '../base/errors.ts';
import type { BackendMemoryRegion, VringAddresses } from '../base/vhost-backend.ts';
import { SharedRegion } from '../memory/index.ts';
import { arenaHostAddress, dupFd, type Fd, signalForeignEventfd } from '../sys/index.ts';
import { VHOST_PAGE_SIZE } from '../wire/vhost-kernel.ts';
import { FrontMemory } from './front-memory.ts';
import { type HostVring, isErrno, type VhostDevice } from './vhost-device.ts';

/** What is called of a device; tests put their own here. */
export type RingCalls = Pick<
  VhostDevice,
  | 'path'
  | 'setMemTable'
  | 'setLogBase'
  | 'setVringNum'
  | 'setVringAddr'
  | 'setVringBase'
  | 'getVringBase'
  | 'setVringKick'
  | 'setVringCall'
  | 'setVringErr'
> & { readonly iotlb: Pick<VhostDevice['iotlb'], 'update' | 'invalidate'> };

/** Where the kernel has a ring: of which device it is, and its number there. */
export type RingPlace = { readonly device: RingCalls; readonly index: number };

/** Makes the kernel take a ring, or let go of it and touch it no more. */
export type RunRing = (index: number, on: boolean) => void;

type Ring = RingPlace & {
  size: number;
  addresses: VringAddresses | null;
  usedLogGpa: bigint | null;
  enabled: boolean;
  /** Null: not to be started. */
  kick: Fd | null;
  running: boolean;
};

const BITS_PER_BYTE = 8n;
const PAGE = BigInt(VHOST_PAGE_SIZE);
const WHOLE_SPACE = 2n ** 64n - 1n;
/** How long a front-end may take to translate what a ring needs to start. */
const TRANSLATE_MS = 2000;

export class HostRings {
  readonly #description: string;
  readonly #rings: readonly Ring[];
  readonly #devices: readonly RingCalls[];
  readonly #run: RunRing;
  #memory: FrontMemory | null = null;
  #log: SharedRegion | null = null;
  /** VIRTIO_F_ACCESS_PLATFORM is acked: addresses are the IOMMU's. */
  #platform = false;
  /** Of a start that waits for a translation. */
  #translated = Promise.withResolvers<void>();

  constructor(description: string, places: readonly RingPlace[], run: RunRing) {
    this.#description = description;
    this.#devices = [...new Set(places.map(({ device }) => device))];
    this.#run = run;
    this.#rings = places.map((place) => ({
      ...place,
      size: 0,
      addresses: null,
      usedLogGpa: null,
      enabled: false,
      kick: null,
      running: false,
    }));
  }

  get platform(): boolean {
    return this.#platform;
  }

  get anyRunning(): boolean {
    return this.#rings.some(({ running }) => running);
  }

  running(index: number): boolean {
    return this.#ring(index).running;
  }

  /** Addresses told before belong to the other space: rings must be told theirs again. */
  setPlatform(on: boolean): void {
    if (on === this.#platform) return;
    this.#platform = on;
    for (const ring of this.#rings) ring.addresses = null;
  }

  /** @throws MemoryError, VringError ERR_VRING_LOG_SIZE; the old table is then in use still. */
  async setMemTable(regions: readonly BackendMemoryRegion[]): Promise<void> {
    const memory = FrontMemory.map(regions);
    const running = this.#rings.filter((ring) => ring.running);
    try {
      if (this.#log !== null) this.#checkLog(this.#log.sizeBytes, memory);
      for (const ring of running) this.#stop(ring);
      for (const device of this.#devices) device.setMemTable(memory.regions);
    } catch (error) {
      memory.close();
      for (const ring of running) if (!ring.running) await this.#start(ring);
      throw error;
    }
    const old = this.#memory;
    this.#memory = memory;
    try {
      for (const device of this.#platform ? this.#devices : []) {
        device.iotlb.invalidate(0n, WHOLE_SPACE);
      }
      for (const ring of this.#rings) {
        if (ring.addresses !== null) this.#tellAddresses(ring, ring.addresses, ring.usedLogGpa);
      }
      for (const ring of running) await this.#start(ring);
    } finally {
      old?.close();
    }
  }

  setVringNum(index: number, size: number): void {
    const ring = this.#ring(index);
    ring.device.setVringNum(ring.index, size);
    ring.size = size;
  }

  /** @throws VringError ERR_VRING_MEMORY_ADDRESS, ERR_VRING_RING_SIZE, ERR_VRING_LOG_SIZE. */
  setVringAddr(index: number, addresses: VringAddresses, usedLogGpa: bigint | null): void {
    const ring = this.#ring(index);
    if (ring.size === 0) {
      const text = `${this.#description}: vring ${index} has addresses before its size`;
      throw new VringError('ERR_VRING_RING_SIZE', text);
    }
    this.#tellAddresses(ring, addresses, usedLogGpa);
    ring.addresses = addresses;
    ring.usedLogGpa = usedLogGpa;
  }

  setVringBase(index: number, base: number): void {
    const ring = this.#ring(index);
    ring.device.setVringBase(ring.index, base);
  }

  /** Stops the ring, until it gets its kick again. */
  getVringBase(index: number): number {
    const ring = this.#ring(index);
    this.#dropKick(ring);
    this.#stop(ring);
    return ring.device.getVringBase(ring.index);
  }

  /** @throws VringError ERR_VRING_KERNEL_LACKS: the kernel cannot poll a ring. */
  async setVringKick(index: number, fd: number | null): Promise<void> {
    const ring = this.#ring(index);
    if (fd === null) {
      const text =
        `${this.#description}: vring ${index} has no kick; ` +
        "the kernel's vhost does not poll rings, give it an eventfd";
      throw new VringError('ERR_VRING_KERNEL_LACKS', text);
    }
    ring.device.setVringKick(ring.index, fd);
    ring.kick?.close();
    ring.kick = dupFd(fd, `kick of vring ${index}`);
    await this.#apply(ring);
  }

  setVringCall(index: number, fd: number | null): void {
    const ring = this.#ring(index);
    ring.device.setVringCall(ring.index, fd);
    if (fd !== null && ring.running) signalForeignEventfd(fd);
  }

  setVringErr(index: number, fd: number | null): void {
    const ring = this.#ring(index);
    ring.device.setVringErr(ring.index, fd);
  }

  async setVringEnable(index: number, enabled: boolean): Promise<void> {
    const ring = this.#ring(index);
    ring.enabled = enabled;
    await this.#apply(ring);
  }

  /** @throws MemoryError; VringError ERR_VRING_LOG_SIZE. */
  setLogBase(fd: number, sizeBytes: number): void {
    if (this.#memory !== null) this.#checkLog(sizeBytes, this.#memory);
    const where = { guestPhysAddr: 0n, userAddr: 0n, fdOffset: 0n };
    const log = SharedRegion.map(fd, { ...where, sizeBytes: BigInt(sizeBytes) }, 'dirty log');
    try {
      const hostAddr = arenaHostAddress() + BigInt(log.offset);
      for (const device of this.#devices) device.setLogBase(hostAddr);
    } catch (error) {
      log.close();
      throw error;
    }
    this.#log?.close();
    this.#log = log;
  }

  /** @throws VringError ERR_VRING_LOG_SIZE: there is no log to mark pages in. */
  demandLog(what: string): SharedRegion {
    if (this.#log !== null) return this.#log;
    const text = `${this.#description}: ${what}, and there is no dirty log: set its base first`;
    throw new VringError('ERR_VRING_LOG_SIZE', text);
  }

  /** The kernel learned a translation: a start may succeed now that failed before. */
  translated(): void {
    this.#translated.resolve();
    this.#translated = Promise.withResolvers();
  }

  /** A translation whose user address is the front-end's. @throws ERR_VRING_MEMORY_ADDRESS. */
  hostAddr(userAddr: bigint, sizeBytes: bigint): bigint {
    return this.#demandMemory().hostAddr(userAddr, sizeBytes);
  }

  /** All rings stop; what else they were told stays. */
  stopAll(): void {
    for (const ring of this.#rings) {
      this.#dropKick(ring);
      ring.enabled = false;
      this.#stop(ring);
    }
  }

  /** Idempotent. After the devices were closed: the kernel uses what is unmapped here. */
  close(): void {
    for (const ring of this.#rings) {
      ring.running = false;
      this.#dropKick(ring);
    }
    this.#memory?.close();
    this.#memory = null;
    this.#log?.close();
    this.#log = null;
  }

  #ring(index: number): Ring {
    const ring = this.#rings[index];
    if (ring !== undefined) return ring;
    const last = this.#rings.length - 1;
    const text = `${this.#description} has no vring ${index}: its vrings are 0 to ${last}`;
    throw new VringError('ERR_VRING_RING_INDEX', text);
  }

  async #apply(ring: Ring): Promise<void> {
    if (!ring.enabled || ring.kick === null) this.#stop(ring);
    else if (!ring.running) await this.#start(ring);
  }

  #stop(ring: Ring): void {
    if (!ring.running) return;
    this.#run(this.#rings.indexOf(ring), false);
    ring.running = false;
    if (!this.#platform) return;
    for (const { running, kick } of this.#rings) {
      if (running && kick !== null) signalForeignEventfd(kick.number);
    }
  }

  /** @throws VringError ERR_VRING_IOTLB: nobody translated what the ring needs to start. */
  async #start(ring: Ring): Promise<void> {
    const index = this.#rings.indexOf(ring);
    const deadline = performance.now() + TRANSLATE_MS;
    while (!this.#tryStart(ring, index)) {
      const leftMs = deadline - performance.now();
      if (leftMs > 0 && (await within(leftMs, this.#translated.promise))) continue;
      const text =
        `${this.#description}: vring ${index} cannot start: its IOMMU translated no address ` +
        `of the used ring within ${TRANSLATE_MS} ms`;
      throw new VringError('ERR_VRING_IOTLB', text, { recovery: 'reset' });
    }
  }

  /** False: the kernel asks for a translation first. */
  #tryStart(ring: Ring, index: number): boolean {
    try {
      this.#run(index, true);
    } catch (error) {
      if (this.#platform && isErrno(error, 'EFAULT')) return false;
      throw error;
    }
    ring.running = true;
    return true;
  }

  #dropKick(ring: Ring): void {
    ring.kick?.close();
    ring.kick = null;
  }

  #tellAddresses(ring: Ring, addresses: VringAddresses, usedLogGpa: bigint | null): void {
    if (usedLogGpa !== null) this.#checkUsedLog(ring, usedLogGpa);
    ring.device.setVringAddr(ring.index, { ...this.#translate(ring, addresses), usedLogGpa });
  }

  /** The areas of a split ring with its event fields: virtio 1.2, 2.7. */
  #translate(ring: Ring, addresses: VringAddresses): Omit<HostVring, 'usedLogGpa'> {
    const { descUva, availUva, usedUva } = addresses;
    if (this.#platform) return { desc: descUva, avail: availUva, used: usedUva };
    const memory = this.#demandMemory();
    const size = BigInt(ring.size);
    return {
      desc: memory.hostAddr(descUva, 16n * size),
      avail: memory.hostAddr(availUva, 6n + 2n * size),
      used: memory.hostAddr(usedUva, usedBytes(ring.size)),
    };
  }

  #demandMemory(): FrontMemory {
    if (this.#memory !== null) return this.#memory;
    const text = `${this.#description} has no memory table yet: set it before rings and the IOTLB`;
    throw new VringError('ERR_VRING_MEMORY_ADDRESS', text);
  }

  #checkLog(sizeBytes: number, memory: FrontMemory): void {
    for (const [i, { guestPhysAddr, sizeBytes: bytes }] of memory.regions.entries()) {
      this.#checkLogged(sizeBytes, guestPhysAddr + bytes, `region ${i}`);
    }
  }

  #checkUsedLog(ring: Ring, usedLogGpa: bigint): void {
    const what = `the used ring of vring ${this.#rings.indexOf(ring)}`;
    const { sizeBytes } = this.demandLog(`${what} shall be logged`);
    this.#checkLogged(sizeBytes, usedLogGpa + usedBytes(ring.size), what);
  }

  #checkLogged(logBytes: number, endGpa: bigint, what: string): void {
    const pages = (endGpa + PAGE - 1n) / PAGE;
    const needed = (pages + BITS_PER_BYTE - 1n) / BITS_PER_BYTE;
    if (needed <= BigInt(logBytes)) return;
    const text =
      `${this.#description}: the dirty log has ${logBytes} bytes; ` +
      `${what} ends at 0x${endGpa.toString(16)} and needs ${needed}`;
    throw new VringError('ERR_VRING_LOG_SIZE', text);
  }
}

function usedBytes(size: number): bigint {
  return 6n + 8n * BigInt(size);
}

/** False: not in that time. */
async function within(milliseconds: number, promise: Promise<void>): Promise<boolean> {
  const timeout = Promise.withResolvers<boolean>();
  const timer = setTimeout(() => timeout.resolve(false), milliseconds);
  try {
    return await Promise.race([promise.then(() => true), timeout.promise]);
  } finally {
    clearTimeout(timer);
  }
}
