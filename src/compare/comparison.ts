/**
 * Runs the workload over every path that this machine offers, the rounds of all paths interleaved,
 * and gathers what was measured.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { messageOf, VringError } from '../base/errors.ts';
import { childExit, OutputTail, startChild } from '../vmm/index.ts';
import { type Figures, spread, type Spread } from './figures.ts';
import { describeMachine, type Machine } from './machine.ts';
import type { ComparedPath, PathDescription, PathId } from './path.ts';
import type { ProbeOrder } from './probe.ts';
import { TapLoop, whyNoTapLoop } from './tap-loop.ts';

export type CompareOptions = {
  readonly paths: readonly ComparedPath[];
  readonly rounds: number;
  readonly sizes: readonly number[];
  readonly seconds: number;
  /** Frames under way. */
  readonly window: number;
  readonly trips: number;
  /** What is being done now, for people who wait. */
  readonly onProgress: (text: string) => void;
  readonly signal?: AbortSignal;
};

export type SizeSummary = {
  readonly sizeBytes: number;
  readonly framesPerSecond: Spread;
  readonly gbitPerSecond: Spread;
  /** Of guest and device together, where the device runs in a thread that can be told apart. */
  readonly cpuNsPerFrame: Spread;
  readonly deviceCpuNsPerFrame: Spread | null;
  readonly wakeupsPerFrame: Spread;
  readonly systemCallsPerFrame: Spread | null;
  readonly sent: number;
  readonly lost: number;
  readonly corrupt: number;
};

export type PathSummary = {
  readonly sizes: readonly SizeSummary[];
  readonly roundTripUs: Spread;
  readonly roundTripP99Us: Spread;
};

export type PathResult = {
  readonly id: PathId;
  readonly description: PathDescription;
  readonly exception: string | null;
  /** What this machine lacks; then nothing was measured. */
  readonly missing: string | null;
  /** Why it failed although nothing is missing. */
  readonly failure: string | null;
  readonly rounds: readonly Figures[];
  readonly summary: PathSummary | null;
};

export type Comparison = {
  readonly machine: Machine;
  readonly takenAt: string;
  readonly rounds: number;
  readonly seconds: number;
  readonly window: number;
  readonly paths: readonly PathResult[];
};

/** Longest that one round may take beyond what it measures. */
const ROUND_GRACE_MS = 120_000;

export async function compare(options: CompareOptions): Promise<Comparison> {
  const noLoop = whyNoTapLoop();
  const missing = new Map<PathId, string | null>();
  for (const path of options.paths) {
    missing.set(path.id, (await path.why()) ?? (path.exception === null ? noLoop : null));
  }
  const rounds = new Map<PathId, Figures[]>();
  const failures = new Map<PathId, string>();
  for (let round = 1; round <= options.rounds; round++) {
    for (const path of options.paths) {
      if (missing.get(path.id) !== null || failures.has(path.id)) continue;
      if (options.signal?.aborted === true) break;
      options.onProgress(`${path.description.name}, round ${round} of ${options.rounds}`);
      try {
        const figures = await runRound(path, options);
        rounds.set(path.id, [...(rounds.get(path.id) ?? []), figures]);
      } catch (error) {
        failures.set(path.id, messageOf(error));
      }
    }
  }
  return {
    machine: describeMachine(),
    takenAt: new Date().toISOString(),
    rounds: options.rounds,
    seconds: options.seconds,
    window: options.window,
    paths: options.paths.map((path) => {
      const done = rounds.get(path.id) ?? [];
      return {
        id: path.id,
        description: path.description,
        exception: path.exception,
        missing: missing.get(path.id) ?? null,
        failure: failures.get(path.id) ?? null,
        rounds: done,
        summary: done.length === 0 ? null : summarize(done),
      };
    }),
  };
}

async function runRound(path: ComparedPath, options: CompareOptions): Promise<Figures> {
  const folder = mkdtempSync(join(tmpdir(), 'vring-compare-'));
  const tap = path.exception === null ? new TapLoop(`vrcmp${process.pid % 1_000_000}`) : null;
  try {
    const open = await path.open(tap?.name ?? '', folder);
    try {
      const { backend, devicePids } = open;
      const { sizes, seconds, window, trips } = options;
      return await probe({ backend, devicePids, sizes, seconds, window, trips }, options.signal);
    } finally {
      await open.close();
    }
  } finally {
    tap?.close();
    rmSync(folder, { recursive: true, force: true });
  }
}

async function probe(order: ProbeOrder, signal?: AbortSignal): Promise<Figures> {
  const file = import.meta.url.endsWith('.ts') ? './probe.ts' : './probe.js';
  const program = fileURLToPath(new URL(file, import.meta.url));
  const child = startChild(process.execPath, [program, JSON.stringify(order)], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const messages = new OutputTail(4096);
  let output = '';
  child.stdout?.setEncoding('utf8').on('data', (text: string) => (output += text));
  child.stderr?.setEncoding('utf8').on('data', (text: string) => messages.append(text));
  const closed = new Promise<void>((resolve) => child.once('close', () => resolve()));
  const kill = (): void => void child.kill('SIGKILL');
  const timer = setTimeout(kill, order.sizes.length * order.seconds * 1000 + ROUND_GRACE_MS);
  signal?.addEventListener('abort', kill);
  const { code } = await childExit(child);
  await closed;
  clearTimeout(timer);
  signal?.removeEventListener('abort', kill);
  if (code === 0) return JSON.parse(output) as Figures;
  const said = messages.text.trim() || `ended with ${code ?? 'a signal'} and said nothing`;
  throw new VringError('ERR_VRING_COMPARE', said);
}

function summarize(rounds: readonly Figures[]): PathSummary {
  const sizes = rounds[0]!.loops.map(({ sizeBytes }, i): SizeSummary => {
    const loops = rounds.map((round) => round.loops[i]!);
    const sum = (of: (loop: (typeof loops)[0]) => number): number =>
      loops.reduce((total, each) => total + of(each), 0);
    const orNull = (values: readonly (number | null)[]): Spread | null =>
      values.every((value) => value !== null) ? spread(values as number[]) : null;
    return {
      sizeBytes,
      framesPerSecond: spread(loops.map((each) => each.framesPerSecond)),
      gbitPerSecond: spread(loops.map((each) => (each.framesPerSecond * sizeBytes * 8) / 1e9)),
      cpuNsPerFrame: spread(loops.map((each) => each.guestCpuNs + (each.deviceCpuNs ?? 0))),
      deviceCpuNsPerFrame: orNull(loops.map((each) => each.deviceCpuNs)),
      wakeupsPerFrame: spread(loops.map((each) => each.wakeupsPerFrame)),
      systemCallsPerFrame: orNull(loops.map((each) => each.systemCallsPerFrame)),
      sent: sum((each) => each.sent),
      lost: sum((each) => each.lost),
      corrupt: sum((each) => each.corrupt),
    };
  });
  return {
    sizes,
    roundTripUs: spread(rounds.map((round) => round.roundTrip.medianUs)),
    roundTripP99Us: spread(rounds.map((round) => round.roundTrip.p99Us)),
  };
}
