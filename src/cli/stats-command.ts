/** `vring stats`: rates per second, live on a terminal. */
import { setTimeout as sleep } from 'node:timers/promises';
import { totalDrops } from '../daemon/switch-control.ts';
import type { PortStatus, WorkerStatus } from '../daemon/switch-types.ts';
import { ApiClient } from './client.ts';
import { drawScreen, takeScreen } from './live-screen.ts';
import {
  counted,
  print,
  printable,
  printJson,
  short,
  STATE_COLOURS,
  table,
  UsageError,
  pc,
} from './output.ts';
import type { ClientOptions } from './port-commands.ts';

export type StatsOptions = ClientOptions & { readonly once?: boolean; readonly interval: string };

type Sample = { atMs: number; ports: PortStatus[]; workers: WorkerStatus[] };

/** Rates of one port; frames and bytes as they crossed the port, without Ethernet's overhead. */
type PortRates = {
  port: string;
  state: PortStatus['state'];
  rxFramesPerSecond: number;
  rxBitsPerSecond: number;
  txFramesPerSecond: number;
  txBitsPerSecond: number;
  dropsPerSecond: number;
  drops: number;
};

type WorkerRates = { id: number; percent: number; queues: number };
type Rates = { seconds: number; ports: PortRates[]; workerCpu: WorkerRates[] };

export async function showStats(options: StatsOptions): Promise<void> {
  const seconds = Number(options.interval);
  if (!(seconds >= 0.1 && seconds <= 3600)) {
    throw new UsageError(`--interval: "${options.interval}" is not 0.1 to 3600 seconds`);
  }
  const client = new ApiClient(options.control);
  const isLive = !options.once && !options.json && process.stdout.isTTY;
  let before = await takeSample(client);
  if (isLive) takeScreen();
  for (;;) {
    await sleep(seconds * 1000);
    const now = await takeSample(client);
    const rates = ratesBetween(before, now);
    before = now;
    if (options.json) printJson(rates, options.once ? 'answer' : 'line');
    else if (isLive) drawScreen('vring stats', client.path, await ratesTable(rates));
    else print(await ratesTable(rates));
    if (options.once) return;
    if (!options.json && !isLive) print('');
  }
}

async function takeSample(client: ApiClient): Promise<Sample> {
  const [ports, workers] = await Promise.all([
    client.json<PortStatus[]>('/v1/ports'),
    client.json<WorkerStatus[]>('/v1/workers'),
  ]);
  return { atMs: performance.now(), ports, workers };
}

/** A port that is new, or started over, counts from zero. */
export function ratesBetween(before: Sample, now: Sample): Rates {
  const seconds = (now.atMs - before.atMs) / 1000;
  const ports = now.ports.map((port): PortRates => {
    const old = before.ports.find((p) => p.name === port.name)?.counters ?? {};
    const perSecond = (read: (counters: PortStatus['counters']) => number) => {
      const [was, is] = [read(old), read(port.counters)];
      return Math.max(0, is >= was ? is - was : is) / seconds;
    };
    const of = (name: string) => perSecond((counters) => counters[name] ?? 0);
    return {
      port: port.name,
      state: port.state,
      rxFramesPerSecond: of('rxFrames'),
      rxBitsPerSecond: of('rxBytes') * 8,
      txFramesPerSecond: of('txFrames'),
      txBitsPerSecond: of('txBytes') * 8,
      dropsPerSecond: perSecond(totalDrops),
      drops: totalDrops(port.counters),
    };
  });
  const workerCpu = now.workers.map(({ id, cpuSeconds, queues }) => {
    const was = before.workers.find((worker) => worker.id === id)?.cpuSeconds ?? cpuSeconds;
    return { id, percent: (100 * Math.max(0, cpuSeconds - was)) / seconds, queues: queues.length };
  });
  return { seconds, ports, workerCpu };
}

async function ratesTable({ ports, workerCpu }: Rates): Promise<string> {
  const columns = [
    { title: 'PORT' },
    { title: 'STATE' },
    { title: 'RX pps', align: 'right' },
    { title: 'RX bit/s', align: 'right' },
    { title: 'TX pps', align: 'right' },
    { title: 'TX bit/s', align: 'right' },
    { title: 'DROPS/s', align: 'right' },
    { title: 'DROPS', align: 'right' },
  ] as const;
  const rows = ports.map((port) => [
    printable(port.port),
    (STATE_COLOURS[port.state] ?? String)(port.state),
    short(port.rxFramesPerSecond),
    short(port.rxBitsPerSecond),
    short(port.txFramesPerSecond),
    short(port.txBitsPerSecond),
    port.dropsPerSecond > 0 ? pc.yellow(short(port.dropsPerSecond)) : '0',
    short(port.drops),
  ]);
  const cpu = workerCpu
    .map(({ id, percent, queues }) => {
      const own = workerCpu.length > 1 ? ` (${counted(queues, 'queue')})` : '';
      return `${id}: ${percent.toFixed(1)} %${own}`;
    })
    .join('  ');
  return `${await table(columns, rows)}\nworkers' CPU  ${cpu}`;
}
