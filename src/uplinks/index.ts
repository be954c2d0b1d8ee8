/** Uplinks: interfaces of the host as ports of the switch. */
export {
  TAP_ACCEPTS,
  TAP_ACCEPTS_USO,
  TAP_SCRATCH_BYTES,
  TapPlane,
  type TapPlaneOptions,
} from './tap-plane.ts';
