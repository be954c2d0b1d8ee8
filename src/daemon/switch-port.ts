/**
 * The control half of a switch port: what it has in common whatever it leads to. The data half
 * lives in the worker; the two know each other by the port's number.
 */
import type { VringError } from '../base/errors.ts';
import {
  DEFAULT_POLICY,
  type NetPortSettings,
  type NetPortStatus,
  type PortPolicy,
} from '../devices/net/index.ts';
import type { PlaneEvent } from '../runtime/data-plane.ts';
import type { PlaneRunner } from '../runtime/plane-runner.ts';
import type { MacTableEntry } from '../switch/index.ts';
import type { ReceivedFds, SentFds } from './hand-over-channel.ts';
import type { PortPlan, PortFinal } from './hand-over-format.ts';
import type { PortConfig, PortStatus, SwitchConfig, VlanConfig } from './switch-types.ts';

/** What a port needs of the switch around it. */
export type PortContext = {
  readonly worker: PlaneRunner;
  /** How many that stands for: memory of a port that each needs for itself comes so often. */
  readonly workers: number;
  readonly number: number;
  /** What the switch knows of the port now. */
  readonly vlan: () => VlanConfig;
  readonly policy: () => PortPolicy;
  readonly learned: () => MacTableEntry[];
  readonly switchCounters: () => Record<string, number>;
  /** Reports something that people want to know; shown by `vring events`. */
  readonly report: (kind: string, message: string) => void;
};

/** What a hand-over asks of a port; see hand-over.ts for the order. */
export interface HandOverPort {
  /** What a successor can prepare while the port runs. Descriptors are borrowed. */
  plan(fds: SentFds): PortPlan;
  /** The data plane stands still: lets go of rings and says what changed last. */
  suspend(fds: SentFds): Promise<PortFinal>;
  /** Undoes `suspend`; also what begins the work of a port that was restored. */
  resume(): Promise<void>;
  /** Lets go of everything without ending or removing it: it is a successor's. */
  surrender(): Promise<void>;
  /** Instead of `open`: with what a predecessor planned. The data plane stands still. */
  adopt(plan: PortPlan, fds: ReceivedFds): Promise<void>;
  /** With what changed last at the predecessor. */
  restore(state: PortFinal, fds: ReceivedFds): Promise<void>;
}

/** A port that the switch has, and what of it can change. */
export type PortEntry = { readonly port: SwitchPort; vlan: VlanConfig; policy: PortPolicy };

export function entryOf(port: SwitchPort, config: SwitchConfig): PortEntry {
  return { port, vlan: port.config.vlan, policy: policyOf(port.config, config) };
}

/** In each worker, or in none: one that has no descriptor left for a policy refuses it. */
export async function setRules(
  worker: Pick<PlaneRunner, 'request'>,
  entry: PortEntry,
  change: { readonly vlan?: VlanConfig; readonly policy?: PortPolicy },
): Promise<void> {
  const { port, vlan, policy } = entry;
  const before = { vlan, policy };
  const tell = async (rules: typeof before): Promise<void> => {
    const settings = settingsOf({ ...port.config, vlan: rules.vlan }, rules.policy);
    await worker.request('updatePort', { port: port.number, settings });
  };
  const rules = { vlan: change.vlan ?? vlan, policy: change.policy ?? policy };
  try {
    await tell(rules);
  } catch (error) {
    await tell(before); // for which each has all that it needs
    throw error;
  }
  Object.assign(entry, rules);
}

/** What the port says, or else its switch. */
export function policyOf(port: Pick<PortConfig, 'policy'>, config: SwitchConfig): PortPolicy {
  return port.policy ?? config.policy ?? DEFAULT_POLICY;
}

export type PortReason = { readonly code: string; readonly message: string; readonly at: string };

export interface SwitchPort extends HandOverPort {
  readonly config: PortConfig;
  readonly number: number;
  linkUp: boolean;
  /** Starts the data half, then whatever frames come from. Undone by `close`. */
  open(): Promise<void>;
  close(): Promise<void>;
  /** Frees what the worker used until it removed the port. Idempotent. */
  release(): void;
  setLink(up: boolean): Promise<void>;
  /** What the port offers from now on; a running driver is told. */
  setMtu(mtu: number): Promise<void>;
  /** What the worker has to say of this port. */
  planeEvent(event: PlaneEvent): void;
  /** Everything but the switch's own counters, which the caller adds. */
  status(plane: NetPortStatus): Omit<PortStatus, 'counters' | 'vlan' | 'policy'>;
}

export function reasonOf(error: Error): PortReason {
  const code = (error as Partial<VringError>).code ?? 'ERR_VRING_INTERNAL';
  return { code, message: error.message, at: new Date().toISOString() };
}

export function settingsOf(
  { vlan, macLimit, reflect }: PortConfig,
  policy: PortPolicy,
): NetPortSettings {
  return { vlan, macLimit, reflect, policy };
}
