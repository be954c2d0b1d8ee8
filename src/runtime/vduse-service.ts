/**
 * A device as the kernel's: made or found under its name, served, put onto the vDPA bus and given
 * to a driver; taken off again, or left for a successor.
 *
 * Whoever adds the device waits in the kernel for the driver's probe, and the probe for us. Netlink
 * and sysfs therefore go through the thread pool, and this thread goes on answering.
 */
import { existsSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { VringError } from '../base/errors.ts';
import {
  awaitVdpaPresence,
  bindVdpa,
  VdpaNetlink,
  type VdpaPresence,
  VduseControl,
  VduseDevice,
  vduseFeatures,
} from '../vhost-kernel/index.ts';
import type { BackendTarget } from '../vhost-user/index.ts';
import { type VduseEvent, VduseHost } from './vduse-host.ts';
import { VduseInflight } from './vduse-inflight.ts';

/** Who drives: the host's kernel, a process by /dev/vhost-vdpa-N, or nobody yet. */
export type VduseBind = 'virtio' | 'vhost' | 'none';

export type VduseServiceOptions = {
  readonly name: string;
  readonly target: BackendTarget;
  /** Of the configuration space. */
  readonly configBytes: number;
  /** Descriptors of each queue that a driver may use. */
  readonly queueSize: number;
  /** `none`: not even on the bus; `vring vdpa add` puts it there. */
  readonly bind: VduseBind;
  /** Folder of tmpfs for the record of requests under way. Null: the target keeps their order. */
  readonly stateFolder: string | null;
  readonly ownBounce?: boolean;
  /** How long the kernel waits for an answer before it gives the device up; its default is 30. */
  readonly messageTimeoutSeconds?: number;
  readonly onEvent: (event: VduseEvent) => void;
};

/** "vrin": who made the device, in `vdpa dev show`. */
const VENDOR_ID = 0x7672_696e;
const MANAGEMENT = 'vduse';
/** udev and the driver's own threads have yet to make the node. */
const PRESENCE_TIMEOUT_MS = 5000;

const NOWHERE: VdpaPresence = { driver: null, node: null, interface: null };

export class VduseService {
  readonly name: string;
  readonly host: VduseHost;
  /** The device was there, of a process that ended without taking it along. */
  readonly resumed: boolean;
  /** What Linux made of it, when it was bound. */
  presence: VdpaPresence = NOWHERE;
  readonly #inflightPath: string | null;
  #closed: Promise<void> | null = null;

  /**
   * @throws VringError ERR_VRING_DEVICE_*, ERR_VRING_VDUSE_*, ERR_VRING_VDPA_*; what was made is
   *   taken away again, what was found stays.
   */
  static async start(options: VduseServiceOptions): Promise<VduseService> {
    const { name, target } = options;
    const features = vduseFeatures(target.deviceId ?? 0, target.features);
    const { device, resumed } = openOrMake(options, features);
    let service: VduseService | null = null;
    try {
      const inflight = openInflight(options);
      if (options.messageTimeoutSeconds !== undefined) {
        const path = `/sys/class/vduse/${name}/msg_timeout`;
        await writeFile(path, String(options.messageTimeoutSeconds));
      }
      const { configBytes, ownBounce = false, onEvent } = options;
      const host = await VduseHost.start({
        device,
        features,
        target,
        configBytes,
        resumed,
        inflight,
        ownBounce,
        onEvent,
      });
      service = new VduseService(host, resumed, inflight?.path ?? null);
      await service.#present(options.bind);
      return service;
    } catch (error) {
      if (service !== null) await service.close({ keep: resumed }).catch(() => undefined);
      else device.close();
      if (service === null && !resumed) destroy(name);
      throw error;
    }
  }

  /** Use `start`. */
  constructor(host: VduseHost, resumed: boolean, inflightPath: string | null) {
    this.name = host.name;
    this.host = host;
    this.resumed = resumed;
    this.#inflightPath = inflightPath;
  }

  /**
   * Takes the device off the bus, which lets its driver go, and destroys it. `keep`: leaves it as
   * it is; its driver waits for a successor. Idempotent.
   */
  close(options: { readonly keep?: boolean } = {}): Promise<void> {
    this.#closed ??= this.#close(options.keep === true);
    return this.#closed;
  }

  async #close(keep: boolean): Promise<void> {
    try {
      if (!keep) await this.#takeOffBus();
    } finally {
      await this.host.close();
    }
    if (keep) return;
    destroy(this.name);
    if (this.#inflightPath !== null) VduseInflight.remove(this.#inflightPath);
  }

  async #present(bind: VduseBind): Promise<void> {
    if (bind === 'none') return;
    const netlink = await VdpaNetlink.open();
    try {
      const devices = await netlink.devices();
      if (!devices.some(({ name }) => name === this.name)) {
        await netlink.add({ name: this.name, management: MANAGEMENT });
      }
    } finally {
      await netlink.close();
    }
    await bindVdpa(this.name, bind === 'virtio' ? 'virtio_vdpa' : 'vhost_vdpa');
    // A card that was moved to another network namespace is not seen from here, and never will be.
    const timeoutMs = this.resumed ? 0 : PRESENCE_TIMEOUT_MS;
    this.presence = await awaitVdpaPresence(this.name, timeoutMs);
  }

  async #takeOffBus(): Promise<void> {
    if (!existsSync(`/sys/bus/vdpa/devices/${this.name}`)) return;
    const netlink = await VdpaNetlink.open();
    try {
      await netlink.delete(this.name);
    } finally {
      await netlink.close();
    }
  }
}

function openInflight(options: VduseServiceOptions): VduseInflight | null {
  const { name, stateFolder, target, queueSize } = options;
  if (stateFolder === null) return null;
  const shape = { queueCount: target.queueCount, queueSizeMax: queueSize };
  return VduseInflight.open(`${stateFolder}/vduse-${name}.inflight`, shape);
}

function openOrMake(
  options: VduseServiceOptions,
  features: bigint,
): { device: VduseDevice; resumed: boolean } {
  const { name, target, configBytes, queueSize } = options;
  using control = VduseControl.open();
  let resumed = existsSync(`/dev/vduse/${name}`);
  if (!resumed) {
    const config = {
      name,
      deviceId: target.deviceId ?? 0,
      vendorId: VENDOR_ID,
      features,
      queueCount: target.queueCount,
      queueSizeMax: queueSize,
      config: target.getConfig(0, configBytes) ?? new Uint8Array(configBytes),
    };
    try {
      control.create(config);
    } catch (error) {
      if (!(error instanceof VringError) || error.code !== 'ERR_VRING_VDUSE_EXISTS') throw error;
      resumed = true; // another process made it this very moment; is it still there?
    }
  }
  try {
    return { device: openDevice(options, resumed), resumed };
  } catch (error) {
    if (!resumed) control.destroy(name);
    throw error;
  }
}

function openDevice(options: VduseServiceOptions, resumed: boolean): VduseDevice {
  const { name, target, queueSize } = options;
  const device = VduseDevice.open(name);
  try {
    const { queueCount } = target;
    if (resumed && (!device.hasQueue(queueCount - 1) || device.hasQueue(queueCount))) {
      const text =
        `VDUSE device ${name} is there already and has not ${queueCount} queues: it is another ` +
        `one; take another name, or: vring vdpa delete ${name}`;
      throw new VringError('ERR_VRING_VDUSE_EXISTS', text);
    }
    for (let index = 0; index < queueCount; index++) device.setupQueue(index, queueSize);
    return device;
  } catch (error) {
    device.close();
    throw error;
  }
}

function destroy(name: string): void {
  using control = VduseControl.open();
  control.destroy(name);
}
