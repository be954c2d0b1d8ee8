export { BackendConnector } from './backend-connector.ts';
export { BackendListener, type ListenerOptions } from './backend-listener.ts';
export { BackendSession, type RestoreOptions, type SessionOptions } from './backend-session.ts';
export type { MessageEvent } from './diagnostics.ts';
export type {
  EndpointEvent,
  EndpointOptions,
  EndpointSnapshot,
  EndpointState,
} from './endpoint.ts';
export { BackendEndpoint } from './endpoint.ts';
export { type FrontendVring, startVring, stopVring } from './frontend-vring.ts';
export type { FrontendEvents, HostNotifier } from './frontend-events.ts';
export { FRONTEND_PROTOCOL_FEATURES } from './frontend-features.ts';
export type { InflightRegion } from './frontend-inflight.ts';
export type { PostcopyRegion } from './frontend-memory.ts';
export { type FrontendListenOptions, type FrontendOptions, VhostUserFrontend } from './frontend.ts';
export * from './limits.ts';
export {
  BACK_END_MESSAGES,
  backEndRequestName,
  EVENT_MESSAGE,
  FRONT_END_MESSAGES,
  type MessageEntry,
  type ReplyKind,
  REQUEST,
  requestName,
} from './message-table.ts';
export { type ObjectOwner, SharedObjectRegistry, uuidText } from './shared-objects.ts';
export type { ShmemHandler, ShmemMapping } from './shmem-maps.ts';
export {
  BACKEND_PROTOCOL_FEATURES,
  offeredProtocolFeatures,
  OPT_IN_FEATURES,
} from './offered-features.ts';
export { postcopyAvailable } from './postcopy-control.ts';
export {
  ENABLE_TRANSITIONS,
  RUN_TRANSITIONS,
  type RunEvent,
  type RunState,
  type RunTransition,
} from './ring-states.ts';
export { isPacked, ringAreas, type RingOffsets } from './ring-addresses.ts';
export { PreparedMemory } from './session-restore.ts';
export type { MemorySnapshot, SessionSnapshot, SessionSnapshotState } from './session-snapshot.ts';
export type { SessionState } from './session-state.ts';
export { type ProtocolState, STATE_RULES, type StateRule } from './state-rules.ts';
export type {
  BackendTarget,
  FrontendRequests,
  InflightArea,
  IotlbUpdate,
  MappableArea,
  StartVring,
  VringLog,
} from './target.ts';
export type { VringSnapshot } from './vring-control.ts';
