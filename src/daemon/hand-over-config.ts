/**
 * Which configuration a successor runs with: that of its predecessor, or a newer one. No port that
 * runs is lost by a newer file: what the file does not have goes on, what only the file has is
 * added, and what a driver relies on must be the same in both.
 */
import { VringError } from '../base/errors.ts';
import type { HandOverPlan, PortPlan } from './hand-over-format.ts';
import { diskInput, parseDisk } from './disks/disk-input.ts';
import type { DiskConfig } from './disks/disk-types.ts';
import type { AdapterPlan } from './disks/scsi-hand-over.ts';
import { adapterInput, parseAdapter, parseUnit, unitInput } from './disks/scsi-input.ts';
import type { AdapterConfig, UnitConfig } from './disks/scsi-types.ts';
import { workersProblem } from './port-workers.ts';
import type { StoragePlan } from './disks/storage-target.ts';
import type { PortConfig, SwitchConfig } from './switch-types.ts';

/** The newer configuration contradicts what runs. */
export const ERR_HAND_OVER_CONFIG = 'ERR_VRING_HAND_OVER_CONFIG';

/** What can change under a driver, or matters only when a socket is made. */
const FREE = new Set([
  'vlan',
  'macLimit',
  'reflect',
  'socketOwner',
  'socketMode',
  'keep',
  'policy',
]);

/** The same for disks: on the rest a driver relies, or it says which bytes there are. */
const FREE_OF_DISKS = new Set(['limits', 'export', 'socketOwner', 'socketMode']);

/** Of an adapter; its units are compared one by one. */
const FREE_OF_ADAPTERS = new Set(['units', 'socketOwner', 'socketMode']);

export type MergedConfig = {
  /** Everything but the ports. */
  readonly config: SwitchConfig;
  /** Ports of the predecessor, with the settings to run with. */
  readonly taken: StoragePlan & { readonly ports: readonly PortPlan[] };
  readonly added: {
    readonly ports: readonly PortConfig[];
    readonly disks: readonly DiskConfig[];
    readonly adapters: readonly AdapterConfig[];
    /** Of adapters that run. */
    readonly units: readonly { readonly adapter: string; readonly units: readonly UnitConfig[] }[];
  };
};

/** @throws VringError naming the port and the key that a running port cannot change. */
export function mergeConfig(plan: HandOverPlan, newer: SwitchConfig | null): MergedConfig {
  const { ports: running, disks: served, adapters } = plan;
  if (newer === null) {
    const config = { ...plan.config, ports: [] };
    const added = { ports: [], disks: [], adapters: [], units: [] };
    return { config, taken: { ports: running, disks: served, adapters }, added };
  }
  const ports = new Map(newer.ports.map((port) => [port.name, port]));
  const taken = running.map((port) => {
    const wanted = ports.get(port.config.name);
    ports.delete(port.config.name);
    if (wanted === undefined) return port;
    refuseChanges(`port ${wanted.name}`, port.config, wanted, FREE);
    return { ...port, config: wanted as PortPlan['config'] };
  });
  for (const { config } of taken) {
    const problem = workersProblem(config.kind, newer.workers ?? 1);
    if (problem === null) continue;
    throw new VringError(ERR_HAND_OVER_CONFIG, `port ${config.name} goes on, but ${problem}`);
  }
  const disks = new Map((newer.disks ?? []).map((disk) => [disk.name, disk]));
  const takenDisks = served.map((disk) => {
    const runs = parseDisk(disk.config);
    const wanted = disks.get(runs.name);
    disks.delete(runs.name);
    if (wanted === undefined) return disk;
    refuseChanges(`disk ${wanted.name}`, runs, wanted, FREE_OF_DISKS);
    return { ...disk, config: diskInput(wanted), origin: 'config' as const };
  });
  const scsi = mergeAdapters(adapters, newer.scsi ?? []);
  return {
    config: { ...newer, ports: [], disks: [], scsi: [] },
    taken: { ports: taken, disks: takenDisks, adapters: scsi.taken },
    added: {
      ports: [...ports.values()],
      disks: [...disks.values()],
      adapters: scsi.added,
      units: scsi.units,
    },
  };
}

function mergeAdapters(
  running: readonly AdapterPlan[],
  newer: readonly AdapterConfig[],
): { taken: AdapterPlan[]; added: AdapterConfig[]; units: MergedConfig['added']['units'] } {
  const adapters = new Map(newer.map((adapter) => [adapter.name, adapter]));
  const added: MergedConfig['added']['units'][number][] = [];
  const taken = running.map((plan) => {
    const runs = parseAdapter(plan.config);
    const wanted = adapters.get(runs.name);
    adapters.delete(runs.name);
    if (wanted === undefined) return plan;
    refuseChanges(`SCSI adapter ${wanted.name}`, runs, wanted, FREE_OF_ADAPTERS);
    const units = new Map(wanted.units.map((unit) => [unit.name, unit]));
    const takenUnits = plan.units.map((unit) => {
      const served = parseUnit(unit.config, runs.name);
      const wantedUnit = units.get(served.name);
      units.delete(served.name);
      if (wantedUnit === undefined) return unit;
      refuseChanges(`disk ${wantedUnit.name}`, served, wantedUnit, FREE_OF_DISKS);
      return { ...unit, config: unitInput(wantedUnit), origin: 'config' as const };
    });
    added.push({ adapter: runs.name, units: [...units.values()] });
    const config = adapterInput({ ...wanted, units: [] });
    return { ...plan, config, origin: 'config' as const, units: takenUnits };
  });
  return { taken, added: [...adapters.values()], units: added };
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
    const kind = what.slice(0, what.lastIndexOf(' '));
    const text =
      `${what}: ${key} is ${after} and was ${before}, which a running ${kind} cannot ` +
      `change; leave it, or remove the ${kind} first`;
    throw new VringError(ERR_HAND_OVER_CONFIG, text);
  }
}
