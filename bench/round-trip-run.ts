/**
 * One run of bench/round-trip.ts: a back-end with two ports, two guests (round-trip-client.ts),
 * what the back-end uses of its core meanwhile, and how long a frame takes there and back.
 */
import type { ChildProcess } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { messageOf } from '../src/base/errors.ts';
import { percentile } from '../src/compare/figures.ts';
import { endChild, OutputTail, startChild } from '../src/vmm/index.ts';
import { Scratch, sleep } from '../test/peers/scratch.ts';
import { ovsSleeping, VRING, type BackendKind } from './backends.ts';
import { runShare, snapshot, totalWaitingShare } from './disturbance.ts';
import type { ClientAnswer, ClientOrder, ClientRequest } from './round-trip-client.ts';
import { CLIENT_CORE, type Scenario } from './scenario.ts';
import { summarize, type Summary } from './statistics.ts';

/**
 * Open vSwitch sleeps up to this per round. It does not notice frames while it sleeps, so half of
 * it is added to each direction on average; at 0 it never sleeps and has its core for itself.
 */
export const OVS_SLEEP_US = 500;

export const ROUND_TRIP_KINDS: readonly BackendKind[] = [VRING, ovsSleeping(OVS_SLEEP_US)];

export type RoundTripOptions = {
  /** Frames sent and awaited, one at a time. */
  readonly trips: number;
  /** Background frames a second through the same two ports; 0: none. */
  readonly load: number;
  readonly ring: Scenario['ring'];
};

export const ROUND_TRIP_DEFAULTS: RoundTripOptions = { trips: 300, load: 0, ring: 'split' };

export type RoundTripRun = {
  readonly backend: string;
  readonly p50Us: number;
  readonly p90Us: number;
  readonly p99Us: number;
  /** Of one core, while no trip is under way: with no load, while nothing is sent at all. */
  readonly cpuShare: number;
  /** Frames of the load that arrived in a second of the time that `cpuShare` is of. */
  readonly framesPerSecond: number;
  /** Of one core, for 10 000 frames a second; null without load. */
  readonly cpuShareOf10k: number | null;
  /** Why a run does not count, or null. */
  readonly problem: string | null;
};

/** Until everybody who looks for work has gone to sleep; Open vSwitch gets there slowly. */
const SETTLE_MS = 1000;
const CPU_MS = 2000;
const GAP_MS = 4;
/** Trips that nobody counts, until both sides' code is compiled. */
const WARM_TRIPS = 200;
const START_TIMEOUT_MS = 15_000;
/** Waiting for a core above this share makes a run useless: an idle process waits for nobody. */
const MAX_WAITING_SHARE = 0.08;

export async function measureRoundTrips(
  kind: BackendKind,
  options: RoundTripOptions = ROUND_TRIP_DEFAULTS,
): Promise<RoundTripRun> {
  await using scratch = new Scratch();
  const { ring, load, trips } = options;
  const scenario: Scenario = { topology: 'pair', ring, frameBytes: 64 };
  const backend = scratch.own(await kind.start(scenario, scratch.folder));
  const client = scratch.own(new Client({ sockets: backend.sockets, packed: ring === 'packed' }));
  await client.answer();
  await client.ask({ do: 'trips', count: WARM_TRIPS, gapMs: 1 });
  if (load > 0) await client.ask({ do: 'load', framesPerSecond: load });
  await sleep(SETTLE_MS);
  const pids = [client.pid, ...backend.pids];
  const start = snapshot(pids);
  const before = await client.ask({ do: 'counters' });
  const from = snapshot(backend.pids);
  await sleep(CPU_MS);
  const to = snapshot(backend.pids);
  const after = await client.ask({ do: 'counters' });
  const { tripsUs } = await client.ask({ do: 'trips', count: trips, gapMs: GAP_MS });
  const waiting = totalWaitingShare(start, snapshot(pids));
  const sorted = [...tripsUs].sort((a, b) => a - b);
  const cpuShare = runShare(from, to);
  const framesPerSecond = ((after.received - before.received) * 1000) / (to.atMs - from.atMs);
  return {
    backend: kind.name,
    p50Us: percentile(sorted, 0.5),
    p90Us: percentile(sorted, 0.9),
    p99Us: percentile(sorted, 0.99),
    cpuShare,
    framesPerSecond,
    cpuShareOf10k: load > 0 ? (cpuShare * 10_000) / framesPerSecond : null,
    problem: problemOf(options, framesPerSecond, waiting),
  };
}

/** The same; a run that fails, or does not count, is said aloud and tried once more. */
export async function attemptRoundTrips(
  kind: BackendKind,
  options: RoundTripOptions = ROUND_TRIP_DEFAULTS,
): Promise<RoundTripRun> {
  for (let tries = 0; ; tries++) {
    const run = await measureRoundTrips(kind, options).catch((error: unknown) =>
      failed(kind, error),
    );
    if (run.problem === null) return run;
    console.error(`${kind.name}: ${run.problem}`);
    if (tries === 1) return run;
  }
}

/** Their p50 over ours, of rounds in which both count; above 1 we are faster. Null: no round. */
export function compareRoundTrips(
  rounds: readonly (readonly RoundTripRun[])[],
  subject: string,
  rival: string,
  figure: 'p50Us' | 'p90Us' | 'p99Us' | 'cpuShareOf10k' = 'p50Us',
): Summary | null {
  const ratios = rounds.flatMap((round) => {
    const good = (name: string): number | null =>
      round.find((run) => run.backend === name && run.problem === null)?.[figure] ?? null;
    const [ours, theirs] = [good(subject), good(rival)];
    return ours === null || theirs === null ? [] : [theirs / ours];
  });
  return ratios.length === 0 ? null : summarize(ratios);
}

function problemOf(
  { load }: RoundTripOptions,
  framesPerSecond: number,
  waiting: number,
): string | null {
  if (load > 0 && framesPerSecond < 1) return 'no frame of the load arrived';
  if (framesPerSecond < 0.9 * load) {
    return `only ${framesPerSecond.toFixed(0)} of ${load} frames a second arrived`;
  }
  if (waiting <= MAX_WAITING_SHARE) return null;
  return `disturbed: threads waited for their cores ${(waiting * 100).toFixed(1)} % of the time`;
}

function failed({ name }: BackendKind, error: unknown): RoundTripRun {
  const nothing = { p50Us: NaN, p90Us: NaN, p99Us: NaN, cpuShare: NaN, framesPerSecond: NaN };
  return { backend: name, ...nothing, cpuShareOf10k: null, problem: messageOf(error) };
}

/** The process of the guests; one request at a time. */
class Client {
  readonly #child: ChildProcess;
  readonly #log = new OutputTail(16_384);

  constructor(order: ClientOrder) {
    const file = fileURLToPath(new URL('./round-trip-client.ts', import.meta.url));
    const words = ['-c', String(CLIENT_CORE), process.execPath, file, JSON.stringify(order)];
    this.#child = startChild('taskset', words, { stdio: ['ignore', 'ignore', 'pipe', 'ipc'] });
    this.#child.stderr?.setEncoding('utf8').on('data', (text: string) => this.#log.append(text));
  }

  get pid(): number {
    return this.#child.pid ?? -1;
  }

  ask(request: ClientRequest): Promise<ClientAnswer> {
    const answer = this.answer(request.do === 'trips' ? request.count * 50 : 0);
    this.#child.send(request);
    return answer;
  }

  /** The next one; the first comes by itself, when the guests run. */
  async answer(extraMs = 0): Promise<ClientAnswer> {
    const { promise, resolve, reject } = Promise.withResolvers<ClientAnswer>();
    const fail = (): void => reject(new Error(`the guests ended: ${this.#log.text.trim()}`));
    const timer = setTimeout(() => {
      reject(new Error(`the guests do not answer: ${this.#log.text.trim()}`));
    }, START_TIMEOUT_MS + extraMs);
    this.#child.once('message', resolve).once('close', fail);
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
      this.#child.off('message', resolve).off('close', fail);
    }
  }

  async close(): Promise<void> {
    await endChild(this.#child);
  }
}
