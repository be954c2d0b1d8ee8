import type { PortConfig } from './switch-types.ts';

/** Kinds of ports that one worker serves alone, as their rings have one writer. */
const LONE_KINDS: ReadonlySet<PortConfig['kind']> = new Set(['vduse']);

/** What is wrong with a port of that kind in a switch of so many workers, or null. */
export function workersProblem(kind: PortConfig['kind'], workers: number): string | null {
  if (workers === 1 || !LONE_KINDS.has(kind)) return null;
  return (
    `a ${kind} port has rings that one worker writes, and the switch has ${workers} workers; ` +
    'use another kind, or a switch of one worker'
  );
}
