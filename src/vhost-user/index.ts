export { BackendConnector } from './backend-connector.ts';
export { BackendListener, type ListenerOptions } from './backend-listener.ts';
export {
  BACKEND_PROTOCOL_FEATURES,
  BackendSession,
  type SessionOptions,
  type SessionState,
} from './backend-session.ts';
export type { MessageEvent } from './diagnostics.ts';
export type { EndpointEvent, EndpointOptions, EndpointState } from './endpoint.ts';
export { BackendEndpoint } from './endpoint.ts';
export { type FrontendVring, startVring, stopVring } from './frontend-vring.ts';
export {
  FRONTEND_PROTOCOL_FEATURES,
  type FrontendListenOptions,
  type FrontendOptions,
  VhostUserFrontend,
} from './frontend.ts';
export * from './limits.ts';
export {
  BACK_END_MESSAGES,
  FRONT_END_MESSAGES,
  type MessageEntry,
  type ReplyKind,
  requestName,
} from './message-table.ts';
export type { BackendTarget, StartVring } from './target.ts';
export type { VringSnapshot } from './vring-control.ts';
