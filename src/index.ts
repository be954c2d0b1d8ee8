/**
 * vring: the vhost stack for TypeScript. The root exports what programs start with; the parts
 * have subpaths of their own (`vring/virtqueue`, `vring/vhost-user`, ...).
 */
export { ConfigError, ProtocolError, type Recovery, SysError, VringError } from './base/errors.ts';
export type { VhostBackend, BackendMemoryRegion, VringAddresses } from './base/vhost-backend.ts';
export type { VirtioDevice } from './base/virtio-device.ts';
export { VirtualSwitch } from './daemon/virtual-switch.ts';
export type {
  MacEntry,
  PortConfig,
  PortState,
  PortStatus,
  SwitchConfig,
  SwitchEvent,
  VlanConfig,
  WorkerStatus,
} from './daemon/switch-types.ts';
export { VhostUserFrontend } from './vhost-user/index.ts';
