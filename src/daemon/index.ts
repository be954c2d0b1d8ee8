export { buildConfig, parsePort, type ConfigSources } from './config.ts';
export { ConfigProblems, problemLines, type ConfigProblem } from './config-problem.ts';
export { ControlApi } from './control-api.ts';
export { parsePortSpec } from './port-spec.ts';
export type * from './switch-control.ts';
export {
  DEFAULT_CONTROL_PATH,
  dropOf,
  portExists,
  portNotFound,
  totalDrops,
} from './switch-control.ts';
export { ERR_PORT_EXISTS, ERR_PORT_LIMIT, ERR_PORT_NOT_FOUND } from './switch-control.ts';
export {
  EventLog,
  readinessLine,
  SwitchDaemon,
  type Readiness,
  type StartSwitch,
} from './switch-daemon.ts';
export type * from './switch-types.ts';
export { VERSION } from './version.ts';
