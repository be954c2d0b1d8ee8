import { MAX_DISKS, MAX_UNITS } from '../../base/limits.ts';
import { type RawProblem, valueText } from '../config-problem.ts';
import type { PlacedPort } from '../port-config.ts';
import type { DiskConfig } from './disk-types.ts';
import type { AdapterConfig } from './scsi-types.ts';

type Keys = readonly PropertyKey[];
export type PlacedDisk = { readonly disk: DiskConfig; readonly keys: Keys };
export type PlacedAdapter = { readonly adapter: AdapterConfig; readonly keys: Keys };

/** Names belong to one disk or adapter each, sockets to one of them or to a port. */
export function findTwins(
  disks: readonly PlacedDisk[],
  adapters: readonly PlacedAdapter[],
  ports: readonly PlacedPort[],
): RawProblem[] {
  const found: RawProblem[] = [];
  const names = new Map<string, string>();
  const sockets = new Map<string, string>();
  for (const { port } of ports) {
    if (port.kind === 'vhost-user') sockets.set(port.path, `port ${port.name}`);
  }
  /** Notes the value as the owner's; it may be another one's. */
  const claim = (of: Map<string, string>, value: string, owner: string, keys: Keys): void => {
    const other = of.get(value);
    if (other !== undefined) {
      found.push({ keys, problem: `${valueText(value)} belongs to ${other}; give each its own` });
    }
    of.set(value, owner);
  };
  for (const { disk, keys } of disks) {
    const owner = `disk ${disk.name}`;
    claim(names, disk.name, 'another disk', [...keys, 'name']);
    claim(sockets, disk.socket, owner, [...keys, 'socket']);
    if (disk.export !== null) {
      claim(sockets, disk.export.socket, owner, [...keys, 'export', 'socket']);
    }
  }
  for (const { adapter, keys } of adapters) {
    claim(names, adapter.name, 'another SCSI adapter', [...keys, 'name']);
    claim(sockets, adapter.socket, `SCSI adapter ${adapter.name}`, [...keys, 'socket']);
    for (const [i, unit] of adapter.units.entries()) {
      const at = [...keys, 'units', i];
      claim(names, unit.name, 'another unit', [...at, 'unit']);
      if (unit.export === null) continue;
      claim(sockets, unit.export.socket, `disk ${unit.name}`, [...at, 'export', 'socket']);
    }
  }
  const all = [...disks, ...adapters];
  const extra = all[MAX_DISKS];
  if (extra !== undefined) {
    const what = 'disk' in extra ? 'disk' : 'disk or adapter';
    const problem = `this is ${what} ${MAX_DISKS + 1}; there are at most ${MAX_DISKS}`;
    found.push({ keys: [...extra.keys, 'name'], problem });
  }
  const units = adapters.reduce((sum, { adapter }) => sum + adapter.units.length, 0);
  if (units > MAX_UNITS) {
    const problem = `adapters have ${units} units; there are at most ${MAX_UNITS} in one process`;
    found.push({ keys: ['scsi'], problem });
  }
  return found;
}
