/**
 * What a disk has counted since it was added. The data plane counts from zero whenever the image is
 * opened; what came before, here or at a predecessor, is added.
 */
import type { LatencyStatus } from '../../devices/blk/index.ts';
import { errnoName } from '../../sys/index.ts';
import type { DiskLatency, DiskStatus } from './disk-types.ts';

export type DiskCounts = Pick<
  DiskStatus,
  'inFlight' | 'errors' | 'lastError' | 'faults' | 'counters' | 'latency'
>;

/** What a data plane says of a disk, or of a unit of an adapter. */
export type PlaneCounts = {
  /** Requests, or batches of them. */
  readonly underWay: number;
  readonly errors: number;
  readonly lastError: { readonly op: string; readonly at: number; readonly errno: number } | null;
  readonly faults: number;
  readonly totals: Readonly<Record<string, number>>;
  readonly latency: Partial<LatencyStatus>;
};

export const NO_COUNTS: DiskCounts = {
  inFlight: 0,
  errors: 0,
  lastError: null,
  faults: 0,
  counters: {},
  latency: {},
};

export function countsOf(plane: PlaneCounts): DiskCounts {
  const { underWay: inFlight, errors, faults, lastError: last, totals: counters } = plane;
  const lastError = last && { op: last.op, at: last.at, errno: errnoName(last.errno) };
  const latency = Object.fromEntries(
    Object.entries(plane.latency).map(([op, { buckets: counts, sumUs: sumMicroseconds }]) => {
      return [op, { counts, sumMicroseconds }];
    }),
  );
  return { inFlight, errors, lastError, faults, counters, latency };
}

/** `now` has begun where `before` ended. */
export function sumOf(before: DiskCounts, now: DiskCounts): DiskCounts {
  const names = new Set([...Object.keys(before.latency), ...Object.keys(now.latency)]);
  return {
    inFlight: now.inFlight,
    errors: before.errors + now.errors,
    lastError: now.lastError ?? before.lastError,
    faults: before.faults + now.faults,
    counters: sums(before.counters, now.counters),
    latency: Object.fromEntries(
      [...names].map((name) => [name, latencySum(before.latency[name], now.latency[name])]),
    ),
  };
}

function sums(
  a: Readonly<Record<string, number>>,
  b: Readonly<Record<string, number>>,
): Record<string, number> {
  const all: Record<string, number> = { ...a };
  for (const [name, value] of Object.entries(b)) all[name] = (all[name] ?? 0) + value;
  return all;
}

const NOTHING: DiskLatency = { counts: [], sumMicroseconds: 0 };

function latencySum(a: DiskLatency = NOTHING, b: DiskLatency = NOTHING): DiskLatency {
  const length = Math.max(a.counts.length, b.counts.length);
  return {
    counts: Array.from({ length }, (_, i) => (a.counts[i] ?? 0) + (b.counts[i] ?? 0)),
    sumMicroseconds: a.sumMicroseconds + b.sumMicroseconds,
  };
}
