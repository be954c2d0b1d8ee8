/**
 * Serves a device over VDUSE: drives a `BackendTarget` by what the kernel asks and by what the
 * driver set up, as a vhost-user session does by messages.
 *
 * Theory of operation. Requests are handled one after the other, together with what the data plane
 * asks for, and each is answered as soon as what it demands holds: rings stand still before a reset
 * or a change of memory is acknowledged. Whoever caused one sits in the kernel meanwhile, perhaps
 * in this very process's netlink call, which therefore never runs on this thread.
 *
 * The kernel injects interrupts only from DRIVER_OK on, which it notes *after* our answer. So all
 * rings are interrupted once more when it lets us: nothing that was used before is missed.
 *
 * A process that dies leaves its device behind; kicks are noted, requests wait and are said again
 * to whoever opens the device next. That one (`resumed`) learns whether the driver runs by trying
 * an interrupt, because nothing says so, and goes on with the rings: see vduse-rings.ts.
 */
import { messageOf, VringError } from '../base/errors.ts';
import type { Poll } from '../sys/index.ts';
import type { VduseChannel, VduseRequest } from '../vhost-kernel/index.ts';
import { type BackendTarget, type FrontendRequests, isPacked } from '../vhost-user/index.ts';
import { VHOST_USER_PROTOCOL_F_CONFIG } from '../wire/vhost-user.ts';
import {
  featureNames,
  featureSet,
  hasFeature,
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_FEATURES_OK,
  VIRTIO_F_ACCESS_PLATFORM,
} from '../wire/virtio.ts';
import type { VduseInflight } from './vduse-inflight.ts';
import { VduseMemory } from './vduse-memory.ts';
import { VduseRings } from './vduse-rings.ts';

export type VduseEvent =
  /** DRIVER_OK: the rings run. `resumed`: they ran before, with another process. */
  | { readonly kind: 'driver-ok'; readonly resumed: boolean }
  | { readonly kind: 'reset' }
  /** Something does not work; the device goes on. */
  | { readonly kind: 'problem'; readonly error: VringError }
  /** Nothing works any more: `close` it. */
  | { readonly kind: 'gone'; readonly error: Error };

export type VduseHostOptions = {
  readonly device: VduseChannel;
  /** As the kernel knows them: see `vduseFeatures`. */
  readonly features: bigint;
  readonly target: BackendTarget;
  readonly configBytes: number;
  /** The device was there before, with another process. */
  readonly resumed: boolean;
  /** Null: the target uses chains in the order of the ring. The host closes it. */
  readonly inflight: VduseInflight | null;
  /** Our memory in the place of the kernel's bounce buffer. */
  readonly ownBounce?: boolean;
  readonly onEvent: (event: VduseEvent) => void;
};

const PLATFORM = featureSet(VIRTIO_F_ACCESS_PLATFORM);
const SPACE_BYTES = Number.MAX_SAFE_INTEGER + 1;

/** The kernel notes DRIVER_OK microseconds after our answer; a busy machine needs longer. */
const SETTLE_FIRST_MS = 1;
const SETTLE_LAST_MS = 100;

export class VduseHost {
  readonly #options: VduseHostOptions;
  readonly #memory: VduseMemory;
  readonly #rings: VduseRings;
  #poll: Poll | null = null;
  /** Of the driver, without ACCESS_PLATFORM; null before FEATURES_OK. */
  #acked: bigint | null = null;
  #status = 0;
  /** A predecessor's rings may still run: until the driver resets. */
  #resumed: boolean;
  #work: Promise<unknown> = Promise.resolve();
  #settling: NodeJS.Timeout | null = null;
  #closed: Promise<void> | null = null;
  #gone = false;
  /** Requests answered, for status displays. */
  requests = 0;

  /** Takes the device over, and goes on with it where it runs. */
  static async start(options: VduseHostOptions): Promise<VduseHost> {
    const self = new VduseHost(options);
    try {
      await self.#serially(() => self.#begin());
      self.#poll = options.device.watch(() => self.#onReady());
      return self;
    } catch (error) {
      await self.close();
      throw error;
    }
  }

  private constructor(options: VduseHostOptions) {
    this.#options = options;
    this.#resumed = options.resumed;
    const { device, target, inflight, ownBounce = false } = options;
    const onProblem = (text: string): void => this.#problem('ERR_VRING_VDUSE_MEMORY', text);
    this.#memory = new VduseMemory(device, { ownBounce, onProblem });
    const memory = this.#memory;
    const onLateKick = (): void => {
      this.#aside(() => this.#startRings());
    };
    this.#rings = new VduseRings({ device, target, memory, inflight, onProblem, onLateKick });
  }

  get name(): string {
    return this.#options.device.name;
  }

  /** Status as the driver last wrote it; of a predecessor's driver only DRIVER_OK is known. */
  get status(): number {
    return this.#status;
  }

  /** Features of the driver; null before it chose. */
  get acked(): bigint | null {
    return this.#acked;
  }

  get isRunning(): boolean {
    return this.#rings.running > 0;
  }

  /** Files that are mapped, and how much of them the driver has mappings for. */
  get memory(): { readonly regions: number; readonly mappedBytes: number } {
    const { table, iotlb } = this.#memory;
    const { count, start, end } = iotlb.map();
    let mappedBytes = 0;
    for (let i = 0; i < count; i++) mappedBytes += end[i]! - start[i]!;
    return { regions: table.regions.length, mappedBytes };
  }

  get ownsBounce(): boolean {
    return this.#memory.ownsBounce;
  }

  /** Idempotent. The rings stand still, the device stays: another process may open it then. */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    const { device, target, inflight } = this.#options;
    this.#poll?.close();
    this.#stopSettling();
    await this.#work.catch(() => undefined);
    await this.#rings.stopAll();
    await target.sessionClosed(null);
    this.#memory.close();
    inflight?.close();
    device.close();
  }

  async #begin(): Promise<void> {
    const { device, target, resumed } = this.#options;
    target.sessionOpened?.(this.#asFrontend());
    if (!resumed) return;
    this.#writeConfig(); // what the device says now, not what its predecessor said
    if (!device.injectInterrupt(0)) return;
    await this.#acceptFeatures();
    this.#status = VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;
    try {
      await this.#startAfresh();
      this.#emit({ kind: 'driver-ok', resumed: true });
    } catch (error) {
      this.#fail(error); // the driver's reset comes through, and helps
    }
    this.#settle();
    device.injectConfigInterrupt();
  }

  #onReady(): void {
    this.#poll?.update({});
    this.#aside(async () => {
      const { device } = this.#options;
      for (let request = device.receive(); request !== null; request = device.receive()) {
        await this.#handle(request);
        if (this.#closed !== null) return;
      }
      this.#poll?.update({ read: true });
    });
  }

  async #handle(request: VduseRequest): Promise<void> {
    const { device } = this.#options;
    this.requests++;
    try {
      switch (request.kind) {
        case 'status':
          await this.#setStatus(request.status);
          device.answer(request, true);
          if (this.#isDriverOk) this.#settle();
          return;
        case 'queue-state': {
          const features = this.#acked ?? 0n;
          const base = await this.#rings.position(request.index, features);
          device.answer(request, true, { base, packed: isPacked(features) });
          return;
        }
        case 'update-iotlb':
          await this.#forgetMemory();
          device.answer(request, true);
          if (this.#isDriverOk) await this.#startAfresh();
          return;
        case 'unknown': {
          const text = `the kernel asks for what is not known here: request type ${request.type}`;
          throw new VringError('ERR_VRING_VDUSE_REQUEST', text);
        }
      }
    } catch (error) {
      this.#fail(error);
      // Twice for `update-iotlb`: the second one finds nobody, which is no error.
      if (!this.#gone) device.answer(request, false);
    }
  }

  async #setStatus(status: number): Promise<void> {
    const { target } = this.#options;
    const risen = status & ~this.#status;
    if (status === 0) await this.#reset();
    if ((risen & VIRTIO_CONFIG_S_FEATURES_OK) !== 0) await this.#acceptFeatures();
    if ((risen & VIRTIO_CONFIG_S_DRIVER_OK) !== 0) {
      await this.#startAfresh();
      this.#emit({ kind: 'driver-ok', resumed: false });
    }
    this.#status = status;
    await target.setStatus(status);
    const isRefused = (target.getStatus() & VIRTIO_CONFIG_S_FEATURES_OK) === 0;
    if ((risen & VIRTIO_CONFIG_S_FEATURES_OK) !== 0 && isRefused) {
      const { name } = this.#options.device;
      const text = `the device does not work with the features that the driver of ${name} took`;
      throw new VringError('ERR_VRING_VDUSE_FEATURES', text);
    }
  }

  get #isDriverOk(): boolean {
    return (this.#status & VIRTIO_CONFIG_S_DRIVER_OK) !== 0;
  }

  async #reset(): Promise<void> {
    const { target } = this.#options;
    this.#stopSettling();
    await this.#forgetMemory();
    this.#rings.forget();
    this.#acked = null;
    this.#resumed = false;
    await target.resetDevice?.();
    this.#emit({ kind: 'reset' });
  }

  /** @throws VringError ERR_VRING_VDUSE_FEATURES: refused, and the driver sees no FEATURES_OK. */
  async #acceptFeatures(): Promise<void> {
    const { device, target, features: offered } = this.#options;
    const acked = device.driverFeatures();
    const foreign = acked & ~offered;
    const names = featureNames(foreign, target.deviceId ?? 0).join(', ');
    if (foreign !== 0n) {
      const text = `the driver of ${device.name} took features that were not offered: ${names}`;
      throw new VringError('ERR_VRING_VDUSE_FEATURES', text);
    }
    if (!hasFeature(acked, VIRTIO_F_ACCESS_PLATFORM)) {
      const text = `the driver of ${device.name} did not take ACCESS_PLATFORM`;
      throw new VringError('ERR_VRING_VDUSE_FEATURES', text);
    }
    this.#acked = acked & ~PLATFORM;
    await target.setFeatures(this.#acked);
  }

  /** Rings stand still and nothing of the driver's memory is in use or mapped. */
  async #forgetMemory(): Promise<void> {
    const { target } = this.#options;
    await this.#rings.stopAll();
    await target.invalidateIotlb?.(0, SPACE_BYTES);
    this.#memory.forget();
    await target.setMemTable(this.#memory.table);
  }

  /** Maps all there is now, then starts what can be. No ring runs. */
  async #startAfresh(): Promise<void> {
    await this.#rings.stopAll();
    this.#memory.learnAll();
    await this.#options.target.setMemTable(this.#memory.table);
    await this.#rings.startAll(this.#acked ?? 0n, this.#resumed);
  }

  /** What was not ready may be by now. */
  async #startRings(): Promise<void> {
    if (!this.#isDriverOk) return;
    await this.#rings.startAll(this.#acked ?? 0n, this.#resumed);
    this.#settle();
  }

  async #miss(iova: number): Promise<void> {
    const { target } = this.#options;
    if (!this.#isDriverOk) return;
    const found = this.#memory.learn(BigInt(iova));
    if (found === null) {
      const text = `a ring leads to 0x${iova.toString(16)}, which the driver has not mapped`;
      this.#problem('ERR_VRING_VDUSE_UNMAPPED', text);
    } else if (found === 'new-file') {
      await this.#forgetMemory();
      await this.#startAfresh();
    } else {
      await target.updateIotlb?.(found);
    }
  }

  #settle(delayMs = 0): void {
    this.#stopSettling();
    this.#settling = setTimeout(() => {
      this.#settling = null;
      try {
        if (this.#rings.interruptAll()) return;
      } catch (error) {
        this.#fail(error);
        return;
      }
      this.#settle(Math.min(SETTLE_LAST_MS, Math.max(SETTLE_FIRST_MS, 2 * delayMs)));
    }, delayMs);
  }

  #stopSettling(): void {
    if (this.#settling !== null) clearTimeout(this.#settling);
    this.#settling = null;
  }

  #writeConfig(): void {
    const { device, target, configBytes } = this.#options;
    const bytes = target.getConfig(0, configBytes);
    if (bytes !== null && configBytes > 0) device.setConfig(0, bytes);
  }

  /** What the target may ask of its front-end: here the kernel. */
  #asFrontend(): FrontendRequests {
    const refuse = async (): Promise<never> => {
      const text = 'VDUSE has no way to ask that of a driver';
      throw new VringError('ERR_VRING_NOT_NEGOTIATED', text);
    };
    return {
      can: (feature) => feature === VHOST_USER_PROTOCOL_F_CONFIG,
      iotlbMiss: (iova) => this.#aside(() => this.#miss(iova)),
      configChanged: async () => {
        this.#writeConfig();
        this.#options.device.injectConfigInterrupt();
      },
      setHostNotifier: refuse,
      addSharedObject: refuse,
      removeSharedObject: refuse,
      lookUpSharedObject: refuse,
      mapShmem: refuse,
      unmapShmem: refuse,
    };
  }

  #serially<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#work.then(work);
    this.#work = done.catch(() => undefined);
    return done;
  }

  /** In its turn, with nobody who waits for it. */
  #aside(work: () => Promise<void>): void {
    void this.#serially(async () => {
      if (this.#closed === null && !this.#gone) await work();
    }).catch((error: unknown) => this.#fail(error));
  }

  #problem(code: string, text: string): void {
    const error = new VringError(code, `VDUSE device ${this.name}: ${text}`);
    this.#emit({ kind: 'problem', error });
  }

  #fail(error: unknown): void {
    const isDevice = error instanceof VringError;
    if (isDevice && error.code !== 'ERR_VRING_SYS' && !GONE.has(error.code)) {
      this.#emit({ kind: 'problem', error });
      return;
    }
    if (this.#gone) return;
    this.#gone = true;
    this.#poll?.close();
    this.#stopSettling();
    const cause = error instanceof Error ? error : new Error(messageOf(error));
    this.#emit({ kind: 'gone', error: cause });
  }

  #emit(event: VduseEvent): void {
    if (this.#closed === null) this.#options.onEvent(event);
  }
}

/** Codes after which no call on the device works. */
const GONE = new Set([
  'ERR_VRING_VDUSE_BROKEN',
  'ERR_VRING_DEVICE_GONE',
  'ERR_VRING_KERNEL_LACKS',
  'ERR_VRING_WORKER',
]);
