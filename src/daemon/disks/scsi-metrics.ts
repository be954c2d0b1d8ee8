/** Rows of the table of metrics that are about SCSI adapters; their units are disks. */
import type { Metric } from '../metric-table.ts';
import { DISK_STATES } from './disk-metrics.ts';
import type { AdapterStatus } from './scsi-types.ts';

const ADAPTER = ['adapter'];

/** One sample per adapter. */
function perAdapter(read: (adapter: AdapterStatus) => number): Metric['read'] {
  return ({ adapters }) =>
    adapters.map((adapter) => ({ labels: { adapter: adapter.name }, value: read(adapter) }));
}

export const SCSI_COUNTERS: readonly Metric[] = [
  {
    name: 'vring_scsi_sessions_total',
    help: 'Sessions of front-ends of a SCSI adapter so far',
    labels: ADAPTER,
    read: perAdapter(({ sessions }) => sessions),
  },
  {
    name: 'vring_scsi_faults_total',
    help: 'Times the guest broke virtio and a queue of the adapter stopped',
    labels: ADAPTER,
    read: perAdapter(({ faults }) => faults),
  },
  {
    name: 'vring_scsi_counter_total',
    help: 'Counters of all queues of a SCSI adapter, by their own name; its units are disks',
    labels: ['adapter', 'counter'],
    read: ({ adapters }) =>
      adapters.flatMap(({ name, counters }) =>
        Object.entries(counters).map(([counter, value]) => ({
          labels: { adapter: name, counter },
          value,
        })),
      ),
  },
];

export const SCSI_GAUGES: readonly Metric[] = [
  {
    name: 'vring_scsi_state',
    help: '1 for the state that the SCSI adapter is in, 0 for the others',
    labels: ['adapter', 'state'],
    read: ({ adapters }) =>
      adapters.flatMap((adapter) =>
        DISK_STATES.map((state) => ({
          labels: { adapter: adapter.name, state },
          value: adapter.state === state ? 1 : 0,
        })),
      ),
  },
  {
    name: 'vring_scsi_units',
    help: 'Units of a SCSI adapter, those that failed included',
    labels: ADAPTER,
    read: perAdapter(({ units }) => units.length),
  },
];
