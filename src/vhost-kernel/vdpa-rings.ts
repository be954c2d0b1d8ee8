/**
 * The rings of a vDPA device and the order in which it must be told of them.
 *
 * Theory of operation. A front-end hands rings over one by one and sets DRIVER_OK at the end. The
 * device is told size, base, addresses and call at once; a ring is made ready when all is known of
 * it, just before DRIVER_OK (virtio 1.2, 4.1.5.1.3: enabling is last), and its kick is attached
 * after that. A kick that comes before DRIVER_OK would be lost: the kernel passes it on to a device
 * that does not look yet. An eventfd that is attached later and was signalled before is seen.
 *
 * To stop one ring is to stop the device. One with SUSPEND keeps everything and says where each
 * ring stands. Another is reset: then a split ring stands where its used index is, since what was
 * taken and not used is done again; where a packed ring stands its memory does not say.
 */
import { VringError } from '../base/errors.ts';
import { dupFd, type Fd, signalForeignEventfd } from '../sys/index.ts';
import type { VdpaDevice } from './vdpa-device.ts';
import type { HostVring } from './vhost-device.ts';

type Ring = {
  size: number;
  base: number;
  addresses: HostVring | null;
  /** What the front-end wants; the device knows it from DRIVER_OK on. */
  enabled: boolean;
  /** Told to the device. */
  ready: boolean;
  kick: Fd | null;
};

/** `idle`: before DRIVER_OK. */
export type RingsState = 'idle' | 'running' | 'suspended' | 'reset';

export class VdpaRings {
  readonly #device: VdpaDevice;
  readonly #rings = new Map<number, Ring>();
  /** After a stop: where each ring stands; null: unknown. */
  readonly #bases = new Map<number, number | null>();
  readonly #count: number;
  readonly #canResume: boolean;
  #state: RingsState = 'idle';

  /** `canResume`: SUSPEND and RESUME are negotiated. */
  constructor(device: VdpaDevice, count: number, canResume: boolean) {
    this.#device = device;
    this.#count = count;
    this.#canResume = canResume;
  }

  get state(): RingsState {
    return this.#state;
  }

  setSize(index: number, size: number): void {
    const ring = this.#ring(index);
    if (this.#unchanged('size', ring.size === size, index)) return;
    const most = this.#device.getVringSize(index);
    if (size > most) {
      const text = `${this.#device.path}: vring ${index}: ${size} descriptors, it takes ${most}`;
      throw new VringError('ERR_VRING_RING_SIZE', text);
    }
    this.#device.vhost.setVringNum(index, size);
    ring.size = size;
  }

  setAddresses(index: number, addresses: HostVring): void {
    const ring = this.#ring(index);
    const { desc, avail, used } = ring.addresses ?? { desc: -1n, avail: -1n, used: -1n };
    const same = desc === addresses.desc && avail === addresses.avail && used === addresses.used;
    if (this.#unchanged('addresses', same, index)) return;
    this.#device.vhost.setVringAddr(index, addresses);
    ring.addresses = addresses;
  }

  setBase(index: number, base: number): void {
    const ring = this.#ring(index);
    if (this.#unchanged('base', this.#bases.get(index) === base, index)) return;
    this.#device.vhost.setVringBase(index, base);
    ring.base = base;
  }

  setCall(index: number, fd: number | null): void {
    this.#ring(index);
    this.#device.vhost.setVringCall(index, fd);
  }

  setErr(index: number, fd: number | null): void {
    this.#ring(index);
    this.#device.vhost.setVringErr(index, fd);
  }

  setKick(index: number, fd: number | null): void {
    const ring = this.#ring(index);
    const kick = fd === null ? null : dupFd(fd, `kick of vring ${index}`);
    ring.kick?.close();
    ring.kick = kick;
    if (this.#state === 'running') this.#attachKick(index, ring);
  }

  setEnabled(index: number, enabled: boolean): void {
    const ring = this.#ring(index);
    ring.enabled = enabled;
    if (this.#state === 'running' && ring.ready !== enabled) this.#setReady(index, ring);
    else if (this.#state === 'suspended' && enabled) this.#resumeWhenAll();
  }

  /** `setDriverOk` tells the device's status, between the rings and their kicks. */
  start(setDriverOk: () => void): void {
    for (const [index, ring] of this.#rings) if (ring.enabled) this.#setReady(index, ring);
    setDriverOk();
    this.#state = 'running';
    for (const [index, ring] of this.#rings) this.#attachKick(index, ring);
  }

  /** `usedIndex` reads a split ring's index from memory; null: the ring is packed. */
  stop(canSuspend: boolean, reset: () => void, usedIndex: (ring: HostVring) => number | null) {
    if (this.#state !== 'running') return;
    if (canSuspend) {
      this.#device.suspend();
      this.#state = 'suspended';
      for (const index of this.#ready()) {
        this.#bases.set(index, this.#device.vhost.getVringBase(index));
      }
    } else {
      const ready = this.#ready();
      reset();
      this.#state = 'reset';
      for (const index of ready) {
        const { addresses } = this.#ring(index);
        this.#bases.set(index, addresses === null ? null : usedIndex(addresses));
      }
    }
    for (const ring of this.#rings.values()) ring.enabled = false;
  }

  /** @throws VringError ERR_VRING_RING_STATE: where a device that is stopped was is unknown. */
  base(index: number): number {
    const ring = this.#ring(index);
    const base = this.#bases.get(index);
    if (base === undefined) return ring.base;
    if (base !== null) return base;
    const text =
      `${this.#device.path}: vring ${index} is stopped by a reset, since the device has no ` +
      'SUSPEND, and where a packed ring stood nobody knows; drive it through a ShadowBackend, ' +
      'or without VIRTIO_F_RING_PACKED';
    throw new VringError('ERR_VRING_RING_STATE', text, { recovery: 'reset' });
  }

  /** The device was reset. */
  forget(): void {
    for (const ring of this.#rings.values()) ring.kick?.close();
    this.#rings.clear();
    this.#bases.clear();
    this.#state = 'idle';
  }

  #ring(index: number): Ring {
    const known = this.#rings.get(index);
    if (known !== undefined) return known;
    if (!Number.isInteger(index) || index < 0 || index >= this.#count) {
      const text = `${this.#device.path} has ${this.#count} vrings, there is no vring ${index}`;
      throw new VringError('ERR_VRING_RING_INDEX', text);
    }
    const ring: Ring = {
      size: 0,
      base: 0,
      addresses: null,
      enabled: false,
      ready: false,
      kick: null,
    };
    this.#rings.set(index, ring);
    return ring;
  }

  #ready(): number[] {
    return [...this.#rings].filter(([, ring]) => ring.ready).map(([index]) => index);
  }

  /**
   * A ring that stands still in a suspended device can be handed over as it is, and then nothing
   * is told. @throws VringError ERR_VRING_VDPA_STOPPED: it cannot.
   */
  #unchanged(what: string, same: boolean, index: number): boolean {
    if (this.#state !== 'suspended' && this.#state !== 'reset') return false;
    if (this.#state === 'suspended' && this.#canResume && same) return true;
    const text =
      `${this.#device.path}: vring ${index}: its ${what} cannot be set: the device is stopped, ` +
      'and goes on only after a reset: setStatus(0), then features, memory and all rings anew';
    throw new VringError('ERR_VRING_VDPA_STOPPED', text, { recovery: 'reset' });
  }

  #setReady(index: number, ring: Ring): void {
    this.#device.enableVring(index, ring.enabled);
    ring.ready = ring.enabled;
  }

  #attachKick(index: number, ring: Ring): void {
    this.#device.vhost.setVringKick(index, ring.kick?.number ?? null);
  }

  /** Once all rings that ran are wanted again. */
  #resumeWhenAll(): void {
    if (!this.#canResume) return;
    for (const ring of this.#rings.values()) if (ring.ready && !ring.enabled) return;
    this.#device.resume();
    this.#state = 'running';
    this.#bases.clear();
    for (const [index, ring] of this.#rings) {
      this.#attachKick(index, ring);
      // What was kicked while the device stood still was passed on to it, and lost.
      if (ring.kick !== null) signalForeignEventfd(ring.kick.number);
    }
  }
}
