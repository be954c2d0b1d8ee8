/**
 * The control half of a virtio-net device: what it offers and its configuration space.
 * Virtio 1.2, 5.1.3 "Feature bits" and 5.1.4 "Device configuration layout".
 */
import { ConfigError } from '../../base/errors.ts';
import { MAX_RING_SIZE } from '../../base/limits.ts';
import type { VirtioDevice } from '../../base/virtio-device.ts';
import * as virtio from '../../wire/virtio.ts';
import * as net from '../../wire/virtio-net.ts';

export type NetDeviceOptions = {
  /** Queue pairs that a driver may use, 1 .. 64. */
  readonly queuePairs: number;
  /** Six bytes, offered as VIRTIO_NET_F_MAC; null leaves the address to the driver or VMM. */
  readonly mac: Uint8Array | null;
  /** Offered as VIRTIO_NET_F_MTU: bytes of IP per frame. */
  readonly mtu: number;
  readonly packed: boolean;
  readonly mrgRxbuf: boolean;
  readonly csum: boolean;
  readonly tso: boolean;
  readonly uso: boolean;
  /** Offer ACCESS_PLATFORM: the driver may give I/O virtual addresses, translated by an IOTLB. */
  readonly iommu: boolean;
  /** Offer the control queue. A VMM that keeps it to itself does not acknowledge it. */
  readonly controlQueue: boolean;
};

const CONFIG_BYTES = 12; // mac[6], status, max_virtqueue_pairs, mtu
const MAX_QUEUE_PAIRS = 64;

const bit = (feature: number): bigint => 1n << BigInt(feature);

export class NetDevice implements VirtioDevice {
  readonly deviceId = virtio.VIRTIO_ID_NET;
  readonly queueSizeMax = MAX_RING_SIZE;
  readonly queuePairs: number;
  readonly features: bigint;
  readonly #config = new Uint8Array(CONFIG_BYTES);
  readonly #options: NetDeviceOptions;

  constructor(options: NetDeviceOptions) {
    const { queuePairs } = options;
    if (!Number.isInteger(queuePairs) || queuePairs < 1 || queuePairs > MAX_QUEUE_PAIRS) {
      throw new ConfigError('queuePairs', `${queuePairs} is not in 1..${MAX_QUEUE_PAIRS}`);
    }
    this.#options = options;
    this.queuePairs = queuePairs;
    this.features = offeredFeatures(options);
    this.resetAddress();
    const view = new DataView(this.#config.buffer);
    view.setUint16(6, net.VIRTIO_NET_S_LINK_UP, true);
    view.setUint16(8, queuePairs, true);
    view.setUint16(10, options.mtu, true);
  }

  /** Data queues, and the control queue behind them. */
  get queueCount(): number {
    return 2 * this.queuePairs + (this.#options.controlQueue ? 1 : 0);
  }

  /** Index of the control queue for a driver that acknowledged `features` (5.1.2). */
  static controlQueueIndex(features: bigint, queuePairs: number): number {
    return virtio.hasFeature(features, net.VIRTIO_NET_F_MQ) ? 2 * queuePairs : 2;
  }

  /** The address that we offer, in place of one that a legacy driver wrote. */
  resetAddress(): void {
    this.#config.fill(0, 0, 6);
    if (this.#options.mac !== null) this.#config.set(this.#options.mac, 0);
  }

  /** What the configuration space says; null: zeros. */
  get address(): Uint8Array | null {
    const bytes = this.#config.slice(0, 6);
    return bytes.every((byte) => byte === 0) ? null : bytes;
  }

  set address(mac: Uint8Array | null) {
    this.#config.fill(0, 0, 6);
    if (mac !== null) this.#config.set(mac, 0);
  }

  get mtu(): number {
    return new DataView(this.#config.buffer).getUint16(10, true);
  }

  set mtu(mtu: number) {
    new DataView(this.#config.buffer).setUint16(10, mtu, true);
  }

  get linkUp(): boolean {
    return (this.#config[6] & net.VIRTIO_NET_S_LINK_UP) !== 0;
  }

  set linkUp(up: boolean) {
    this.#config[6] = up ? net.VIRTIO_NET_S_LINK_UP : 0;
  }

  readConfig(offset: number, sizeBytes: number): Uint8Array | null {
    if (offset < 0 || offset >= CONFIG_BYTES || sizeBytes < 0) return null;
    // QEMU asks for its whole struct virtio_net_config; fields that we do not have read as zero.
    const bytes = new Uint8Array(sizeBytes);
    bytes.set(this.#config.subarray(offset, offset + sizeBytes));
    return bytes;
  }

  /** Only a legacy driver may write, and only the address; a modern one uses the control queue. */
  writeConfig(offset: number, bytes: Uint8Array): boolean {
    if (offset + bytes.length > 6) return false;
    this.#config.set(bytes, offset);
    return true;
  }
}

function offeredFeatures(options: NetDeviceOptions): bigint {
  let features =
    bit(virtio.VIRTIO_F_VERSION_1) |
    bit(virtio.VIRTIO_RING_F_INDIRECT_DESC) |
    bit(virtio.VIRTIO_RING_F_EVENT_IDX) |
    bit(virtio.VIRTIO_F_ANY_LAYOUT) |
    bit(virtio.VIRTIO_F_IN_ORDER) |
    bit(net.VIRTIO_NET_F_STATUS) |
    bit(net.VIRTIO_NET_F_MTU) |
    bit(net.VIRTIO_NET_F_GUEST_ANNOUNCE);
  if (options.packed) features |= bit(virtio.VIRTIO_F_RING_PACKED);
  if (options.iommu) features |= bit(virtio.VIRTIO_F_ACCESS_PLATFORM);
  if (options.mrgRxbuf) features |= bit(net.VIRTIO_NET_F_MRG_RXBUF);
  if (options.mac !== null) features |= bit(net.VIRTIO_NET_F_MAC);
  if (options.queuePairs > 1) features |= bit(net.VIRTIO_NET_F_MQ);
  if (options.csum) features |= bit(net.VIRTIO_NET_F_CSUM) | bit(net.VIRTIO_NET_F_GUEST_CSUM);
  if (options.csum && options.tso) {
    features |=
      bit(net.VIRTIO_NET_F_HOST_TSO4) |
      bit(net.VIRTIO_NET_F_HOST_TSO6) |
      bit(net.VIRTIO_NET_F_HOST_ECN) |
      bit(net.VIRTIO_NET_F_GUEST_TSO4) |
      bit(net.VIRTIO_NET_F_GUEST_TSO6) |
      bit(net.VIRTIO_NET_F_GUEST_ECN);
  }
  if (options.csum && options.uso) {
    features |=
      bit(net.VIRTIO_NET_F_HOST_USO) |
      bit(net.VIRTIO_NET_F_GUEST_USO4) |
      bit(net.VIRTIO_NET_F_GUEST_USO6);
  }
  if (options.controlQueue) {
    features |=
      bit(net.VIRTIO_NET_F_CTRL_VQ) |
      bit(net.VIRTIO_NET_F_CTRL_RX) |
      bit(net.VIRTIO_NET_F_CTRL_VLAN) |
      bit(net.VIRTIO_NET_F_CTRL_MAC_ADDR);
  }
  return features;
}
