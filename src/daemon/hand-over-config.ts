/**
 * Which configuration a successor runs with: that of its predecessor, or a newer one. No port that
 * runs is lost by a newer file: what the file does not have goes on, what only the file has is
 * added, and what a driver relies on must be the same in both.
 */
import { VringError } from '../base/errors.ts';
import type { HandOverPlan, PortPlan } from './hand-over-format.ts';
import { diskInput, parseDisk } from './disks/disk-input.ts';
import type { DiskPlan } from './disks/disk-hand-over.ts';
import type { DiskConfig } from './disks/disk-types.ts';
import type { PortConfig, SwitchConfig } from './switch-types.ts';

/** The newer configuration contradicts what runs. */
export const ERR_HAND_OVER_CONFIG = 'ERR_VRING_HAND_OVER_CONFIG';

/** What can change under a driver, or matters only when a socket is made. */
const FREE = new Set(['vlan', 'macLimit', 'reflect', 'socketOwner', 'socketMode', 'keep']);

/** The same for disks: on the rest a driver relies, or it says which bytes there are. */
const FREE_OF_DISKS = new Set(['limits', 'export', 'socketOwner', 'socketMode']);

export type MergedConfig = {
  /** Everything but the ports. */
  readonly config: SwitchConfig;
  /** Ports of the predecessor, with the settings to run with. */
  readonly taken: { readonly ports: readonly PortPlan[]; readonly disks: readonly DiskPlan[] };
  readonly added: { readonly ports: readonly PortConfig[]; readonly disks: readonly DiskConfig[] };
};

/** @throws VringError naming the port and the key that a running port cannot change. */
export function mergeConfig(plan: HandOverPlan, newer: SwitchConfig | null): MergedConfig {
  const { ports: running, disks: served } = plan;
  if (newer === null) {
    const config = { ...plan.config, ports: [] };
    return { config, taken: { ports: running, disks: served }, added: { ports: [], disks: [] } };
  }
  const ports = new Map(newer.ports.map((port) => [port.name, port]));
  const taken = running.map((port) => {
    const wanted = ports.get(port.config.name);
    ports.delete(port.config.name);
    if (wanted === undefined) return port;
    refuseChanges(`port ${wanted.name}`, port.config, wanted, FREE);
    return { ...port, config: wanted as PortPlan['config'] };
  });
  const disks = new Map((newer.disks ?? []).map((disk) => [disk.name, disk]));
  const takenDisks = served.map((disk) => {
    const runs = parseDisk(disk.config);
    const wanted = disks.get(runs.name);
    disks.delete(runs.name);
    if (wanted === undefined) return disk;
    refuseChanges(`disk ${wanted.name}`, runs, wanted, FREE_OF_DISKS);
    return { ...disk, config: diskInput(wanted), origin: 'config' as const };
  });
  return {
    config: { ...newer, ports: [], disks: [] },
    taken: { ports: taken, disks: takenDisks },
    added: { ports: [...ports.values()], disks: [...disks.values()] },
  };
}

function refuseChanges(
  what: string,
  was: Readonly<Record<string, unknown>>,
  is: Readonly<Record<string, unknown>>,
  free: ReadonlySet<string>,
): void {
  for (const key of Object.keys(is)) {
    const [before, after] = [JSON.stringify(was[key]), JSON.stringify(is[key])];
    if (free.has(key) || before === after) continue;
    const [kind] = what.split(' ');
    const text =
      `${what}: ${key} is ${after} and was ${before}, which a running ${kind} cannot ` +
      `change; leave it, or remove the ${kind} first`;
    throw new VringError(ERR_HAND_OVER_CONFIG, text);
  }
}
