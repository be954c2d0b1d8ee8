/** The virtio-net device: control half, and the data plane that a worker loads. */
export { NetDevice, type NetDeviceOptions } from './net-device.ts';
export type {
  AddNetPort,
  AddTapPort,
  AddUplinkPort,
  AttachUplink,
  LoadNetState,
  LoadUplinkCounters,
  NetPlaneOptions,
  NetPortSettings,
  NetPortStatus,
} from './net-commands.ts';
export {
  checkNetState,
  encodeNetState,
  MAX_NET_STATE_BYTES,
  type NetPlaneState,
  type NetState,
  parseNetState,
} from './net-state.ts';

export { DEFAULT_POLICY, PORT_POLICIES, type PortPolicy } from './port-policy.ts';
export { PARKED_FRAMES_BYTES } from './parked-frames.ts';

/** For `DataPlaneWorker`: the module whose `createPlane` serves net devices and uplinks. */
export const NET_PLANE_MODULE = new URL(
  import.meta.url.endsWith('.ts') ? './net-plane.ts' : './net-plane.js',
  import.meta.url,
);
