/** The virtio-net device: control half, and the data plane that a worker loads. */
export { NetDevice, type NetDeviceOptions } from './net-device.ts';
export type { AddNetPort, AddTapPort, NetPlaneOptions, NetPortStatus } from './net-plane.ts';

/** For `DataPlaneWorker`: the module whose `createPlane` serves net devices and uplinks. */
export const NET_PLANE_MODULE = new URL(
  import.meta.url.endsWith('.ts') ? './net-plane.ts' : './net-plane.js',
  import.meta.url,
);
