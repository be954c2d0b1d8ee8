/** Workers that run data planes, and hosts that join sessions to them. */
export { DataPlaneWorker, type DataPlaneWorkerOptions } from './data-plane-worker.ts';
export type {
  CreatePlane,
  DataPlane,
  PlaneContext,
  PlaneEvent,
  PlaneFault,
  VringAttach,
  WorkerCounters,
} from './data-plane.ts';
export {
  DeviceHost,
  type DeviceHostOptions,
  type HostedVring,
  type StateKeeper,
} from './device-host.ts';
