/** What a driver's features say of offloads: Virtio 1.2, 5.1.3 "Feature bits". */
import {
  ACCEPT_CSUM,
  ACCEPT_ECN,
  ACCEPT_TSO4,
  ACCEPT_TSO6,
  ACCEPT_UFO,
  ACCEPT_USO,
} from '../../switch/port-plane.ts';
import * as net from '../../wire/virtio-net.ts';
import { hasFeature } from '../../wire/virtio.ts';
import {
  HOST_CSUM,
  HOST_ECN,
  HOST_TSO4,
  HOST_TSO6,
  HOST_UFO,
  HOST_USO,
} from './read-frames.hot.ts';

/** HOST_* bits: what the driver may leave to the device in frames that it sends. */
export function hostOffloadsOf(features: bigint): number {
  const has = (feature: number): boolean => hasFeature(features, feature);
  return (
    (has(net.VIRTIO_NET_F_CSUM) ? HOST_CSUM : 0) |
    (has(net.VIRTIO_NET_F_HOST_TSO4) ? HOST_TSO4 : 0) |
    (has(net.VIRTIO_NET_F_HOST_TSO6) ? HOST_TSO6 : 0) |
    (has(net.VIRTIO_NET_F_HOST_ECN) ? HOST_ECN : 0) |
    (has(net.VIRTIO_NET_F_HOST_UFO) ? HOST_UFO : 0) |
    (has(net.VIRTIO_NET_F_HOST_USO) ? HOST_USO : 0)
  );
}

/** ACCEPT_* bits: what may be left to the driver in frames that it receives. */
export function acceptedOffloadsOf(features: bigint): number {
  const has = (feature: number): boolean => hasFeature(features, feature);
  const uso = has(net.VIRTIO_NET_F_GUEST_USO4) && has(net.VIRTIO_NET_F_GUEST_USO6);
  return (
    (has(net.VIRTIO_NET_F_GUEST_CSUM) ? ACCEPT_CSUM : 0) |
    (has(net.VIRTIO_NET_F_GUEST_TSO4) ? ACCEPT_TSO4 : 0) |
    (has(net.VIRTIO_NET_F_GUEST_TSO6) ? ACCEPT_TSO6 : 0) |
    (has(net.VIRTIO_NET_F_GUEST_ECN) ? ACCEPT_ECN : 0) |
    (has(net.VIRTIO_NET_F_GUEST_UFO) ? ACCEPT_UFO : 0) |
    (uso ? ACCEPT_USO : 0)
  );
}
