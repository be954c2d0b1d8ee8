/** Workers that run data planes, and hosts that join sessions to them. */
export { DataPlaneWorker, type DataPlaneWorkerOptions } from './data-plane-worker.ts';
export type {
  CreatePlane,
  DataPlane,
  PlaneContext,
  PlaneEvent,
  PlaneFault,
  PlaneIoError,
  VringAttach,
  WorkerCounters,
} from './data-plane.ts';
export {
  type GroupQueue,
  type GroupRule,
  LOADS_BYTES,
  type MemberContext,
  type RefusedMove,
  WorkerGroup,
  type WorkerGroupOptions,
} from './worker-group.ts';
export type { PlaneRunner } from './plane-runner.ts';
export {
  DeviceHost,
  type DeviceHostOptions,
  type HostedVring,
  type StateKeeper,
} from './device-host.ts';
export { VduseHost, type VduseEvent, type VduseHostOptions } from './vduse-host.ts';
export { type InflightShape, VduseInflight } from './vduse-inflight.ts';
export {
  InProcessBackend,
  type InProcessEvents,
  type InProcessOptions,
} from './in-process-backend.ts';
export { LocalRunner, type LocalRunnerCounters, type LocalRunnerOptions } from './local-runner.ts';
export { ShadowBackend } from './shadow-backend.ts';
export { type VduseBind, VduseService, type VduseServiceOptions } from './vduse-service.ts';
export { workerEnvironment } from './compile-cache.ts';
