/**
 * Joins one vhost-user session after another to one device of a data-plane worker: what the
 * protocol asks of a back-end (`BackendTarget`) becomes requests to the worker that runs the
 * rings. One host serves one device for its whole life; sessions come and go.
 *
 * Order is the point. A ring is stopped by asking the worker to let go of it and waiting for the
 * answer; only then may descriptors be closed and memory be unmapped. Requests to a worker are
 * answered in order, so nothing here needs a lock.
 */
import type { VirtioDevice } from '../base/virtio-device.ts';
import type { MemoryTable } from '../memory/index.ts';
import type { Fd } from '../sys/fd.ts';
import type {
  BackendTarget,
  FrontendRequests,
  IotlbUpdate,
  StartVring,
} from '../vhost-user/index.ts';
import { faultName } from '../virtqueue/faults.ts';
import {
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
} from '../wire/vhost-user.ts';
import {
  VIRTIO_CONFIG_S_FEATURES_OK,
  VIRTIO_F_IN_ORDER,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
  hasFeature,
} from '../wire/virtio.ts';
import type { PlaneEvent, PlaneFault } from './data-plane.ts';
import type { PlaneRunner } from './plane-runner.ts';

/** What a device with a state of its own opts in to: DEVICE_STATE. */
export type StateKeeper = {
  /** No ring runs during the call. */
  save(): Promise<Uint8Array>;
  /** @throws VringError: refused, and nothing has changed. */
  load(state: Uint8Array): Promise<void>;
};

export type DeviceHostOptions = {
  readonly worker: PlaneRunner;
  /** The device's number in the worker's plane. */
  readonly number: number;
  readonly device: VirtioDevice;
  readonly protocolFeatures: bigint;
  /** What GET_QUEUE_NUM answers. Front-ends of net count queue pairs there, others vrings. */
  readonly queueNum: number;
  /** NET_SET_MTU arrived; false refuses it. */
  readonly onMtu: (mtu: number) => boolean;
  /** Something that a status display shows has changed. */
  readonly onChange: () => void;
  readonly state?: StateKeeper;
  /** RESET_DEVICE: the worker has forgotten what the driver set; forget the rest. */
  readonly onReset?: () => void;
  /** SEND_RARP, for devices that have addresses. */
  readonly onRarp?: (mac: Uint8Array) => Promise<void>;
};

/** What is known of one vring; kept after the session for status displays. */
export type HostedVring = {
  readonly index: number;
  size: number;
  enabled: boolean;
  /** Handed to the worker. */
  attached: boolean;
  /** Name of the fault that broke it, until it is set up again. */
  fault: string | null;
};

export class DeviceHost implements BackendTarget {
  readonly deviceId: number;
  readonly features: bigint;
  readonly protocolFeatures: bigint;
  readonly queueCount: number;
  readonly queueNum: number;
  readonly queueSizeMax: number;
  readonly vrings: HostedVring[] = [];
  readonly saveState?: () => Promise<Uint8Array>;
  readonly loadState?: (state: Uint8Array) => Promise<void>;
  readonly sendRarp?: (mac: Uint8Array) => Promise<void>;
  /** Acknowledged by the driver in the present session. */
  acked = 0n;
  ackedProtocol = 0n;

  readonly #options: DeviceHostOptions;
  /** Rings that the worker has, or may have. */
  readonly #running = new Set<number>();
  #memory: MemoryTable | null = null;
  #requests: FrontendRequests | null = null;
  #status = 0;

  constructor(options: DeviceHostOptions) {
    this.#options = options;
    this.deviceId = options.device.deviceId;
    this.features = options.device.features;
    this.protocolFeatures = options.protocolFeatures;
    this.queueCount = options.device.queueCount;
    this.queueNum = options.queueNum;
    this.queueSizeMax = options.device.queueSizeMax;
    const { state, onRarp } = options;
    if (state !== undefined) {
      this.saveState = () => state.save();
      this.loadState = (bytes) => state.load(bytes);
    }
    if (onRarp !== undefined) this.sendRarp = onRarp;
    for (let index = 0; index < this.queueCount; index++) {
      this.vrings.push({ index, size: 0, enabled: false, attached: false, fault: null });
    }
  }

  get memory(): { readonly regions: number; readonly bytes: number } | null {
    const table = this.#memory;
    return table === null ? null : { regions: table.regions.length, bytes: table.totalBytes };
  }

  get attachedCount(): number {
    return this.#running.size;
  }

  sessionOpened(requests: FrontendRequests): void {
    this.#requests = requests;
  }

  setFeatures(acked: bigint): void {
    this.acked = acked;
    this.#options.onChange();
  }

  setProtocolFeatures(acked: bigint): void {
    this.ackedProtocol = acked;
  }

  async setMemTable(table: MemoryTable): Promise<void> {
    this.#memory = table;
    this.#options.onChange();
  }

  async startVring(index: number, vring: StartVring): Promise<void> {
    const hosted = this.vrings[index];
    // Entered first: whatever becomes of the request, the ring is detached before its fds close.
    this.#running.add(index);
    await this.#options.worker.attachVring({
      device: this.#options.number,
      index,
      config: {
        size: vring.size,
        base: vring.base,
        packed: vring.packed,
        eventIdx: hasFeature(vring.features, VIRTIO_RING_F_EVENT_IDX),
        indirect: hasFeature(vring.features, VIRTIO_RING_F_INDIRECT_DESC),
        inOrder: hasFeature(vring.features, VIRTIO_F_IN_ORDER),
        descOffset: vring.descOffset,
        availOffset: vring.availOffset,
        usedOffset: vring.usedOffset,
        bigEndian: vring.bigEndian,
      },
      map: vring.map,
      regions: this.#regionsOf(vring),
      features: vring.features,
      kickFd: vring.kick?.number ?? -1,
      callFd: vring.call?.number ?? -1,
      injectedQueue: vring.injectedQueue ?? -1,
      errFd: vring.err?.number ?? -1,
      enabled: vring.enabled,
      iotlb: vring.iotlb,
      log: vring.log,
      inflight: vring.inflight,
      drain: vring.inflight === null || !this.#keepsInflight(),
    });
    hosted.enabled = vring.enabled;
    hosted.size = vring.size;
    hosted.attached = true;
    hosted.fault = null;
    this.#options.onChange();
  }

  async stopVring(index: number): Promise<number> {
    const base = await this.#options.worker.detachVring(this.#options.number, index);
    this.#running.delete(index);
    this.vrings[index].attached = false;
    this.#options.onChange();
    return base;
  }

  async setVringEnabled(index: number, enabled: boolean): Promise<void> {
    this.vrings[index].enabled = enabled;
    if (this.#running.has(index)) {
      await this.#options.worker.enableVring(this.#options.number, index, enabled);
    }
    this.#options.onChange();
  }

  async setVringCall(index: number, fd: Fd | null): Promise<void> {
    if (!this.#running.has(index)) return;
    await this.#options.worker.setCallFd(this.#options.number, index, fd?.number ?? -1);
  }

  async setVringErr(index: number, fd: Fd | null): Promise<void> {
    if (!this.#running.has(index)) return;
    await this.#options.worker.setErrFd(this.#options.number, index, fd?.number ?? -1);
  }

  getConfig(offset: number, sizeBytes: number): Uint8Array | null {
    return this.#options.device.readConfig(offset, sizeBytes);
  }

  setConfig(offset: number, bytes: Uint8Array): boolean {
    return this.#options.device.writeConfig(offset, bytes);
  }

  getStatus(): number {
    return this.#status;
  }

  async setStatus(status: number): Promise<void> {
    this.#status = this.refusal !== null ? status & ~VIRTIO_CONFIG_S_FEATURES_OK : status;
  }

  /** Why FEATURES_OK stays clear; null. */
  get refusal(): string | null {
    return this.#options.device.refuses?.(this.acked) ?? null;
  }

  setMtu(mtu: number): boolean {
    return this.#options.onMtu(mtu);
  }

  /** All memory that the worker touches for a ring: it retains it, and sees when it is gone. */
  #regionsOf(vring: StartVring): number[] {
    const regions = [...(this.#memory?.handles() ?? [])];
    if (vring.log !== null) regions.push(vring.log.handle);
    if (vring.inflight !== null) regions.push(vring.inflight.handle);
    return regions;
  }

  /** The front-end lets a ring stop with requests under way: they are recorded. */
  #keepsInflight(): boolean {
    return (
      hasFeature(this.ackedProtocol, VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD) &&
      hasFeature(this.ackedProtocol, VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT)
    );
  }

  async updateIotlb(entry: IotlbUpdate): Promise<void> {
    await this.#options.worker.updateIotlb(this.#options.number, entry);
  }

  async invalidateIotlb(iova: number, sizeBytes: number): Promise<void> {
    await this.#options.worker.invalidateIotlb(this.#options.number, iova, sizeBytes);
  }

  /** The driver starts over, in the same session. */
  async resetDevice(): Promise<void> {
    await this.#options.worker.resetDevice(this.#options.number);
    this.#status = 0;
    this.#options.onReset?.();
    this.#options.onChange();
  }

  /**
   * Tells the driver to read its configuration space again; nothing happens where the front-end
   * negotiated no way to hear of it.
   */
  async configChanged(): Promise<void> {
    const requests = this.#requests;
    if (requests?.can(VHOST_USER_PROTOCOL_F_CONFIG)) await requests.configChanged();
  }

  async sessionClosed(): Promise<void> {
    this.#requests = null;
    for (const index of this.#running) await this.stopVring(index);
    await this.#options.worker.resetDevice(this.#options.number);
    for (const hosted of this.vrings) hosted.enabled = false;
    this.#memory = null;
    this.#status = 0;
    this.acked = 0n;
    this.ackedProtocol = 0n;
    this.#options.onChange();
  }

  /** What the worker has to say of this device. */
  planeEvent(event: PlaneEvent): void {
    if (event.kind === 'fault') this.#faulted(event);
    else if (event.kind === 'iotlb-miss') this.#requests?.iotlbMiss(event.iova, event.write);
  }

  /** The worker found a queue broken, and has told the front-end. */
  #faulted(event: PlaneFault): void {
    for (const hosted of this.vrings) {
      if (!hosted.attached || (event.index !== -1 && event.index !== hosted.index)) continue;
      hosted.fault = faultName(event.code);
    }
    this.#options.onChange();
  }
}
