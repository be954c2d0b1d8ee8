/** What disks do per second, and how long it takes them: from two looks at their counters. */
import type { DiskLatency, DiskStatus } from '../daemon/disks/disk-types.ts';
import { pc, printable, short, STATE_COLOURS, table } from './output.ts';

export type DiskSample = { readonly atMs: number; readonly disks: readonly DiskStatus[] };

export type DiskRates = {
  readonly disk: string;
  readonly state: DiskStatus['state'];
  readonly readsPerSecond: number;
  readonly writesPerSecond: number;
  readonly readBytesPerSecond: number;
  readonly writtenBytesPerSecond: number;
  /** Of reads and writes; upper bounds of their buckets. Null: there were none. */
  readonly p50Microseconds: number | null;
  readonly p99Microseconds: number | null;
  readonly inFlight: number;
  readonly errors: number;
};

export type Rates = { readonly seconds: number; readonly disks: readonly DiskRates[] };

/** A disk that is new counts from zero. */
export function ratesBetween(before: DiskSample, now: DiskSample): Rates {
  const seconds = (now.atMs - before.atMs) / 1000;
  const disks = now.disks.map((disk): DiskRates => {
    const old = before.disks.find(({ name }) => name === disk.name);
    const of = (counter: string): number => {
      const [was, is] = [old?.counters[counter] ?? 0, disk.counters[counter] ?? 0];
      return (is >= was ? is - was : is) / seconds;
    };
    const counts = ['read', 'write'].reduce<number[]>((all, op) => {
      const was = old?.latency[op]?.counts ?? [];
      const is = disk.latency[op]?.counts ?? [];
      const length = Math.max(all.length, is.length);
      return Array.from({ length }, (_, i) => {
        return (all[i] ?? 0) + Math.max(0, (is[i] ?? 0) - (was[i] ?? 0));
      });
    }, []);
    return {
      disk: disk.name,
      state: disk.state,
      readsPerSecond: of('reads'),
      writesPerSecond: of('writes'),
      readBytesPerSecond: of('readBytes'),
      writtenBytesPerSecond: of('writtenBytes'),
      p50Microseconds: quantile(counts, 0.5),
      p99Microseconds: quantile(counts, 0.99),
      inFlight: disk.inFlight,
      errors: disk.errors,
    };
  });
  return { seconds, disks };
}

/** Upper bound of the bucket in which the quantile is; the last has none, and says its begin. */
export function quantile(counts: readonly number[], q: number): number | null {
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (total === 0) return null;
  let seen = 0;
  for (const [i, count] of counts.entries()) {
    seen += count;
    if (seen >= q * total) return 2 ** Math.min(i, counts.length - 2);
  }
  return null;
}

export function latencyText({ counts, sumMicroseconds }: DiskLatency): string {
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (total === 0) return '-';
  const mean = (sumMicroseconds / total).toFixed(0);
  const [p50, p99] = [0.5, 0.99].map((q) => timeText(quantile(counts, q)));
  return `mean ${mean} us, p50 below ${p50}, p99 below ${p99}, ${total} requests`;
}

export async function ratesTable({ disks }: Rates): Promise<string> {
  const columns = [
    { title: 'DISK' },
    { title: 'STATE' },
    { title: 'READ/s', align: 'right' },
    { title: 'WRITE/s', align: 'right' },
    { title: 'READ MB/s', align: 'right' },
    { title: 'WRITE MB/s', align: 'right' },
    { title: 'p50 <', align: 'right' },
    { title: 'p99 <', align: 'right' },
    { title: 'IN FLIGHT', align: 'right' },
    { title: 'ERRORS', align: 'right' },
  ] as const;
  const rows = disks.map((disk) => [
    printable(disk.disk),
    (STATE_COLOURS[disk.state] ?? pc.red)(disk.state),
    short(disk.readsPerSecond),
    short(disk.writesPerSecond),
    (disk.readBytesPerSecond / 1e6).toFixed(1),
    (disk.writtenBytesPerSecond / 1e6).toFixed(1),
    timeText(disk.p50Microseconds),
    timeText(disk.p99Microseconds),
    String(disk.inFlight),
    disk.errors > 0 ? pc.red(short(disk.errors)) : '0',
  ]);
  return table(columns, rows);
}

function timeText(microseconds: number | null): string {
  if (microseconds === null) return '-';
  if (microseconds < 1000) return `${microseconds} us`;
  const ms = microseconds / 1000;
  return ms < 1000
    ? `${ms < 10 ? ms.toFixed(1) : ms.toFixed(0)} ms`
    : `${(ms / 1000).toFixed(1)} s`;
}
