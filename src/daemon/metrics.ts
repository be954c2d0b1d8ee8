/**
 * /metrics: what the switch counts, for Prometheus. Nothing is counted twice: each scrape reads
 * the status of the switch once and copies it. docs/metrics.md lists the names.
 */
import { Counter, Gauge, Registry } from 'prom-client';
import { LATENCY_METRIC, latencySamples } from './disks/disk-metrics.ts';
import { COUNTERS, GAUGES, type Metric, type Snapshot } from './metric-table.ts';
import type { SwitchControl } from './switch-control.ts';

export class Metrics {
  readonly #registry = new Registry();
  readonly #control: () => SwitchControl;
  #snapshot: Promise<Snapshot> | null = null;

  constructor(control: () => SwitchControl, version: string) {
    this.#control = control;
    const registers = [this.#registry];
    for (const metric of COUNTERS) {
      const counter: Counter = new Counter({
        ...describe(metric),
        registers,
        collect: async () => {
          const samples = metric.read(await this.#scrape());
          counter.reset();
          for (const { labels, value } of samples) counter.inc(labels, value);
        },
      });
    }
    for (const metric of GAUGES) {
      const gauge: Gauge = new Gauge({
        ...describe(metric),
        registers,
        collect: async () => {
          const samples = metric.read(await this.#scrape());
          gauge.reset();
          for (const { labels, value } of samples) gauge.set(labels, value);
        },
      });
    }
    this.#registry.registerMetric(this.#latency() as unknown as Gauge);
    const info = { name: 'vring_build_info', help: 'Always 1; what is running' };
    const build = new Gauge({ ...info, labelNames: ['version', 'node'], registers });
    build.set({ version, node: process.version }, 1);
  }

  get contentType(): string {
    return this.#registry.contentType;
  }

  /** One scrape: the switch is asked once, however many metrics there are. */
  async text(): Promise<string> {
    try {
      return await this.#registry.metrics();
    } finally {
      this.#snapshot = null;
    }
  }

  /** The counts are there already, so none of prom-client's own histograms, which count. */
  #latency() {
    const { name, help } = LATENCY_METRIC;
    const get = async () => {
      const values = [...latencySamples((await this.#scrape()).disks)];
      return { name, help, type: 'histogram', aggregator: 'sum', values };
    };
    return { name, help, get };
  }

  #scrape(): Promise<Snapshot> {
    this.#snapshot ??= (async () => {
      const control = this.#control();
      const [ports, macs, workers, disks, adapters] = await Promise.all([
        control.ports(),
        control.macTable(),
        control.workers(),
        control.disks.disks(),
        control.disks.adapters(),
      ]);
      return { ports, macs, workers, disks, adapters };
    })();
    return this.#snapshot;
  }
}

function describe({ name, help, labels }: Metric) {
  return { name, help, labelNames: [...labels] };
}
