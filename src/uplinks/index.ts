/** Uplinks: interfaces of the host as ports of the switch. */
export { PACKET_ACCEPTS, PacketPlane, type PacketPlaneOptions } from './packet-plane.ts';
export { PacketSockets } from './packet-sockets.ts';
export {
  TAP_ACCEPTS,
  TAP_ACCEPTS_USO,
  TAP_SCRATCH_BYTES,
  TapPlane,
  type TapPlaneOptions,
} from './tap-plane.ts';
export {
  type AttachedPlane,
  newUplinkCounters,
  type UplinkCounters,
  type UplinkPlane,
} from './uplink-plane.ts';
export { XdpPlane, type XdpPlaneOptions } from './xdp-plane.ts';
export {
  ERR_XDP,
  MAX_XDP_QUEUES,
  type XdpAttachMode,
  type XdpCopyMode,
  XdpSockets,
} from './xdp-sockets.ts';
