/**
 * What the control plane asks of a running switch. `VirtualSwitch` implements it; the API, the
 * metrics and their tests know only this.
 */
import { VringError } from '../base/errors.ts';
import type { PortPolicy } from '../devices/net/index.ts';
import type { DiskControl } from './disks/disk-control.ts';
import type {
  MacEntry,
  PortConfig,
  PortStatus,
  SwitchEvent,
  VlanConfig,
  WorkerStatus,
} from './switch-types.ts';

/** What can change while a port lives. Absent keys stay as they are. */
export type PortUpdate = {
  readonly vlan?: VlanConfig;
  readonly linkUp?: boolean;
  readonly mtu?: number;
  readonly policy?: PortPolicy;
};

/** A running capture: pcapng bytes, ready for a file, until `close()` or the port goes away. */
export type Capture = AsyncIterable<Uint8Array> & {
  close(): void;
  /** Frames that were not captured because the reader was too slow. */
  readonly lost: number;
};

/**
 * Counters by name, of a port: `rxFrames`, `rxBytes` (what the port sent us), `txFrames`,
 * `txBytes` (what it got), `faults`, and drops as `rxDrop<Reason>` and `txDrop<Reason>`. Of a
 * queue: `chains`, `kicks`, `calls`, `callsSuppressed`, `unloggedPages`. Others are exported as
 * they are named.
 */
export interface SwitchControl {
  readonly disks: DiskControl;
  addPort(config: PortConfig): Promise<PortStatus>;
  removePort(name: string): Promise<void>;
  updatePort(name: string, update: PortUpdate): Promise<PortStatus>;
  ports(): Promise<PortStatus[]>;
  port(name: string): Promise<PortStatus>;
  macTable(): Promise<MacEntry[]>;
  /** Forgets learned addresses, of one port or of all. Returns how many. */
  flushMacTable(port?: string): Promise<number>;
  workers(): Promise<WorkerStatus[]>;
  capture(name: string, options: { snapLen: number }): Promise<Capture>;
  /** The last events, oldest first. */
  events(): SwitchEvent[];
  on(name: 'event', listener: (event: SwitchEvent) => void): unknown;
  /** The data plane is gone and the switch with it: close it and start over. */
  on(name: 'error', listener: (error: Error) => void): unknown;
  off(name: 'event', listener: (event: SwitchEvent) => void): unknown;
  close(): Promise<void>;
}

/** Where a switch listens for its control API, and where the CLI looks for it. */
export const DEFAULT_CONTROL_PATH = '/run/vring/switch.sock';

/** No port has this name. */
export const ERR_PORT_NOT_FOUND = 'ERR_VRING_PORT_NOT_FOUND';
/** The name, socket or interface belongs to another port. */
export const ERR_PORT_EXISTS = 'ERR_VRING_PORT_EXISTS';
/** The switch has MAX_PORTS ports. */
export const ERR_PORT_LIMIT = 'ERR_VRING_PORT_LIMIT';

/** The port is being captured already. */
export const ERR_CAPTURE_BUSY = 'ERR_VRING_CAPTURE_BUSY';

export function portNotFound(name: string): VringError {
  return new VringError(ERR_PORT_NOT_FOUND, `there is no port named ${JSON.stringify(name)}`);
}

export function portExists(what: string, owner: string): VringError {
  return new VringError(ERR_PORT_EXISTS, `${what} already belongs to port ${owner}`);
}

/** `rxDropNoBuffer` to `{direction: 'rx', reason: 'noBuffer'}`; null for other counters. */
export function dropOf(counter: string): { direction: 'rx' | 'tx'; reason: string } | null {
  const match = /^(rx|tx)Drop([A-Z]\w*)?$/.exec(counter);
  if (!match) return null;
  const reason = match[2] ?? 'Other';
  return {
    direction: match[1] as 'rx' | 'tx',
    reason: reason.charAt(0).toLowerCase() + reason.slice(1),
  };
}

/** Sum of all drops of one port. */
export function totalDrops(counters: Readonly<Record<string, number>>): number {
  let drops = 0;
  for (const [name, value] of Object.entries(counters)) if (dropOf(name)) drops += value;
  return drops;
}
