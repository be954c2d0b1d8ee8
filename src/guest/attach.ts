/**
 * A driver and its back-end: how a driver that is at work is introduced to a back-end that does not
 * know it yet, because it came back, or because the guest moved. For any driver: what it is made of
 * is a `DriverSetup`.
 */
import { VringError } from '../base/errors.ts';
import type { BackendMemoryRegion, VhostBackend } from '../base/vhost-backend.ts';
import {
  startVring,
  VhostUserFrontend,
  type FrontendVring,
  type InflightRegion,
} from '../vhost-user/index.ts';
import { protocolFeatureNames } from '../wire/vhost-user.ts';
import {
  featureNames,
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_FEATURES_OK,
} from '../wire/virtio.ts';

/** What a driver that is at work expects of every back-end. */
export type DriverSetup = {
  /** VIRTIO_ID_*, for the names of features. */
  readonly deviceId: number;
  /** Acked by the driver; they cannot change while it runs. */
  readonly features: bigint;
  /** In use with the first back-end. */
  readonly protocolFeatures: bigint;
  /** Vrings that it uses: the highest index and one. */
  readonly vrings: number;
  readonly regions: () => readonly BackendMemoryRegion[];
  /** How they are shared, where it is not `setMemTable` that does it: postcopy. */
  readonly share?: (backend: VhostBackend) => Promise<void>;
  /** Each ring from where it goes on; asked when the back-end is ready for them. */
  readonly rings: () => readonly DriverRing[];
  /** Kept by the driver, across back-ends. */
  readonly inflight: InflightRegion | null;
  /** Memory is shared: what its addresses mean to the device, which may not ask. */
  readonly settle?: () => Promise<void>;
  /** What else the device must be told before its rings start. */
  readonly prepare?: (backend: VhostBackend) => Promise<void>;
};

export type DriverRing = { readonly index: number; readonly vring: FrontendVring };

export type ReconnectOptions = {
  /** One attempt; rejects when nobody is there. Server mode: waits until somebody is. */
  readonly connect: (signal: AbortSignal) => Promise<VhostBackend>;
  /** Pauses between attempts; the first one is made at once. Defaults 20 and 250. */
  readonly minDelayMs?: number;
  readonly maxDelayMs?: number;
};

const MIN_DELAY_MS = 20;
/** Short, because guests stand still meanwhile; a refused connect(2) costs microseconds. */
const MAX_DELAY_MS = 250;

const DRIVER = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
const FEATURES_OK = DRIVER | VIRTIO_CONFIG_S_FEATURES_OK;
/** Device status of a driver at work. */
export const RUNNING = FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;

/**
 * For what only vhost-user has: protocol features, the inflight region, device state, RARP,
 * postcopy. Null for other transports.
 */
export function asVhostUser(backend: VhostBackend): VhostUserFrontend | null {
  return backend instanceof VhostUserFrontend ? backend : null;
}

/** What was negotiated of vhost-user; 0 for other transports. */
export function protocolFeaturesOf(backend: VhostBackend): bigint {
  return asVhostUser(backend)?.protocolFeatures ?? 0n;
}

/**
 * Everything but the rings: features, memory, inflight region.
 * @throws VringError ERR_VRING_FEATURES, ERR_VRING_GUEST_QUEUES: another device than before.
 */
export async function introduceDriver(backend: VhostBackend, setup: DriverSetup): Promise<void> {
  await checkFeatures(backend, setup);
  await backend.setOwner();
  const vrings = await backend.getQueueNum();
  if (vrings < setup.vrings) {
    const text = `${backend.description} has ${vrings} vrings now, ${setup.vrings} are in use`;
    throw new VringError('ERR_VRING_GUEST_QUEUES', text);
  }
  await negotiate(backend, setup);
}

/**
 * The same to a back-end that knew it all and was stopped as a whole (`restartsWhole`): from a
 * reset on. It is owned already.
 */
export async function introduceAgain(backend: VhostBackend, setup: DriverSetup): Promise<void> {
  await backend.setStatus(0);
  await negotiate(backend, setup);
}

async function negotiate(backend: VhostBackend, setup: DriverSetup): Promise<void> {
  await backend.setStatus(DRIVER);
  await backend.setFeatures(setup.features);
  await backend.setStatus(FEATURES_OK);
  await setup.prepare?.(backend);
  await (setup.share?.(backend) ?? backend.setMemTable(setup.regions()));
  await setup.settle?.();
  if (setup.inflight !== null) await asVhostUser(backend)?.inflight.set(setup.inflight);
}

/** Hands the rings over; the caller kicks them. */
export async function startRings(backend: VhostBackend, setup: DriverSetup): Promise<void> {
  for (const { index, vring } of setup.rings()) await startVring(backend, index, vring);
  await backend.setStatus(RUNNING);
}

async function checkFeatures(backend: VhostBackend, setup: DriverSetup): Promise<void> {
  const missing = setup.features & ~(await backend.getFeatures());
  const missingProtocol = setup.protocolFeatures & ~protocolFeaturesOf(backend);
  if (missing === 0n && missingProtocol === 0n) return;
  const parts: string[] = [];
  if (missing !== 0n) {
    parts.push(`the features ${featureNames(missing, setup.deviceId).join(' ')}`);
  }
  if (missingProtocol !== 0n) {
    parts.push(`the protocol features ${protocolFeatureNames(missingProtocol).join(' ')}`);
  }
  const text =
    `${backend.description} does not offer ${parts.join(', nor ')}, which are in use; ` +
    'give them back to the back-end, or restart the guest, whose driver then negotiates anew';
  throw new VringError('ERR_VRING_FEATURES', text);
}

/**
 * Connects until somebody answers who can take the driver, and hands everything over.
 * @throws VringError of `introduceDriver` and whatever else waiting does not cure; `signal` ends it
 *   with ERR_VRING_CLOSED.
 */
export async function reconnect(
  options: ReconnectOptions,
  setup: DriverSetup,
  signal: AbortSignal,
): Promise<VhostBackend> {
  const { minDelayMs = MIN_DELAY_MS, maxDelayMs = MAX_DELAY_MS } = options;
  for (let delayMs = 0; ; delayMs = Math.min(Math.max(2 * delayMs, minDelayMs), maxDelayMs)) {
    await pause(delayMs, signal);
    if (signal.aborted) throw new VringError('ERR_VRING_CLOSED', 'the guest is closed');
    let backend: VhostBackend | null = null;
    try {
      backend = await options.connect(signal);
      await introduceDriver(backend, setup);
      await startRings(backend, setup);
      return backend;
    } catch (error) {
      await backend?.close();
      if (!isTransient(error)) throw error;
    }
  }
}

/** Nobody is there yet, or who was there is gone again. */
function isTransient(error: unknown): boolean {
  if (!(error instanceof VringError)) return false;
  return error.recovery === 'retry' || error.recovery === 'reconnect';
}

function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  if (milliseconds === 0 || signal.aborted) return Promise.resolve();
  return new Promise((resolve) => {
    const end = (): void => {
      clearTimeout(timer);
      signal.removeEventListener('abort', end);
      resolve();
    };
    const timer = setTimeout(end, milliseconds);
    signal.addEventListener('abort', end);
  });
}
