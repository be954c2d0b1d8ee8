import { MAX_DISKS } from '../../base/limits.ts';
import { type RawProblem, valueText } from '../config-problem.ts';
import type { PlacedPort } from '../port-config.ts';
import type { DiskConfig } from './disk-types.ts';

export type PlacedDisk = { readonly disk: DiskConfig; readonly keys: readonly PropertyKey[] };

/** Names belong to one disk each, sockets to one disk or port. */
export function findTwins(
  disks: readonly PlacedDisk[],
  ports: readonly PlacedPort[],
): RawProblem[] {
  const found: RawProblem[] = [];
  const names = new Set<string>();
  const sockets = new Map<string, string>();
  for (const { port } of ports) {
    if (port.kind === 'vhost-user') sockets.set(port.path, `port ${port.name}`);
  }
  for (const { disk, keys } of disks) {
    const problem = (text: string) => `${text}; give each its own`;
    if (names.has(disk.name)) {
      const text = problem(`${valueText(disk.name)} belongs to another disk`);
      found.push({ keys: [...keys, 'name'], problem: text });
    }
    names.add(disk.name);
    for (const [below, path] of [
      [['socket'], disk.socket],
      [['export', 'socket'], disk.export?.socket],
    ] as const) {
      if (path === undefined) continue;
      const other = sockets.get(path);
      if (other !== undefined) {
        const text = problem(`${valueText(path)} belongs to ${other}`);
        found.push({ keys: [...keys, ...below], problem: text });
      }
      sockets.set(path, `disk ${disk.name}`);
    }
  }
  const extra = disks[MAX_DISKS];
  if (extra !== undefined) {
    const problem = `this is disk ${MAX_DISKS + 1}; there are at most ${MAX_DISKS}`;
    found.push({ keys: [...extra.keys, 'name'], problem });
  }
  return found;
}
