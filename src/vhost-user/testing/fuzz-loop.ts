/** What the fuzzers of both sides have in common: iterations, seeds, and what must not be left. */
import { readdirSync, readFileSync } from 'node:fs';
import { reservedRanges } from '../../memory/index.ts';
import { fdTarget, openFdCount } from '../../sys/index.ts';
import { Random } from './random.ts';

export type FuzzOptions = {
  readonly seconds: number;
  readonly seed: number;
  /** Ends after so many, if not before. */
  readonly iterations?: number;
  /** Runs this iteration and no other. */
  readonly onlyIteration?: number;
  /** Called now and then: where a run is that does not come back. */
  readonly onProgress?: (iteration: number) => void;
};

export type Counts = Record<string, number>;

export function count(into: Counts, name: string): void {
  into[name] = (into[name] ?? 0) + 1;
}

/** Whoever has not ended so long after its peer closed is stuck. */
const STUCK_MS = 20_000;
const PROGRESS_MS = 60_000;
const PROBE_EVERY = 16;

/** @throws Error when `work` does not end: `what` says which. */
export async function within<T>(work: Promise<T>, what: string): Promise<T> {
  let timer: NodeJS.Timeout | null = null;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} within ${STUCK_MS} ms`)), STUCK_MS);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer!);
  }
}

type Held = { readonly fds: number; readonly ranges: number; readonly mappings: number };

/** What this process holds; mappings are those of memory that peers share. */
function held(): Held {
  const mappings = readFileSync('/proc/self/maps', 'utf8').split('/memfd:').length - 1;
  return { fds: openFdCount(), ranges: reservedRanges(), mappings };
}

/** What is open, by number. */
function openFds(): Map<string, string> {
  const names = new Map<string, string>();
  for (const number of readdirSync('/proc/self/fd')) {
    try {
      names.set(number, fdTarget(Number(number)));
    } catch {
      // the one that read the folder
    }
  }
  return names;
}

function newFds(before: ReadonlyMap<string, string>): string[] {
  return [...openFds()].flatMap(([number, name]) =>
    before.get(number) === name ? [] : [`${number} ${name}`],
  );
}

/**
 * Attacks until the time is over; an attack draws from its own random numbers alone. `probe` is
 * an ordinary session, which must work, now and then. Returns how many attacks there were.
 * @throws Error naming seed and iteration when something is wrong or left.
 */
export async function runFuzzer(
  options: FuzzOptions,
  attack: (random: Random) => Promise<void>,
  probe: () => Promise<void>,
): Promise<number> {
  const { seed, seconds, iterations = Infinity, onlyIteration, onProgress } = options;
  const end = performance.now() + seconds * 1000;
  let iteration = onlyIteration ?? 0;
  let progress = performance.now() + PROGRESS_MS;
  const where = (): string => `seed ${seed}, iteration ${iteration} (--only-iteration)`;
  const died = (error: unknown): void => void process.stderr.write(`${where()}: ${error}\n`);
  process.on('uncaughtExceptionMonitor', died);
  try {
    for (let i = 0; i < 3; i++) await probe(); // opens what the process keeps
    const before = held();
    const names = openFds();
    for (;;) {
      try {
        await attack(Random.ofIteration(seed, iteration));
        if (iteration % PROBE_EVERY === 0 || onlyIteration !== undefined) await probe();
        const after = held();
        for (const what of ['fds', 'ranges', 'mappings'] as const) {
          if (after[what] === before[what]) continue;
          const open = what === 'fds' ? `: ${newFds(names).join(', ')}` : '';
          throw new Error(`${what}: ${after[what]}, before it were ${before[what]}${open}`);
        }
      } catch (cause) {
        throw new Error(`${where()}: ${String(cause)}`, { cause });
      }
      iteration++;
      if (performance.now() > progress) {
        onProgress?.(iteration);
        progress += PROGRESS_MS;
      }
      const isLast = onlyIteration !== undefined || iteration >= iterations;
      if (isLast || performance.now() > end) break;
    }
  } finally {
    process.off('uncaughtExceptionMonitor', died);
  }
  return iteration - (onlyIteration ?? 0);
}
