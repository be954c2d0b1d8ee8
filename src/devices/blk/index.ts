/** The virtio-blk device: control half, and the data plane that a worker loads. */
export { BlkDevice, type BlkDeviceOptions, CACHE_WRITEBACK } from './blk-device.ts';
export type { LatencyStatus, OpLatency } from '../disk/request-latency.ts';
export type { AddDisk, DiskStatus } from './blk-plane.ts';

/** For `DataPlaneWorker`: the module whose `createPlane` serves disks. */
export const BLK_PLANE_MODULE = new URL(
  import.meta.url.endsWith('.ts') ? './blk-plane.ts' : './blk-plane.js',
  import.meta.url,
);
