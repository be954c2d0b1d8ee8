/** The beginning of the guest's block driver: what it and its first back-end agree upon. */
import { VringError } from '../base/errors.ts';
import type { VhostBackend } from '../base/vhost-backend.ts';
import {
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_FEATURES_OK,
} from '../wire/virtio.ts';
import { readBlkConfig, type BlkDeviceConfig } from './blk-config.ts';
import { chooseBlkFeatures, type BlkFeatureWishes } from './blk-features.ts';

export type BlkAgreement = {
  readonly offered: bigint;
  /** Acked. */
  readonly features: bigint;
  readonly config: BlkDeviceConfig;
};

const DRIVER = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
const FEATURES_OK = DRIVER | VIRTIO_CONFIG_S_FEATURES_OK;

/**
 * Features, status and configuration; the back-end then waits for memory and rings.
 * @throws VringError ERR_VRING_GUEST_FEATURE, ERR_VRING_GUEST_QUEUES, ERR_VRING_GUEST_CONFIG; what
 *   the back-end throws.
 */
export async function agreeBlk(
  backend: VhostBackend,
  wishes: BlkFeatureWishes,
): Promise<BlkAgreement> {
  const offered = await backend.getFeatures();
  await backend.setOwner();
  const vrings = await backend.getQueueNum();
  checkQueues(backend, wishes.queues, vrings);
  const features = chooseBlkFeatures(offered, wishes);
  await backend.setStatus(DRIVER);
  const config = await readBlkConfig(backend, features);
  checkQueues(backend, wishes.queues, config.queues ?? 1);
  await backend.setFeatures(features);
  await backend.setStatus(FEATURES_OK);
  const status = await backend.getStatus();
  if ((status & VIRTIO_CONFIG_S_FEATURES_OK) !== 0) return { offered, features, config };
  const text = `${backend.description} refused the negotiated features`;
  throw new VringError('ERR_VRING_GUEST_FEATURE', `${text} (status 0x${status.toString(16)})`);
}

function checkQueues(backend: VhostBackend, wanted: number, there: number): void {
  if (wanted <= there) return;
  const text = `${wanted} queues are wanted; ${backend.description} has ${there}`;
  throw new VringError('ERR_VRING_GUEST_QUEUES', text);
}
