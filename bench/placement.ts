/**
 * Where the hypervisor has put the two virtual cores. They are moved between the host's, every few
 * seconds when the host is busy, and nobody says so; but all that two polling threads do depends on
 * what a cache line between them costs. The same loops, with the same client, took 43, 75 and 180
 * ns a frame within a minute, at 150, 470 and 1650 ns for a line there and back. So each run is
 * measured between two looks at that time, and only runs of one kind are compared.
 */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { compiledProgram } from './compile.ts';

export const PLACEMENTS = ['near', 'far', 'apart'] as const;
export type Placement = (typeof PLACEMENTS)[number];

/**
 * Up to how many nanoseconds, there and back. Two threads of one core, or cores that share their
 * cache; two cores of one chip; anything farther, or virtual cores that take turns.
 */
const NEAR_NS = 260;
const FAR_NS = 900;

export async function coreToCoreNs(cores: readonly [number, number]): Promise<number> {
  const program = compiledProgram('core-to-core');
  const ns = Number((await promisify(execFile)(program, cores.map(String))).stdout);
  if (ns > 0) return ns;
  throw new Error(`bench/core-to-core.c printed ${ns}: expected nanoseconds`);
}

function placementOf(ns: number): Placement {
  if (ns < NEAR_NS) return 'near';
  return ns < FAR_NS ? 'far' : 'apart';
}

/** Of a run between two looks; null: the cores were moved meanwhile. */
export function placementBetween(before: number, after: number): Placement | null {
  const placement = placementOf(before);
  return placement === placementOf(after) ? placement : null;
}
