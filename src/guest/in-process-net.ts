/**
 * The traditional path: the process that owns the guest is its network device, too. A `NetDevice`
 * and its data plane in the guest's own thread, and a TAP interface as the way out. Every kick of
 * the driver is worked on before the driver goes on: the device uses the driver's processor time,
 * and nobody else's.
 *
 * It is the device that `vring switch` serves, with the same features, limits and counters: what
 * differs from a port with a TAP uplink is where it runs.
 */
import { VringError } from '../base/errors.ts';
import {
  type AddNetPort,
  type AddTapPort,
  NetDevice,
  type NetPlaneOptions,
  PARKED_FRAMES_BYTES,
} from '../devices/net/index.ts';
import { createPlane } from '../devices/net/net-plane.ts';
import { PrivateMemory } from '../memory/index.ts';
import {
  DeviceHost,
  InProcessBackend,
  type InProcessEvents,
  LocalRunner,
} from '../runtime/index.ts';
import {
  COUNTERS_BYTES,
  MAC_CAPACITY_DEFAULT,
  MacTable,
  SWITCH_SCRATCH_BYTES,
  type PortSettings,
} from '../switch/index.ts';
import { type Fd, openTap, setInterfaceMtu, setInterfaceUp, setTapOffloads } from '../sys/index.ts';
import { TAP_ACCEPTS, TAP_ACCEPTS_USO, TAP_SCRATCH_BYTES } from '../uplinks/index.ts';
import { parseMac } from '../wire/ethernet.ts';
import {
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_STATUS,
} from '../wire/vhost-user.ts';
import { featureSet } from '../wire/virtio.ts';

export type InProcessNetOptions = {
  /** The interface, created if it is not there. Null: the device returns every frame. */
  readonly tap: string | null;
  readonly queuePairs?: number;
  /** The device's address; null leaves it to the driver. */
  readonly mac?: string | null;
  readonly mtu?: number;
  /** Offer ACCESS_PLATFORM. */
  readonly iommu?: boolean;
  readonly events?: InProcessEvents;
};

const DEVICE = 0;
const UPLINK = 1;
const DEFAULT_MTU = 1500;

const PROTOCOL_FEATURES = featureSet(
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_STATUS,
);

/**
 * A network device in this thread, for one driver; closing the back-end ends it.
 * @throws VringError ERR_VRING_GUEST_TAP: the interface cannot be had, and why.
 */
export async function openInProcessNet(options: InProcessNetOptions): Promise<InProcessBackend> {
  const device = new InProcessNet(options);
  try {
    return await device.open();
  } catch (error) {
    device.close();
    throw error;
  }
}

class InProcessNet {
  readonly #options: InProcessNetOptions;
  readonly #owned: { close(): unknown }[] = [];
  #runner: LocalRunner | null = null;
  #backend: InProcessBackend | null = null;

  constructor(options: InProcessNetOptions) {
    this.#options = options;
  }

  async open(): Promise<InProcessBackend> {
    const { tap, events } = this.#options;
    let host: DeviceHost | null = null;
    const runner = new LocalRunner({
      createPlane,
      planeOptions: this.#planeOptions(),
      onEvent: (event) => host?.planeEvent(event),
      onCrash: (error) => void this.#backend?.fail(error),
    });
    this.#runner = runner;
    await this.#addDevice(runner);
    if (tap !== null) await this.#addUplink(runner, tap);
    host = this.#makeHost(runner);
    this.#backend = await InProcessBackend.open({
      description: tap === null ? 'in-process' : `in-process:${tap}`,
      target: host,
      runner,
      release: async () => this.close(),
      ...(events === undefined ? {} : { events }),
    });
    return this.#backend;
  }

  /** Idempotent. The runner first: what it works with is closed then. */
  close(): void {
    void this.#runner?.close();
    for (const owned of this.#owned.splice(0)) owned.close();
  }

  #planeOptions(): NetPlaneOptions {
    return {
      macTable: MacTable.create().memory,
      counters: new SharedArrayBuffer(COUNTERS_BYTES),
      scratchAt: this.#memory(SWITCH_SCRATCH_BYTES),
    };
  }

  async #addDevice(runner: LocalRunner): Promise<void> {
    const { tap, mac, queuePairs = 1, mtu = DEFAULT_MTU, iommu = false } = this.#options;
    const add: AddNetPort = {
      port: DEVICE,
      settings: { ...THROUGH, reflect: tap === null },
      queuePairs,
      mtu,
      mac: macOf(mac),
      linkUp: true,
      parkedAt: iommu ? this.#memory(PARKED_FRAMES_BYTES) : -1,
    };
    await runner.request('addNetPort', add);
  }

  async #addUplink(runner: LocalRunner, tap: string): Promise<void> {
    const { mtu = DEFAULT_MTU } = this.#options;
    const { fd, uso } = this.#openTap(tap, mtu);
    const add: AddTapPort = {
      port: UPLINK,
      settings: THROUGH,
      fds: [fd.number],
      scratchAt: this.#memory(TAP_SCRATCH_BYTES),
      accepts: uso ? TAP_ACCEPTS_USO : TAP_ACCEPTS,
      mtu,
      linkUp: true,
    };
    await runner.request('addTapPort', add);
  }

  #openTap(tap: string, mtu: number): { fd: Fd; uso: boolean } {
    try {
      const { fd, name } = openTap(tap, { vnetHdrBytes: 12 });
      this.#owned.push(fd);
      const takes = { csum: true, tso4: true, tso6: true, ecn: true, ufo: false, uso: true };
      const { uso } = setTapOffloads(fd.number, takes);
      setInterfaceMtu(name, mtu);
      setInterfaceUp(name, true);
      return { fd, uso };
    } catch (cause) {
      throw tapError(cause);
    }
  }

  #makeHost(runner: LocalRunner): DeviceHost {
    const { mac, queuePairs = 1, mtu = DEFAULT_MTU, iommu = false } = this.#options;
    const device = new NetDevice({
      queuePairs,
      mac: macOf(mac),
      mtu,
      packed: true,
      mrgRxbuf: true,
      csum: true,
      tso: true,
      uso: true,
      iommu,
      controlQueue: true,
    });
    return new DeviceHost({
      worker: runner,
      number: DEVICE,
      device,
      protocolFeatures: PROTOCOL_FEATURES,
      queueNum: queuePairs,
      onMtu: (wanted) => wanted <= mtu,
      onChange: () => undefined,
      onReset: () => device.resetAddress(),
    });
  }

  #memory(bytes: number): number {
    const memory = PrivateMemory.allocate(bytes);
    this.#owned.push(memory);
    return memory.offset;
  }
}

/** Frames pass with and without tags. (A tag that says VLAN 1 is taken off, as on any trunk.) */
const THROUGH: PortSettings = {
  vlan: { mode: 'trunk', allowed: 'all', native: 1 },
  macLimit: MAC_CAPACITY_DEFAULT,
  reflect: false,
};

function macOf(text: string | null | undefined): Uint8Array | null {
  return text == null ? null : parseMac(text);
}

/** Errors of opening a TAP name it, and so do those of setting it up. */
function tapError(cause: unknown): unknown {
  if (!(cause instanceof VringError)) return cause;
  return new VringError('ERR_VRING_GUEST_TAP', cause.message, { cause });
}
