/**
 * `npm run bench:policy`: what each policy of a port costs and brings (docs/latency.md).
 *
 *   npm run bench:policy                                 2 rounds of 1.5 s, all policies and loads
 *   npm run bench:policy -- --only power,latency --loads 1k,full --seconds 3 --rounds 5
 *
 * The switch runs on core 0 with one port that returns every frame. The client is a software guest
 * on core 1. For idle trips it sends one frame at a time and sleeps until it is called. At a rate
 * it polls its rings, as a busy driver does, and asks for a call after each look, so that a call
 * is made for whatever is published. Rounds are interleaved; figures are medians of the rounds.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { readOptions, wholeNumber } from '../scripts/options.ts';
import { assert } from '../src/base/assert.ts';
import { BATCH } from '../src/base/limits.ts';
import { buildTestFrame, connectNetGuest, type NetGuest } from '../src/guest/index.ts';
import { LatencyHistogram } from '../src/guest/latency-histogram.ts';
import { recordLatency } from '../src/guest/latency.hot.ts';
import { reapRx, reclaimTx, refillRx, releaseRx, sendSlots } from '../src/guest/net-driver.hot.ts';
import { drainEventfd, Epoll, pinThread } from '../src/sys/index.ts';
import { disableCalls, enableCalls } from '../src/virtqueue/driver/index.ts';
import { Scratch, sleep } from '../test/peers/scratch.ts';
import { SwitchProcess } from '../test/peers/switch.ts';
import { snapshot, waitingShare } from './disturbance.ts';
import { machineFacts } from './machine.ts';
import { BACKEND_CORE, CLIENT_CORE } from './scenario.ts';
import { median } from './statistics.ts';

const USAGE = `npm run bench:policy -- [options]
  --rounds N         (2)
  --seconds S        of each measured run (1.5)
  --only A,B         of latency, balanced, throughput, power
  --loads A,B        of 100, 1k, 10k, 20k, 100k, full
  --window N         frames under way at most (128)
  --root DIR         a checkout whose switch is measured (this one)
  --json FILE        every run (build/bench-policy.json)`;

const { values: options } = readOptions(USAGE, {
  options: {
    rounds: { type: 'string', default: '2' },
    seconds: { type: 'string', default: '1.5' },
    only: { type: 'string', default: 'latency,balanced,throughput,power' },
    loads: { type: 'string', default: '100,1k,10k,20k,100k,full' },
    window: { type: 'string', default: '128' },
    root: { type: 'string' },
    json: { type: 'string', default: 'build/bench-policy.json' },
  },
});

type Load = { readonly name: string; readonly rate: number; readonly sleeps: boolean };
const LOADS: readonly Load[] = [
  { name: '100', rate: 100, sleeps: true },
  { name: '1k', rate: 1000, sleeps: true },
  { name: '10k', rate: 10_000, sleeps: false },
  { name: '20k', rate: 20_000, sleeps: false },
  { name: '100k', rate: 100_000, sleeps: false },
  { name: 'full', rate: Infinity, sleeps: false },
];

type PolicyRun = {
  readonly policy: string;
  readonly load: string;
  readonly framesPerSecond: number;
  readonly p50Us: number;
  readonly p99Us: number;
  readonly cpuPercent: number;
  readonly cpuMsPer10k: number;
  readonly sleepsPer10k: number;
  readonly callsPer10k: number;
  readonly kicksPer10k: number;
  /** Largest share of the time that a busy thread waited for its core. */
  readonly waitingShare: number;
};

const FRAME_BYTES = 64;
const WARM_UP_MS = 300;
const SLICE_MS = 5;
const LOST_MS = 200;
/** Waiting for a core above this share makes a run useless. */
const MAX_WAITING_SHARE = 0.05;

/** Frames under way, oldest first: a port that returns frames keeps their order. */
class Client {
  histogram = new LatencyHistogram();
  returned = 0;
  readonly #guest: NetGuest;
  readonly #epoll = new Epoll();
  readonly #tokens = new Int32Array(4);
  readonly #sentAtMs = new Float64Array(4096);
  #sent = 0;
  #lengthBytes = 0;

  constructor(guest: NetGuest) {
    this.#guest = guest;
    const mac = new Uint8Array([2, 0, 0, 0, 0, 1]);
    const { bytes } = buildTestFrame({
      sizeBytes: FRAME_BYTES,
      sourceMac: mac,
      targetMac: new Uint8Array([2, 0, 0, 0, 0, 2]),
      flow: 0,
      run: 1,
      vlan: null,
      gso: 'none',
      gsoSize: 0,
    });
    const [tx] = guest.tx;
    this.#lengthBytes = bytes.length;
    for (const at of tx!.slotOffset) new Uint8Array(tx!.arena.buffer, at, bytes.length).set(bytes);
    disableCalls(tx!.ring);
    this.#epoll.add(guest.rx[0]!.call.number, 0);
  }

  get underWay(): number {
    return this.#sent - this.returned;
  }

  /** Sends `rate` frames a second, evenly spaced, for so long. */
  async run(load: Load, forMs: number, window: number): Promise<void> {
    const startMs = performance.now();
    const before = this.#sent;
    for (;;) {
      const sliceEndMs = performance.now() + SLICE_MS;
      let nowMs = performance.now();
      while (nowMs < sliceEndMs) {
        const due = Math.floor(((nowMs - startMs) / 1000) * load.rate) - (this.#sent - before);
        const count = Math.min(due, window - this.underWay, BATCH);
        if (count > 0) this.#send(count);
        if (load.sleeps && this.underWay > 0) this.#sleep();
        else this.#reap();
        nowMs = performance.now();
      }
      if (nowMs - startMs > forMs) return;
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  /** What is under way comes back, or is lost. */
  async settle(): Promise<void> {
    const endMs = performance.now() + LOST_MS;
    while (this.underWay > 0 && performance.now() < endMs) {
      this.#reap();
      await new Promise((resolve) => setImmediate(resolve));
    }
    assert(this.underWay === 0, `${this.underWay} frames did not come back`);
  }

  forget(): void {
    this.histogram = new LatencyHistogram();
    this.returned = this.#sent = 0;
  }

  close(): void {
    this.#epoll.close();
  }

  #send(count: number): void {
    const [tx] = this.#guest.tx;
    assert(reclaimTx(tx!) >= 0);
    const nowMs = performance.now();
    const sent = sendSlots(tx!, Math.min(count, tx!.freeCount), this.#lengthBytes, false);
    for (let i = 0; i < sent; i++) this.#sentAtMs[this.#sent++ & 4095] = nowMs;
    this.#guest.kickIfWanted(tx!);
  }

  #reap(): void {
    const [rx] = this.#guest.rx;
    const [frames] = this.#guest.rxFrames;
    const count = reapRx(rx!, frames!, this.#guest.mergeable);
    assert(count >= 0);
    if (count > 0) {
      const nowMs = performance.now();
      for (let i = 0; i < count; i++) {
        recordLatency(this.histogram, nowMs - this.#sentAtMs[this.returned++ & 4095]!);
      }
      releaseRx(rx!, frames!);
      refillRx(rx!);
      this.#guest.kickIfWanted(rx!);
      drainEventfd(rx!.call.number);
      enableCalls(rx!.ring);
    }
  }

  #sleep(): void {
    const [rx] = this.#guest.rx;
    if (!enableCalls(rx!.ring)) this.#epoll.wait(this.#tokens, LOST_MS);
    drainEventfd(rx!.call.number);
    this.#reap();
  }
}

/** What the switch has counted so far. */
async function figures(vswitch: SwitchProcess) {
  const [[worker], { queues }] = await Promise.all([vswitch.workers(), vswitch.port('p')]);
  const sum = (name: string) => queues.reduce((all, q) => all + (q.counters[name] ?? 0), 0);
  const { cpuSeconds, sleeps } = worker!;
  return { atMs: performance.now(), cpuSeconds, sleeps, calls: sum('calls'), kicks: sum('kicks') };
}

async function measure(policy: string, loads: readonly Load[]): Promise<PolicyRun[]> {
  await using scratch = new Scratch();
  const path = scratch.path('p');
  const asked = policy === 'before' ? '' : `,policy=${policy}`;
  const vswitch = await SwitchProcess.start({
    ports: [`p=vhost-user:${path},reflect${asked}`],
    control: scratch.path('control'),
    core: BACKEND_CORE,
    ...(options.root === undefined ? {} : { root: options.root }),
  });
  scratch.own(vswitch);
  const guest = await connectNetGuest({ backend: `vhost-user:${path}`, notify: 'manual' });
  const client = new Client(guest);
  const runs: PolicyRun[] = [];
  try {
    const window = Number(options.window);
    await client.run({ name: 'warm-up', rate: Infinity, sleeps: false }, WARM_UP_MS, window);
    for (const load of loads) {
      await client.run(load, WARM_UP_MS, window);
      await client.settle();
      await sleep(20); // asleep
      client.forget();
      const threads = snapshot([process.pid, vswitch.pid]);
      const before = await figures(vswitch);
      await client.run(load, Number(options.seconds) * 1000, window);
      const after = await figures(vswitch);
      const waiting = waitingShare(threads, snapshot([process.pid, vswitch.pid]));
      await client.settle();
      const seconds = (after.atMs - before.atMs) / 1000;
      const cpuSeconds = after.cpuSeconds - before.cpuSeconds;
      const frames = client.returned;
      const per10k = (n: number) => (n / frames) * 10_000;
      runs.push({
        policy,
        load: load.name,
        framesPerSecond: frames / seconds,
        p50Us: client.histogram.percentileUs(0.5),
        p99Us: client.histogram.percentileUs(0.99),
        cpuPercent: (cpuSeconds / seconds) * 100,
        cpuMsPer10k: per10k(cpuSeconds * 1000),
        sleepsPer10k: per10k(after.sleeps - before.sleeps),
        callsPer10k: per10k(after.calls - before.calls),
        kicksPer10k: per10k(after.kicks - before.kicks),
        waitingShare: waiting,
      });
    }
  } finally {
    client.close();
    await guest.close();
  }
  return runs;
}

/** Runs that nobody disturbed; all, where there are none. */
function undisturbed(runs: readonly PolicyRun[]): readonly PolicyRun[] {
  const good = runs.filter((run) => run.waitingShare <= MAX_WAITING_SHARE);
  return good.length > 0 ? good : runs;
}

function row(all: readonly PolicyRun[]): string {
  const runs = undisturbed(all);
  const of = (key: keyof PolicyRun, digits: number): string =>
    median(runs.map((run) => Number(run[key])))
      .toFixed(digits)
      .padStart(9);
  const { policy, load } = runs[0]!;
  return [
    `${load.padEnd(6)} ${policy.padEnd(11)}`,
    of('framesPerSecond', 0),
    of('p50Us', 1),
    of('p99Us', 1),
    of('cpuPercent', 1),
    of('cpuMsPer10k', 1),
    of('sleepsPer10k', 0),
    of('callsPer10k', 0),
    of('kicksPer10k', 0),
    `${runs.length}/${all.length}`.padStart(6),
    runs[0]!.waitingShare > MAX_WAITING_SHARE ? 'disturbed' : '',
  ].join(' ');
}

async function main(): Promise<void> {
  const rounds = wholeNumber(USAGE, '--rounds', options.rounds, 1);
  const policies = options.only.split(',');
  const wanted = options.loads.split(',');
  const loads = LOADS.filter(({ name }) => wanted.includes(name));
  const machine = machineFacts();
  for (const [key, value] of Object.entries(machine)) console.log(`${key.padEnd(12)} ${value}`);
  pinThread(CLIENT_CORE);
  const runs: PolicyRun[] = [];
  for (let round = 0; round < rounds; round++) {
    const order = round % 2 === 0 ? policies : policies.toReversed();
    for (const policy of order) runs.push(...(await measure(policy, loads)));
  }
  const heads = [
    'frames/s',
    'p50 us',
    'p99 us',
    'CPU %',
    'ms/10k',
    'sleeps',
    'calls',
    'kicks',
    'runs',
  ];
  console.log(`\n${'load'.padEnd(18)} ${heads.map((head) => head.padStart(9)).join(' ')}`);
  for (const load of loads) {
    for (const policy of policies) {
      console.log(row(runs.filter((run) => run.load === load.name && run.policy === policy)));
    }
  }
  mkdirSync(dirname(options.json), { recursive: true });
  const at = new Date().toISOString();
  writeFileSync(options.json, `${JSON.stringify({ at, machine, runs }, null, 1)}\n`);
  console.log(`\nsleeps, calls and kicks per 10,000 frames; written to ${options.json}`);
}

await main();
