/** Errors, limits, and the two contracts. */
export * from './errors.ts';
export * from './limits.ts';
export type {
  BackendDirtyLog,
  BackendIotlb,
  BackendMemoryRegion,
  InThreadDevice,
  IotlbMapping,
  VhostBackend,
  VringAddresses,
} from './vhost-backend.ts';
export type { VirtioDevice } from './virtio-device.ts';
