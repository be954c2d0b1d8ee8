/**
 * Which configuration a successor runs with: that of its predecessor, or a newer one. No port that
 * runs is lost by a newer file: what the file does not have goes on, what only the file has is
 * added, and what a driver relies on must be the same in both.
 */
import { VringError } from '../base/errors.ts';
import type { HandOverPlan, PortPlan } from './hand-over-format.ts';
import type { PortConfig, SwitchConfig } from './switch-types.ts';

/** The newer configuration contradicts what runs. */
export const ERR_HAND_OVER_CONFIG = 'ERR_VRING_HAND_OVER_CONFIG';

/** What can change under a driver, or matters only when a socket is made. */
const FREE = new Set(['vlan', 'macLimit', 'reflect', 'socketOwner', 'socketMode', 'keep']);

export type MergedConfig = {
  /** Everything but the ports. */
  readonly config: SwitchConfig;
  /** Ports of the predecessor, with the settings to run with. */
  readonly taken: readonly PortPlan[];
  readonly added: readonly PortConfig[];
};

/** @throws VringError naming the port and the key that a running port cannot change. */
export function mergeConfig(plan: HandOverPlan, newer: SwitchConfig | null): MergedConfig {
  const own = { ...plan.config, ports: [] };
  if (newer === null) return { config: own, taken: plan.ports, added: [] };
  const ports = new Map(newer.ports.map((port) => [port.name, port]));
  const taken = plan.ports.map((port) => {
    const wanted = ports.get(port.config.name);
    ports.delete(port.config.name);
    return wanted === undefined ? port : { ...port, config: renewed(port.config, wanted) };
  });
  return { config: { ...newer, ports: [] }, taken, added: [...ports.values()] };
}

function renewed(running: PortConfig, wanted: PortConfig): PortPlan['config'] {
  const [was, is]: Record<string, unknown>[] = [running, wanted];
  for (const key of Object.keys(is!)) {
    const [before, after] = [JSON.stringify(was![key]), JSON.stringify(is![key])];
    if (FREE.has(key) || before === after) continue;
    const text =
      `port ${running.name}: ${key} is ${after} and was ${before}, which a running port cannot ` +
      'change; leave it, or remove the port first';
    throw new VringError(ERR_HAND_OVER_CONFIG, text);
  }
  return wanted as PortPlan['config'];
}
