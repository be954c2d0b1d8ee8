/**
 * A back-end before a back-end, which follows what a device writes that cannot say so itself, such
 * as a vDPA device: for a guest that is to move. The driver's rings are served here, the device
 * works on rings of ours (shadow-ring.ts), and every page that it wrote into a buffer, or that we
 * wrote into a ring, is marked in the dirty log. As QEMU does with its shadow virtqueues.
 *
 * What the driver sees is the device's: features, configuration, status; VHOST_F_LOG_ALL is added.
 * The device's rings begin anew whenever they start, so one that can begin nowhere else (vp_vdpa)
 * stops and goes on here as others do.
 *
 * Between the two, direct and shadowed, a guest changes while its rings stand still: stop, and hand
 * the rings over to the other one. A driver with an IOMMU of its own is not shadowed.
 */
import type {
  BackendDirtyLog,
  BackendMemoryRegion,
  VhostBackend,
  VringAddresses,
} from '../base/vhost-backend.ts';
import { VringError } from '../base/errors.ts';
import { mapSharedArea, type SharedRegion } from '../memory/index.ts';
import { dupFd, type Fd } from '../sys/index.ts';
import type { QueueLog } from '../virtqueue/dirty-log.ts';
import type { VringConfig } from '../virtqueue/index.ts';
import { VHOST_F_LOG_ALL } from '../wire/vhost-user.ts';
import {
  featureSet,
  hasFeature,
  ringLayout,
  VIRTIO_F_ACCESS_PLATFORM,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_NOTIFICATION_DATA,
  VIRTIO_F_RING_PACKED,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
} from '../wire/virtio.ts';
import { ShadowMemory } from './shadow-memory.ts';
import { shadowBytes, ShadowRing } from './shadow-ring.ts';

type Vring = {
  size: number;
  base: number;
  addresses: VringAddresses | null;
  usedLogGpa: bigint | null;
  enabled: boolean;
  kick: Fd | null;
  call: Fd | null;
  err: Fd | null;
  /** Null: it stands still. */
  ring: ShadowRing | null;
};

const LOG_ALL = featureSet(VHOST_F_LOG_ALL);
/** Bits that would need the driver's own addresses, or its own doorbell, at the device. */
const WITHHELD = featureSet(VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_NOTIFICATION_DATA);

export class ShadowBackend implements VhostBackend {
  readonly description: string;
  readonly iotlb = null;
  readonly dirtyLog: BackendDirtyLog;
  readonly restartsWhole: boolean;
  readonly closed: Promise<Error | null>;

  readonly #inner: VhostBackend;
  readonly #memory = new ShadowMemory();
  readonly #vrings = new Map<number, Vring>();
  #acked = 0n;
  #log: SharedRegion | null = null;
  #failure: Error | null = null;
  #ended = false;

  /** Takes the back-end over, which has no running ring. */
  constructor(inner: VhostBackend) {
    this.#inner = inner;
    this.description = `shadow:${inner.description}`;
    this.restartsWhole = inner.restartsWhole;
    this.dirtyLog = { setLogBase: (fd, sizeBytes) => this.#setLogBase(fd, sizeBytes) };
    this.closed = inner.closed.then((reason) => {
      this.#end();
      return this.#failure ?? reason;
    });
  }

  /** What the rings have done, for people and tests. */
  counters(index: number): { taken: number; outstanding: number; fault: number } {
    const ring = this.#vrings.get(index)?.ring;
    return {
      taken: ring?.chainsTaken ?? 0,
      outstanding: ring?.outstanding ?? 0,
      fault: ring?.fault ?? 0,
    };
  }

  async getFeatures(): Promise<bigint> {
    return ((await this.#inner.getFeatures()) & ~WITHHELD) | LOG_ALL;
  }

  /** VHOST_F_LOG_ALL alone may change while rings run. */
  async setFeatures(acked: bigint): Promise<void> {
    const onlyLog = ((acked ^ this.#acked) & ~LOG_ALL) === 0n;
    if (!onlyLog || this.#running().size === 0) await this.#inner.setFeatures(acked & ~LOG_ALL);
    this.#acked = acked;
    this.#updateLogs();
  }

  setOwner(): Promise<void> {
    return this.#inner.setOwner();
  }

  getQueueNum(): Promise<number> {
    return this.#inner.getQueueNum();
  }

  /** @throws as `ShadowMemory.setGuest`; what the device's back-end throws. */
  async setMemTable(regions: readonly BackendMemoryRegion[]): Promise<void> {
    this.#memory.setGuest(regions, this.#running());
    this.#updateLogs();
    await this.#inner.setMemTable(this.#memory.regions);
  }

  async setVringNum(index: number, size: number): Promise<void> {
    this.#stopped(index).size = size;
  }

  /** Of a ring that runs: only whether its used ring is logged may change. */
  async setVringAddr(
    index: number,
    addresses: VringAddresses,
    usedLogGpa: bigint | null = null,
  ): Promise<void> {
    const vring = this.#vring(index);
    if (vring.ring !== null && !sameAddresses(vring.addresses, addresses)) this.#stopped(index);
    vring.addresses = addresses;
    vring.usedLogGpa = usedLogGpa;
    this.#updateLog(vring);
  }

  async setVringBase(index: number, base: number): Promise<void> {
    this.#stopped(index).base = base;
  }

  /** @throws VringError ERR_VRING_SHADOW_ORDER */
  async getVringBase(index: number): Promise<number> {
    const vring = this.#vring(index);
    const { ring } = vring;
    if (ring === null) return vring.base;
    // Where one ring stops all, each has to be in a state that its base can express by then.
    const pausing = this.#inner.restartsWhole ? this.#rings() : [ring];
    await Promise.all(pausing.map((each) => each.pause()));
    try {
      await this.#inner.getVringBase(index);
      await this.#inner.setVringEnable(index, false);
    } catch (error) {
      // Stopped, and where it was is our business: the shadow ring begins anew.
      if ((error as VringError).code !== 'ERR_VRING_RING_STATE') throw error;
    }
    vring.ring = null;
    vring.enabled = false;
    vring.base = ring.finish();
    return vring.base;
  }

  /** Starts the ring. */
  async setVringKick(index: number, fd: number | null): Promise<void> {
    const vring = this.#stopped(index);
    vring.kick?.close();
    vring.kick = fd === null ? null : dupFd(fd, `kick of vring ${index}`);
    await this.#start(index, vring);
  }

  async setVringCall(index: number, fd: number | null): Promise<void> {
    const vring = this.#vring(index);
    const call = fd === null ? null : dupFd(fd, `call of vring ${index}`);
    vring.ring?.setCall(call?.number ?? null);
    vring.call?.close();
    vring.call = call;
  }

  async setVringErr(index: number, fd: number | null): Promise<void> {
    const vring = this.#vring(index);
    const err = fd === null ? null : dupFd(fd, `err of vring ${index}`);
    if (vring.ring !== null) vring.ring.err = err?.number ?? null;
    vring.err?.close();
    vring.err = err;
  }

  async setVringEnable(index: number, enabled: boolean): Promise<void> {
    const vring = this.#vring(index);
    vring.enabled = enabled;
    if (vring.ring !== null) await this.#inner.setVringEnable(index, enabled);
  }

  getConfig(offset: number, sizeBytes: number): Promise<Uint8Array> {
    return this.#inner.getConfig(offset, sizeBytes);
  }

  setConfig(offset: number, bytes: Uint8Array): Promise<void> {
    return this.#inner.setConfig(offset, bytes);
  }

  getStatus(): Promise<number> {
    return this.#inner.getStatus();
  }

  /** 0 is a reset: the rings are let go of. */
  async setStatus(status: number): Promise<void> {
    await this.#inner.setStatus(status);
    if (status !== 0) return;
    this.#dropRings();
    this.#acked = 0n;
  }

  async close(): Promise<void> {
    await this.#inner.close();
    await this.closed;
  }

  async #start(index: number, vring: Vring): Promise<void> {
    const config = this.#config(vring, index);
    if (this.#memory.ensureArea(index, shadowBytes(config))) {
      await this.#inner.setMemTable(this.#memory.regions);
    }
    const ring = new ShadowRing({
      index,
      config,
      map: this.#memory.gpaMap(),
      log: this.#logOf(vring),
      memory: this.#memory,
      kick: vring.kick?.number ?? null,
      call: vring.call?.number ?? null,
      err: vring.err?.number ?? null,
      onDeviceFault: (error) => this.#fail(error),
    });
    const inner = this.#inner;
    try {
      await inner.setVringNum(index, vring.size);
      await inner.setVringBase(index, ring.freshBase);
      await inner.setVringAddr(index, ring.addresses);
      await inner.setVringEnable(index, vring.enabled);
      await inner.setVringKick(index, ring.deviceKick.number);
      await inner.setVringCall(index, ring.deviceCall.number);
    } catch (error) {
      ring.close();
      throw error;
    }
    vring.ring = ring;
    ring.start();
  }

  #config(vring: Vring, index: number): VringConfig {
    const { size, base, addresses } = vring;
    if (addresses === null || size === 0) {
      const text = `vring ${index} is started without ${size === 0 ? 'size' : 'addresses'}`;
      throw new VringError('ERR_VRING_RING_ADDRESS', text, { recovery: 'reconnect' });
    }
    const has = (bit: number): boolean => hasFeature(this.#acked, bit);
    const packed = has(VIRTIO_F_RING_PACKED);
    const eventIdx = has(VIRTIO_RING_F_EVENT_IDX);
    const layout = ringLayout(size, packed, eventIdx);
    return {
      size,
      base,
      packed,
      eventIdx,
      indirect: has(VIRTIO_RING_F_INDIRECT_DESC),
      inOrder: has(VIRTIO_F_IN_ORDER),
      descOffset: this.#memory.offsetOf(addresses.descUva, layout.descBytes),
      availOffset: this.#memory.offsetOf(addresses.availUva, layout.availBytes),
      usedOffset: this.#memory.offsetOf(addresses.usedUva, layout.usedBytes),
    };
  }

  async #setLogBase(fd: number, sizeBytes: number): Promise<void> {
    const log = mapSharedArea(fd, BigInt(sizeBytes), 0n, 'dirty log');
    const old = this.#log;
    this.#log = log;
    this.#updateLogs();
    old?.close();
  }

  #logOf(vring: Vring): QueueLog | null {
    if (this.#log === null || (this.#acked & LOG_ALL) === 0n) return null;
    const { offset, sizeBytes } = this.#log;
    const usedGpa = vring.usedLogGpa === null ? -1 : Number(vring.usedLogGpa);
    return { offset, sizeBytes, usedGpa, gpa: this.#memory.gpaMap() };
  }

  #updateLogs(): void {
    for (const vring of this.#vrings.values()) this.#updateLog(vring);
  }

  #updateLog(vring: Vring): void {
    vring.ring?.setLog(this.#logOf(vring), this.#memory.gpaMap());
  }

  #vring(index: number): Vring {
    const known = this.#vrings.get(index);
    if (known !== undefined) return known;
    const vring: Vring = {
      size: 0,
      base: 0,
      addresses: null,
      usedLogGpa: null,
      enabled: false,
      kick: null,
      call: null,
      err: null,
      ring: null,
    };
    this.#vrings.set(index, vring);
    return vring;
  }

  /** @throws VringError ERR_VRING_SHADOW_RUNNING */
  #stopped(index: number): Vring {
    const vring = this.#vring(index);
    if (vring.ring === null) return vring;
    const text = `${this.description}: vring ${index} runs; GET_VRING_BASE stops it`;
    throw new VringError('ERR_VRING_SHADOW_RUNNING', text);
  }

  #rings(): ShadowRing[] {
    return [...this.#vrings.values()].flatMap(({ ring }) => (ring === null ? [] : [ring]));
  }

  #running(): ReadonlySet<number> {
    const all = [...this.#vrings].filter(([, { ring }]) => ring !== null);
    return new Set(all.map(([index]) => index));
  }

  #fail(error: Error): void {
    this.#failure ??= error;
    void this.#inner.close();
  }

  #dropRings(): void {
    for (const { ring, kick, call, err } of this.#vrings.values()) {
      ring?.close();
      kick?.close();
      call?.close();
      err?.close();
    }
    this.#vrings.clear();
  }

  #end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#dropRings();
    this.#log?.close();
    this.#memory.close();
  }
}

function sameAddresses(a: VringAddresses | null, b: VringAddresses): boolean {
  return a?.descUva === b.descUva && a.availUva === b.availUva && a.usedUva === b.usedUva;
}
