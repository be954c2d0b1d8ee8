/** The virtio-scsi device: control half, and the data plane that a worker loads. */
export { MAX_LUN, MAX_LUNS, MAX_TARGET, WORK_MEMORY_BYTES } from './limits.ts';
export type { LunState } from './lun.ts';
export { ScsiDevice, type ScsiDeviceOptions } from './scsi-device.ts';
export type {
  AddScsi,
  AddUnit,
  ScsiStatus,
  UnitAddress,
  UnitStatus,
  UnparkUnit,
} from './scsi-plane.ts';

/** For `DataPlaneWorker`: the module whose `createPlane` serves SCSI devices. */
export const SCSI_PLANE_MODULE = new URL(
  import.meta.url.endsWith('.ts') ? './scsi-plane.ts' : './scsi-plane.js',
  import.meta.url,
);
