/**
 * A back-end with two ports and the two guests behind them (round-trip-client.ts), of which windows
 * are measured: at rest, and round trips of a probe beside a load.
 *
 * Several stands are up at a time and take turns, as in bench/stand.ts: the processes of the others
 * are stopped (SIGSTOP). What was due meanwhile is done when they go on: timers of seconds, and
 * what the collector puts off, lie before a window and not in it.
 */
import type { ChildProcess } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { messageOf } from '../src/base/errors.ts';
import { percentile } from '../src/compare/figures.ts';
import { endChild, OutputTail, startChild } from '../src/vmm/index.ts';
import { Scratch, sleep } from '../test/peers/scratch.ts';
import type { Backend, BackendKind } from './backends.ts';
import { coreToCoreNs, placementBetween, type Placement } from './placement.ts';
import type { ClientAnswer, ClientOrder, ClientRequest } from './round-trip-client.ts';
import { countingRuns } from './round-trip-report.ts';
import { BACKEND_CORE, CLIENT_CORE, type Scenario } from './scenario.ts';

export type Load = {
  readonly name: string;
  /** Frames from the first guest to the second, beside the probes; null: as many as go. */
  readonly framesPerSecond: number | null;
  /** Most of them that are under way: a probe waits behind so many where as many go as go. */
  readonly window: number;
};

export const IDLE: Load = { name: 'idle', framesPerSecond: 0, window: 0 };

export type RoundTripRun = {
  readonly backend: string;
  readonly load: string;
  readonly trips: number;
  readonly p50Us: number;
  readonly p90Us: number;
  readonly p99Us: number;
  readonly framesPerSecond: number;
  /** Of one core, all threads of the back-end: beside the load, or, idle, while nothing is sent. */
  readonly cpuShare: number;
  /** Of one core, for 10,000 frames a second: of the time in which frames were sent. */
  readonly cpuShareOf10k: number;
  /** Per 10,000 frames: times that a thread of the back-end slept; calls to drivers; kicks. */
  readonly sleepsOf10k: number;
  readonly callsOf10k: number;
  readonly kicksOf10k: number;
  /** Threads that ran while nothing was sent; '' beside a load. */
  readonly atRest: string;
  readonly placement: Placement | null;
  /** Why a run does not count, or null. */
  readonly problem: string | null;
};

/** Until everybody who looks for work has gone to sleep; Open vSwitch gets there slowly. */
const SETTLE_MS = 300;
const REST_MS = 1500;
/** Caches are warm and what was stopped is awake; trips that nobody counts. */
const WARM_MS = 150;
/** Until both sides' code is compiled. */
const COMPILE_MS = 500;
/** Frames are rare: no policy polls for so long. */
const IDLE_GAP_MS = 3;
const LOAD_GAP_MS = 0.7;
const START_TIMEOUT_MS = 15_000;
/** Waiting for a core above this share makes a run useless. */
const MAX_WAITING_SHARE = 0.05;
/** A window that does not count is repeated so often: a busy machine gets no longer runs. */
const REPEATS = 1;

// What is stopped hears no signal of the terminal: it is killed when we exit.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));

export class RoundTripStand {
  readonly kind: BackendKind;
  readonly #scratch: Scratch;
  readonly #backend: Backend;
  readonly #client: Client;

  private constructor(kind: BackendKind, scratch: Scratch, backend: Backend, client: Client) {
    this.kind = kind;
    this.#scratch = scratch;
    this.#backend = backend;
    this.#client = client;
  }

  /** Starts it, lets it compile what `loads` need, and stops all of it until `run`. */
  static async start(
    kind: BackendKind,
    ring: Scenario['ring'],
    loads: readonly Load[],
  ): Promise<RoundTripStand> {
    const scratch = new Scratch();
    try {
      const scenario: Scenario = { topology: 'pair', ring, frameBytes: 64 };
      const backend = scratch.own(await kind.start(scenario, scratch.folder));
      const { sockets, pids } = backend;
      const client = scratch.own(new Client({ sockets, pids, packed: ring === 'packed' }));
      await client.answer();
      for (const load of loads) await client.ask(tripsOf(load, COMPILE_MS));
      const stand = new RoundTripStand(kind, scratch, backend, client);
      stand.#signal('SIGSTOP');
      return stand;
    } catch (error) {
      await scratch[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** One window, and its repetitions where it does not count: all of them, the last one counts. */
  async run(load: Load, ms: number): Promise<RoundTripRun[]> {
    const runs: RoundTripRun[] = [];
    while (runs.length <= REPEATS) {
      const run = await this.#window(load, ms);
      runs.push(run);
      if (run.problem === null) break;
    }
    return runs;
  }

  async close(): Promise<void> {
    this.#signal('SIGCONT');
    await this.#scratch[Symbol.asyncDispose]();
  }

  async #window(load: Load, ms: number): Promise<RoundTripRun> {
    const cores = [BACKEND_CORE, CLIENT_CORE] as const;
    const before = await coreToCoreNs(cores);
    this.#signal('SIGCONT');
    const run = await this.#measure(load, ms).finally(() => this.#signal('SIGSTOP'));
    const placement = placementBetween(before, await coreToCoreNs(cores));
    const moved =
      placement === null ? 'moved: the virtual cores were put elsewhere meanwhile' : null;
    return { ...run, placement, problem: run.problem ?? moved };
  }

  async #measure(load: Load, ms: number): Promise<Omit<RoundTripRun, 'placement'>> {
    await this.#client.ask(tripsOf(load, WARM_MS));
    const rest = load.framesPerSecond === 0 ? await this.#rest() : null;
    const answer = await this.#client.ask(tripsOf(load, ms));
    const sorted = [...answer.tripsUs].sort((a, b) => a - b);
    const { framesPerSecond, cpuShare, sleeps, calls, kicks } = answer;
    const of10k = (perSecond: number): number => (perSecond * 10_000) / framesPerSecond;
    return {
      backend: this.kind.name,
      load: load.name,
      trips: sorted.length,
      p50Us: percentile(sorted, 0.5),
      p90Us: percentile(sorted, 0.9),
      p99Us: percentile(sorted, 0.99),
      framesPerSecond,
      cpuShare: rest?.cpuShare ?? cpuShare,
      cpuShareOf10k: of10k(cpuShare),
      sleepsOf10k: of10k(sleeps),
      callsOf10k: of10k(calls),
      kicksOf10k: of10k(kicks),
      atRest: rest?.threads ?? '',
      problem: problemOf(load, answer, Math.max(answer.waitingShare, rest?.waitingShare ?? 0)),
    };
  }

  async #rest(): Promise<ClientAnswer> {
    await sleep(SETTLE_MS);
    return await this.#client.ask({ do: 'rest', ms: REST_MS });
  }

  #signal(name: 'SIGSTOP' | 'SIGCONT'): void {
    for (const pid of [this.#client.pid, ...this.#backend.pids]) {
      try {
        process.kill(pid, name);
      } catch {
        continue; // it has ended, which its own calls tell
      }
    }
  }
}

/** How much is measured. */
export type RoundTripPlan = {
  /** Windows that count, of each back-end with each load. */
  readonly count: number;
  readonly ms: number;
  readonly ring: Scenario['ring'];
  /** No round is begun after so long, whatever counts. */
  readonly endMs: number;
};

/**
 * Rounds in which each back-end has a turn with each load, until enough of them count. A back-end
 * that does not start, or fails, is said aloud and has no runs; it never ends the bench.
 */
export async function measureRoundTrips(
  kinds: readonly BackendKind[],
  loads: readonly Load[],
  { count, ms, ring, endMs }: RoundTripPlan,
): Promise<RoundTripRun[][]> {
  const startMs = performance.now();
  const rounds: RoundTripRun[][] = [];
  const stands: RoundTripStand[] = [];
  const say = ({ name }: BackendKind, error: unknown): void => {
    console.error(`${name}: ${messageOf(error)}`);
  };
  const isEnough = ({ kind }: RoundTripStand, load: Load): boolean => {
    const good = countingRuns(rounds)
      .flat()
      .filter((run) => run.backend === kind.name && run.load === load.name);
    return good.length >= count;
  };
  try {
    for (const kind of kinds) {
      const stand = await RoundTripStand.start(kind, ring, loads).catch((e) => say(kind, e));
      if (stand) stands.push(stand);
    }
    while (performance.now() - startMs < endMs) {
      const runs: RoundTripRun[] = [];
      for (const load of loads) {
        if (stands.every((stand) => isEnough(stand, load))) continue;
        for (const stand of rounds.length % 2 === 0 ? stands : stands.toReversed()) {
          runs.push(...((await stand.run(load, ms).catch((e) => say(stand.kind, e))) ?? []));
        }
      }
      if (runs.length === 0) break;
      rounds.push(runs);
    }
  } finally {
    for (const stand of stands.toReversed()) await stand.close();
  }
  return rounds;
}

function tripsOf({ framesPerSecond, window }: Load, ms: number): ClientRequest {
  const gapMs = framesPerSecond === 0 ? IDLE_GAP_MS : LOAD_GAP_MS;
  return { do: 'trips', ms, framesPerSecond, window, gapMs };
}

function problemOf(load: Load, answer: ClientAnswer, waiting: number): string | null {
  const { framesPerSecond, tripsUs } = answer;
  if (tripsUs.length === 0) return 'lost: no probe came back';
  const wanted = load.framesPerSecond ?? 0;
  if (framesPerSecond < 0.9 * wanted) {
    return `lost: only ${framesPerSecond.toFixed(0)} of ${wanted} frames a second arrived`;
  }
  if (waiting <= MAX_WAITING_SHARE) return null;
  return `disturbed: threads waited for their cores ${(waiting * 100).toFixed(1)} % of the time`;
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
    const answer = this.answer(request.ms);
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
