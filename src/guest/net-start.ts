/** The beginning of the guest's net driver: what it and its first back-end agree upon. */
import { VringError } from '../base/errors.ts';
import type { VhostBackend } from '../base/vhost-backend.ts';
import {
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_FEATURES_OK,
} from '../wire/virtio.ts';
import { readDeviceConfig, type DeviceConfig } from './device-config.ts';
import { chooseFeatures, type FeatureWishes } from './features.ts';

export type Agreement = {
  readonly offered: bigint;
  /** Acked. */
  readonly features: bigint;
  readonly config: DeviceConfig | null;
  /** Queue pairs that the device has. */
  readonly maxPairs: number;
};

/**
 * Features, status and configuration; the back-end then waits for memory and rings.
 * @throws VringError ERR_VRING_GUEST_FEATURE, ERR_VRING_GUEST_QUEUES; what the back-end throws.
 */
export async function agree(backend: VhostBackend, wishes: FeatureWishes): Promise<Agreement> {
  const { queuePairs } = wishes;
  const offered = await backend.getFeatures();
  await backend.setOwner();
  const vrings = await backend.getQueueNum();
  if (2 * queuePairs > vrings) {
    throw new VringError(
      'ERR_VRING_GUEST_QUEUES',
      `${queuePairs} queue pairs are wanted; ${backend.description} has ${vrings >> 1}`,
    );
  }
  const features = chooseFeatures(offered, { backend: backend.description, ...wishes });
  await backend.setStatus(VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
  const config = await readDeviceConfig(backend, features);
  await backend.setFeatures(features);
  await confirmFeatures(backend);
  return { offered, features, config, maxPairs: config?.maxVirtqueuePairs ?? vrings >> 1 };
}

/** 3.1.1, step 6: the device may refuse the set of features. */
async function confirmFeatures(backend: VhostBackend): Promise<void> {
  const wanted = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK;
  await backend.setStatus(wanted);
  const status = await backend.getStatus();
  if ((status & VIRTIO_CONFIG_S_FEATURES_OK) !== 0) return;
  throw new VringError(
    'ERR_VRING_GUEST_FEATURE',
    `${backend.description} refused the negotiated features (status 0x${status.toString(16)})`,
  );
}
