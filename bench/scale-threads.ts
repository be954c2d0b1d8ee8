/**
 * What a fair lock between threads really costs: each thread works outside, takes a ticket, waits
 * for its turn, works inside.
 */
import { once } from 'node:events';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';

const SERVING = 1; //      behind the next ticket: the cells of a ticket lock
const LOCK_CELLS = 32; //  no two locks in one line
const START = 64; //       how many threads have not begun, negative
const CELLS = 65;
const SPINS = 500; //      rounds before a thread looks at the clock
const MEASURED_MS = 150;
const RUNS = 5;

type Loop = {
  readonly cells: Int32Array;
  readonly lockAt: number;
  readonly outside: number;
  readonly inside: number;
};

/** One thread: works outside, takes the lock, works inside. Returns rounds per microsecond. */
function runLoop({ cells, lockAt, outside, inside }: Loop): number {
  Atomics.add(cells, START, 1);
  while (Atomics.load(cells, START) < 0) continue;
  let rounds = 0;
  const from = performance.now();
  while (performance.now() - from < MEASURED_MS) {
    for (let i = 0; i < SPINS; i++) {
      work(outside);
      const ticket = Atomics.add(cells, lockAt, 1);
      while (Atomics.load(cells, lockAt + SERVING) !== ticket) continue;
      work(inside);
      Atomics.add(cells, lockAt + SERVING, 1);
    }
    rounds += SPINS;
  }
  return rounds / (performance.now() - from) / 1000;
}

let sink = 1;
/** Some arithmetic that no compiler leaves out. */
function work(steps: number): void {
  for (let i = 0; i < steps; i++) sink = (Math.imul(sink, 0x9e3779b1) ^ i) | 0;
}

/**
 * Rounds per microsecond of all threads together, the best of some runs: a thread that has to wait
 * for its processor holds up whoever waits for its lock. `shared`: one lock for all.
 */
export async function threads(
  count: number,
  outside: number,
  inside: number,
  shared = true,
): Promise<number> {
  const runs: number[] = [];
  for (let n = 0; n < RUNS; n++) runs.push(await runThreads(count, outside, inside, shared));
  return Math.max(...runs);
}

async function runThreads(
  count: number,
  outside: number,
  inside: number,
  shared: boolean,
): Promise<number> {
  const cells = new Int32Array(new SharedArrayBuffer(4 * CELLS));
  cells[START] = -count;
  const done = Array.from({ length: count }, async (_, i) => {
    const loop: Loop = { cells, lockAt: shared ? 0 : i * LOCK_CELLS, outside, inside };
    const worker = new Worker(new URL(import.meta.url), { workerData: loop });
    const [rate] = await once(worker, 'message');
    return rate as number;
  });
  return (await Promise.all(done)).reduce((a, b) => a + b, 0);
}

if (!isMainThread && parentPort !== null) {
  const loop = workerData as Loop;
  work(1000);
  parentPort.postMessage(runLoop(loop));
}
