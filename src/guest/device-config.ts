/** The network device's configuration space, read through the back-end where that is possible. */
import { VringError } from '../base/errors.ts';
import type { VhostBackend } from '../base/vhost-backend.ts';
import { formatMac } from '../wire/ethernet.ts';
import {
  NetConfig,
  VIRTIO_NET_F_MAC,
  VIRTIO_NET_F_MQ,
  VIRTIO_NET_F_MTU,
  VIRTIO_NET_F_STATUS,
  VIRTIO_NET_MIN_MTU,
  VIRTIO_NET_S_ANNOUNCE,
  VIRTIO_NET_S_LINK_UP,
} from '../wire/virtio-net.ts';
import { hasFeature } from '../wire/virtio.ts';

/** Null where the field's feature was not negotiated. */
export type DeviceConfig = {
  readonly mac: string | null;
  readonly linkUp: boolean | null;
  readonly announce: boolean | null;
  readonly maxVirtqueuePairs: number | null;
  readonly mtu: number | null;
};

/** `mac` to `mtu`: what this driver looks at. */
const CONFIG_BYTES = 12;

/**
 * Null when the back-end serves no configuration space: over vhost-user QEMU makes it up itself,
 * and many back-ends (DPDK) have none.
 */
export async function readDeviceConfig(
  backend: VhostBackend,
  features: bigint,
): Promise<DeviceConfig | null> {
  const bytes = new Uint8Array(NetConfig.size);
  try {
    bytes.set(await backend.getConfig(0, CONFIG_BYTES));
  } catch (error) {
    const code = error instanceof Error ? (error as VringError).code : '';
    if (code === 'ERR_VRING_NOT_NEGOTIATED' || code === 'ERR_VRING_CONFIG_RANGE') return null;
    throw error;
  }
  const config = NetConfig.decode(bytes);
  const has = (bit: number): boolean => hasFeature(features, bit);
  return {
    mac: has(VIRTIO_NET_F_MAC) ? formatMac(config.mac) : null,
    linkUp: has(VIRTIO_NET_F_STATUS) ? (config.status & VIRTIO_NET_S_LINK_UP) !== 0 : null,
    announce: has(VIRTIO_NET_F_STATUS) ? (config.status & VIRTIO_NET_S_ANNOUNCE) !== 0 : null,
    maxVirtqueuePairs: has(VIRTIO_NET_F_MQ) ? config.maxVirtqueuePairs : null,
    // 5.1.4.1: a driver must not use an MTU below 68.
    mtu: has(VIRTIO_NET_F_MTU) && config.mtu >= VIRTIO_NET_MIN_MTU ? config.mtu : null,
  };
}
