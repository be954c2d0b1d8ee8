/** The table of metrics: name, meaning, labels, and where its samples come from. */
import { readdirSync } from 'node:fs';
import { DISK_COUNTERS, DISK_GAUGES, LATENCY_METRIC } from './disks/disk-metrics.ts';
import type { DiskStatus } from './disks/disk-types.ts';
import { SCSI_COUNTERS, SCSI_GAUGES } from './disks/scsi-metrics.ts';
import type { AdapterStatus } from './disks/scsi-types.ts';
import { dropOf } from './switch-control.ts';
import type {
  MacEntry,
  PortState,
  PortStatus,
  QueueStatus,
  SessionStatus,
  WorkerStatus,
} from './switch-types.ts';

const STATES: readonly PortState[] = [
  'listening',
  'connecting',
  'negotiating',
  'up',
  'broken',
  'down',
];

export type Sample = { readonly labels: Record<string, string>; readonly value: number };
export type Snapshot = {
  readonly ports: readonly PortStatus[];
  readonly macs: readonly MacEntry[];
  readonly workers: readonly WorkerStatus[];
  readonly disks: readonly DiskStatus[];
  readonly adapters: readonly AdapterStatus[];
};
export type Metric = {
  readonly name: string;
  readonly help: string;
  readonly labels: readonly string[];
  readonly read: (snapshot: Snapshot) => Iterable<Sample>;
};

/** One sample per port. */
function perPort(read: (port: PortStatus) => number): Metric['read'] {
  return ({ ports }) => ports.map((port) => ({ labels: { port: port.name }, value: read(port) }));
}

/** One sample per port with a session that has the figure. */
function perSession(read: (session: SessionStatus) => number | undefined): Metric['read'] {
  return function* ({ ports }) {
    for (const { name, session } of ports) {
      const value = session === null ? undefined : read(session);
      if (value !== undefined) yield { labels: { port: name }, value };
    }
  };
}

/** One sample per counter of a port that `pick` gives labels. */
function* portCounters(
  { ports }: Snapshot,
  pick: (counter: string) => Record<string, string> | null,
): Iterable<Sample> {
  for (const port of ports) {
    for (const [counter, value] of Object.entries(port.counters)) {
      const labels = pick(counter);
      if (labels) yield { labels: { port: port.name, ...labels }, value };
    }
  }
}

const TRAFFIC: Readonly<Record<string, { metric: string; help: string }>> = {
  rxFrames: { metric: 'receive_frames', help: 'Frames that the port sent into the switch' },
  rxBytes: { metric: 'receive_bytes', help: 'Bytes of those frames' },
  txFrames: { metric: 'transmit_frames', help: 'Frames that the switch delivered to the port' },
  txBytes: { metric: 'transmit_bytes', help: 'Bytes of those frames' },
  faults: { metric: 'faults', help: 'Times the guest broke virtio and a queue stopped' },
};

const QUEUE: Readonly<Record<string, { metric: string; help: string }>> = {
  kicks: { metric: 'kicks', help: 'Notifications from the driver' },
  calls: { metric: 'calls', help: 'Notifications to the driver' },
  callsSuppressed: {
    metric: 'calls_suppressed',
    help: 'Notifications that the driver did not want',
  },
  chains: { metric: 'chains', help: 'Descriptor chains taken' },
};

function perQueue(read: (queue: QueueStatus) => number | undefined): Metric['read'] {
  return function* ({ ports }) {
    for (const port of ports) {
      for (const queue of port.queues) {
        const value = read(queue);
        if (value === undefined) continue;
        yield { labels: { port: port.name, queue: queue.name }, value };
      }
    }
  };
}

function* otherQueueCounters({ ports }: Snapshot): Iterable<Sample> {
  for (const port of ports) {
    for (const queue of port.queues) {
      for (const [counter, value] of Object.entries(queue.counters)) {
        if (Object.hasOwn(QUEUE, counter)) continue;
        yield { labels: { port: port.name, queue: queue.name, counter }, value };
      }
    }
  }
}

const perWorker =
  (read: (worker: WorkerStatus) => number): Metric['read'] =>
  ({ workers }) =>
    workers.map((worker) => ({ labels: { worker: String(worker.id) }, value: read(worker) }));

const PORT = ['port'];
const QUEUE_LABELS = ['port', 'queue'];
const WORKER = ['worker'];

export const COUNTERS: readonly Metric[] = [
  ...Object.entries(TRAFFIC).map(([counter, { metric, help }]) => ({
    name: `vring_port_${metric}_total`,
    help,
    labels: PORT,
    read: perPort((port) => port.counters[counter] ?? 0),
  })),
  {
    name: 'vring_port_drops_total',
    help: 'Frames dropped: rx came from the port, tx was meant for it',
    labels: ['port', 'direction', 'reason'],
    read: (snapshot) => portCounters(snapshot, dropOf),
  },
  {
    name: 'vring_port_counter_total',
    help: 'Other counters of a port, by their own name',
    labels: ['port', 'counter'],
    read: (snapshot) =>
      portCounters(snapshot, (counter) =>
        Object.hasOwn(TRAFFIC, counter) || dropOf(counter) ? null : { counter },
      ),
  },
  {
    name: 'vring_port_messages_total',
    help: 'Messages of the front-end in its present session',
    labels: PORT,
    read: perSession((session) => session.messages),
  },
  {
    name: 'vring_port_messages_refused_total',
    help: 'Messages of them that were refused',
    labels: PORT,
    read: perSession((session) => session.refusals),
  },
  {
    name: 'vring_port_iotlb_misses_total',
    help: 'Translations that the front-end was asked for, where the driver is behind an IOMMU',
    labels: PORT,
    read: perSession((session) => session.iotlb?.misses),
  },
  {
    name: 'vring_port_iotlb_updates_total',
    help: 'Translations that it gave',
    labels: PORT,
    read: perSession((session) => session.iotlb?.updates),
  },
  {
    name: 'vring_port_iotlb_invalidations_total',
    help: 'Translations that it took back',
    labels: PORT,
    read: perSession((session) => session.iotlb?.invalidations),
  },
  {
    name: 'vring_port_sessions_total',
    help: 'Sessions of front-ends so far',
    labels: PORT,
    read: perPort((port) => port.sessions),
  },
  ...Object.entries(QUEUE).map(([counter, { metric, help }]) => ({
    name: `vring_queue_${metric}_total`,
    help,
    labels: QUEUE_LABELS,
    read: perQueue((queue) => queue.counters[counter]),
  })),
  {
    name: 'vring_queue_counter_total',
    help: 'Other counters of a queue, by their own name',
    labels: [...QUEUE_LABELS, 'counter'],
    read: otherQueueCounters,
  },
  ...DISK_COUNTERS,
  ...SCSI_COUNTERS,
  {
    name: 'vring_worker_polls_total',
    help: 'Rounds of a worker over its queues',
    labels: WORKER,
    read: perWorker((worker) => worker.polls),
  },
  {
    name: 'vring_worker_sleeps_total',
    help: 'Times a worker found nothing and slept',
    labels: WORKER,
    read: perWorker((worker) => worker.sleeps),
  },
  {
    name: 'vring_worker_wakeups_total',
    help: 'Times a notification woke a worker',
    labels: WORKER,
    read: perWorker((worker) => worker.wakeups),
  },
  {
    name: 'vring_worker_cpu_seconds_total',
    help: 'CPU time of a worker',
    labels: WORKER,
    read: perWorker((worker) => worker.cpuSeconds),
  },
  {
    name: 'vring_worker_queues_taken_total',
    help: 'Queues that came to a worker from another one',
    labels: WORKER,
    read: perWorker((worker) => worker.queuesTaken),
  },
  {
    name: 'vring_worker_queues_refused_total',
    help: 'Queues of another worker that it could not take',
    labels: WORKER,
    read: perWorker((worker) => worker.queuesRefused),
  },
  {
    name: 'process_cpu_seconds_total',
    help: 'CPU time of the process, all threads',
    labels: [],
    read: () => {
      const { user, system } = process.cpuUsage();
      return [{ labels: {}, value: (user + system) / 1e6 }];
    },
  },
];

export const GAUGES: readonly Metric[] = [
  {
    name: 'vring_port_info',
    help: 'Always 1; what the port is',
    labels: ['port', 'kind', 'endpoint'],
    read: ({ ports }) =>
      ports.map(({ name, kind, endpoint }) => ({
        labels: { port: name, kind, endpoint },
        value: 1,
      })),
  },
  {
    name: 'vring_port_state',
    help: '1 for the state that the port is in, 0 for the others',
    labels: ['port', 'state'],
    read: ({ ports }) =>
      ports.flatMap((port) =>
        STATES.map((state) => ({
          labels: { port: port.name, state },
          value: port.state === state ? 1 : 0,
        })),
      ),
  },
  {
    name: 'vring_port_link_up',
    help: '1 unless the link was taken down',
    labels: PORT,
    read: perPort((port) => Number(port.linkUp)),
  },
  {
    name: 'vring_port_memory_bytes',
    help: 'Guest memory that is mapped for the port',
    labels: PORT,
    read: perPort((port) => port.memory?.bytes ?? 0),
  },
  {
    name: 'vring_port_dirty_log_active',
    help: '1 while pages that are written are logged for a migration',
    labels: PORT,
    read: perSession((session) => Number(session.log?.active ?? false)),
  },
  {
    name: 'vring_port_iotlb_entries',
    help: 'Translations that are known',
    labels: PORT,
    read: perSession((session) => session.iotlb?.entries),
  },
  {
    name: 'vring_queue_started',
    help: '1 while the queue runs',
    labels: QUEUE_LABELS,
    read: perQueue((queue) => Number(queue.enabled && queue.started && queue.fault === null)),
  },
  ...DISK_GAUGES,
  ...SCSI_GAUGES,
  {
    name: 'vring_mac_table_entries',
    help: 'Learned MAC addresses',
    labels: PORT,
    read({ ports, macs }) {
      const counts = new Map(ports.map((port) => [port.name, 0]));
      for (const { port } of macs) counts.set(port, (counts.get(port) ?? 0) + 1);
      return Array.from(counts, ([port, value]) => ({ labels: { port }, value }));
    },
  },
  {
    name: 'process_resident_memory_bytes',
    help: 'Resident memory of the process, touched guest memory included',
    labels: [],
    read: () => [{ labels: {}, value: process.memoryUsage.rss() }],
  },
  {
    name: 'process_open_fds',
    help: 'Open file descriptors',
    labels: [],
    read: () => [{ labels: {}, value: readdirSync('/proc/self/fd').length - 1 }],
  },
  {
    name: 'process_start_time_seconds',
    help: 'Start of the process, Unix time',
    labels: [],
    read: () => [{ labels: {}, value: performance.timeOrigin / 1000 }],
  },
];

/** Names, kinds, labels and meanings of all metrics, for docs/metrics.md. */
export function metricList(): { name: string; type: string; labels: string; help: string }[] {
  const row = (type: string) => (metric: Metric) => ({
    name: metric.name,
    type,
    labels: metric.labels.join(', '),
    help: metric.help,
  });
  const info = { name: 'vring_build_info', type: 'gauge', labels: 'version, node' };
  const help = 'Always 1; what is running';
  const { name, labels, help: meaning } = LATENCY_METRIC;
  const latency = { name, type: 'histogram', labels: labels.join(', '), help: meaning };
  const gauges = GAUGES.map(row('gauge'));
  return [{ ...info, help }, ...gauges, ...COUNTERS.map(row('counter')), latency];
}
