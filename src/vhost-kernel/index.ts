/** The kernel's vhost devices as back-ends. Names only; no logic here. */
export { FrontMemory, type HostRegion } from './front-memory.ts';
export { IotlbChannel, type HostMapping, type MissHandler } from './iotlb-channel.ts';
export { KernelDevice } from './kernel-device.ts';
export { VhostDevice, type HostVring } from './vhost-device.ts';
export { VDUSE_REMEDY, VduseControl } from './vduse-control.ts';
export {
  LAST_IOVA,
  type VduseChannel,
  VduseDevice,
  type VduseMapping,
  type VduseQueueInfo,
  type VduseRequest,
} from './vduse-device.ts';
export { checkVduseName, type VduseConfig, vduseFeatures } from './vduse-features.ts';
export { VdpaDevice, type IovaRange } from './vdpa-device.ts';
export { VdpaIotlb } from './vdpa-iotlb.ts';
export { VhostVdpaBackend, type VhostVdpaOptions } from './vhost-vdpa.ts';
export { VhostNetBackend, type VhostNetOptions } from './vhost-net.ts';
export { VhostVsockBackend, type VhostVsockOptions } from './vhost-vsock.ts';
export {
  type AddVdpa,
  type VdpaConfig,
  type VdpaDeviceInfo,
  type VdpaManagement,
  VdpaNetlink,
} from './vdpa-netlink.ts';
export {
  awaitVdpaPresence,
  bindVdpa,
  type VdpaDriver,
  vdpaDriver,
  type VdpaPresence,
  vdpaPresence,
} from './vdpa-bus.ts';
