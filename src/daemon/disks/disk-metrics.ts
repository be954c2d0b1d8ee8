/** Rows of the table of metrics that are about disks; see metric-table.ts. */
import type { Metric, Sample } from '../metric-table.ts';
import type { DiskState, DiskStatus } from './disk-types.ts';

const DISK = ['disk'];

/** One sample per disk that has the figure. */
function perDisk(read: (disk: DiskStatus) => number | null | undefined): Metric['read'] {
  return function* ({ disks }) {
    for (const disk of disks) {
      const value = read(disk);
      if (value !== null && value !== undefined) yield { labels: { disk: disk.name }, value };
    }
  };
}

const COUNTED: Readonly<Record<string, { metric: string; help: string }>> = {
  reads: { metric: 'reads', help: 'Reads that were answered' },
  readBytes: { metric: 'read_bytes', help: 'Bytes of those reads' },
  writes: { metric: 'writes', help: 'Writes that were answered' },
  writtenBytes: { metric: 'written_bytes', help: 'Bytes of those writes' },
  flushes: { metric: 'flushes', help: 'Flushes' },
  discards: { metric: 'discards', help: 'Discards' },
  writeZeroes: { metric: 'write_zeroes', help: 'Requests to write zeroes' },
};

function* others(
  disks: readonly DiskStatus[],
  read: (disk: DiskStatus) => Readonly<Record<string, number>>,
): Iterable<Sample> {
  for (const disk of disks) {
    for (const [counter, value] of Object.entries(read(disk))) {
      if (Object.hasOwn(COUNTED, counter)) continue;
      yield { labels: { disk: disk.name, counter }, value };
    }
  }
}

export const DISK_COUNTERS: readonly Metric[] = [
  ...Object.entries(COUNTED).map(([counter, { metric, help }]) => ({
    name: `vring_disk_${metric}_total`,
    help,
    labels: DISK,
    read: perDisk(({ counters }) => counters[counter]),
  })),
  {
    name: 'vring_disk_counter_total',
    help: 'Other counters of a disk, by their own name',
    labels: ['disk', 'counter'],
    read: ({ disks }) => others(disks, ({ counters }) => counters),
  },
  {
    name: 'vring_disk_layer_counter_total',
    help: 'Counters of the layers of a disk, by their own name',
    labels: ['disk', 'counter'],
    read: ({ disks }) => others(disks, ({ layerCounters }) => layerCounters),
  },
  {
    name: 'vring_disk_errors_total',
    help: 'Requests that the medium failed',
    labels: DISK,
    read: perDisk(({ errors }) => errors),
  },
  {
    name: 'vring_disk_faults_total',
    help: 'Times the guest broke virtio and a queue stopped',
    labels: DISK,
    read: perDisk(({ faults }) => faults),
  },
  {
    name: 'vring_disk_sessions_total',
    help: 'Sessions of front-ends so far',
    labels: DISK,
    read: perDisk(({ sessions }) => sessions),
  },
];

export const DISK_STATES: readonly DiskState[] = [
  'listening',
  'negotiating',
  'up',
  'broken',
  'failed',
];

export const DISK_GAUGES: readonly Metric[] = [
  {
    name: 'vring_disk_state',
    help: '1 for the state that the disk is in, 0 for the others',
    labels: ['disk', 'state'],
    read: ({ disks }) =>
      disks.flatMap((disk) =>
        DISK_STATES.map((state) => ({
          labels: { disk: disk.name, state },
          value: disk.state === state ? 1 : 0,
        })),
      ),
  },
  {
    name: 'vring_disk_size_bytes',
    help: 'Size of the disk; absent while its image is not open',
    labels: DISK,
    read: perDisk(({ sizeBytes }) => sizeBytes),
  },
  {
    name: 'vring_disk_in_flight',
    help: 'Batches of requests that are under way',
    labels: DISK,
    read: perDisk(({ inFlight }) => inFlight),
  },
];

export const LATENCY_METRIC = {
  name: 'vring_disk_latency_seconds',
  help: 'Time of a request from when it was taken to when it was answered, by operation',
  labels: ['disk', 'op'],
};

export type HistogramSample = {
  readonly metricName: string;
  readonly labels: Readonly<Record<string, string | number>>;
  readonly value: number;
};

/** As Prometheus wants a histogram: cumulative, by upper bound in seconds, with sum and count. */
export function* latencySamples(disks: readonly DiskStatus[]): Iterable<HistogramSample> {
  const { name } = LATENCY_METRIC;
  for (const disk of disks) {
    for (const [op, { counts, sumMicroseconds }] of Object.entries(disk.latency)) {
      const labels = { disk: disk.name, op };
      let total = 0;
      for (const [i, count] of counts.entries()) {
        total += count;
        const le = i === counts.length - 1 ? '+Inf' : String(2 ** i / 1e6);
        yield { metricName: `${name}_bucket`, labels: { ...labels, le }, value: total };
      }
      yield { metricName: `${name}_sum`, labels, value: sumMicroseconds / 1e6 };
      yield { metricName: `${name}_count`, labels, value: total };
    }
  }
}
