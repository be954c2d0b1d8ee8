/** A run of bench/round-trip-stand.ts for tests: idle, the cores far from each other, it counts. */
import type { RoundTripRun } from './round-trip-stand.ts';

export function tripRun(
  backend: string,
  p50Us: number,
  other: Partial<RoundTripRun> = {},
): RoundTripRun {
  return {
    backend,
    load: 'idle',
    trips: 100,
    p50Us,
    p90Us: 2 * p50Us,
    p99Us: 4 * p50Us,
    framesPerSecond: 400,
    cpuShare: 0,
    cpuShareOf10k: 0.5,
    sleepsOf10k: 10_000,
    callsOf10k: 10_000,
    kicksOf10k: 10_000,
    atRest: '',
    placement: 'far',
    problem: null,
    ...other,
  };
}
