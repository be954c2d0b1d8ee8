/**
 * `npm run bench:scale -- --model`: more workers than this machine has cores, simulated from what
 * is measured here: a frame, a batch, a lock that nobody else wants and one that another thread
 * holds. First the simulation is held against two real threads that share a lock.
 *
 * A simulated worker takes up to 64 frames of a source queue, works on them (half of the time with
 * the destination's ring) and takes the next queue that has some. Guests send as much as so many
 * workers can forward if nothing is in their way, so what is seen is how much gets through.
 * *own*: every queue belongs to one worker, heaviest first to whoever has least, and has a receive
 * queue of its own at each destination: no locks. *shared*: every worker may take from every queue,
 * and both its source and its destination ring are behind fair locks, each for half of a batch.
 *
 * Left out: caches, memory and hardware threads that workers share, so every line is an upper
 * bound; guests that need processors themselves; the time until a new balance is found.
 */
import { fifthPercentile } from './cases.ts';
import { threads } from './scale-threads.ts';
import { World, xorshift32 } from './scale-world.ts';

const BATCH = 64;
const QUEUES = 32;
const RING_SIZE = 1024;
const SIMULATED_NS = 20e6;
const WORKERS = [1, 2, 3, 4, 6, 8];

export type Costs = {
  readonly frameNs: number;
  readonly batchNs: number;
  /** To take and give back a lock that nobody wants. */
  readonly lockNs: number;
  /** From one thread to the next that waits. */
  readonly passNs: number;
};

/** A fair lock in simulated time: who asks first has it first. */
class Lock {
  #freeAtNs = 0;

  /** When somebody who comes at `nowNs` and stays for `holdNs` is through. */
  pass(nowNs: number, holdNs: number, { lockNs, passNs }: Costs): number {
    const waits = this.#freeAtNs > nowNs;
    const from = waits ? this.#freeAtNs + passNs : nowNs + lockNs;
    this.#freeAtNs = from + holdNs;
    return this.#freeAtNs;
  }
}

type Simulated = { nowNs: number; readonly queues: readonly number[]; next: number };

/** Frames per microsecond that so many workers forward; `shares` are the queues' shares of load. */
export function simulate(
  costs: Costs,
  workers: number,
  shares: readonly number[],
  mode: 'own' | 'shared',
): number {
  const perNs = workers / (costs.frameNs + costs.batchNs / BATCH); // what they can do, if they can
  const taken = shares.map(() => 0);
  const lost = shares.map(() => 0);
  const sources = shares.map(() => new Lock());
  const targets = Array.from({ length: QUEUES }, () => new Lock());
  const random = xorshift32(workers);
  const all = shares.map((_, i) => i);
  const assigned = mode === 'own' ? balance(shares, workers) : all.map(() => all);
  const crew: Simulated[] = Array.from({ length: workers }, (_, w) => {
    return { nowNs: 0, queues: assigned[w] ?? all, next: w };
  });
  let forwarded = 0;
  for (;;) {
    const worker = crew.reduce((first, other) => (other.nowNs < first.nowNs ? other : first));
    if (worker.nowNs > SIMULATED_NS) return (forwarded / SIMULATED_NS) * 1000;
    if (worker.queues.length === 0) {
      worker.nowNs = Infinity;
      if (crew.every(({ nowNs }) => nowNs === Infinity)) return 0;
      continue;
    }
    const queue = worker.queues[worker.next++ % worker.queues.length]!;
    const arrived = worker.nowNs * perNs * shares[queue]! - taken[queue]! - lost[queue]!;
    if (arrived > RING_SIZE) lost[queue]! += arrived - RING_SIZE; // the guest waits
    const count = Math.min(BATCH, Math.trunc(arrived));
    if (count <= 0) {
      worker.nowNs += costs.batchNs / 4; // a look at an empty ring
      continue;
    }
    taken[queue]! += count;
    forwarded += count;
    const half = (costs.batchNs + count * costs.frameNs) / 2;
    if (mode === 'own') {
      worker.nowNs += 2 * half;
    } else {
      const read = sources[queue]!.pass(worker.nowNs, half, costs);
      worker.nowNs = targets[random(targets.length)]!.pass(read, half, costs);
    }
  }
}

/** Queues of each worker: the heaviest first, to whoever has least. */
function balance(shares: readonly number[], workers: number): number[][] {
  const loads = Array.from({ length: workers }, () => 0);
  const queues: number[][] = loads.map(() => []);
  const order = shares.map((_, i) => i).sort((a, b) => shares[b]! - shares[a]!);
  for (const queue of order) {
    const least = loads.indexOf(Math.min(...loads));
    loads[least]! += shares[queue]!;
    queues[least]!.push(queue);
  }
  return queues;
}

const SHAPES: Readonly<Record<string, readonly number[]>> = {
  even: normalized(Array.from({ length: QUEUES }, () => 1)),
  'one in i': normalized(Array.from({ length: QUEUES }, (_, i) => 1 / (i + 1))),
  'half on one': normalized(Array.from({ length: QUEUES }, (_, i) => (i === 0 ? QUEUES - 1 : 1))),
  'all on one': [1],
};

function normalized(weights: readonly number[]): number[] {
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => weight / sum);
}

/** A frame's and a batch's part, from batches of 64 and of 8 between pairs of ports. */
function measureWork(): Pick<Costs, 'frameNs' | 'batchNs'> {
  const sizes = [BATCH, 8];
  const worlds = sizes.map((batch) => new World(`${batch}`, { busy: 8, pattern: 'pair', batch }));
  for (let n = 0; n < 40; n++) for (const world of worlds) world.turn(4);
  for (const world of worlds) world.samples.length = 0;
  for (let n = 0; n < 60; n++) for (const world of worlds) world.turn(4);
  const [large, small] = worlds.map(({ samples }) => fifthPercentile(samples));
  for (const world of worlds) world.close();
  // Nanoseconds per frame are frameNs + batchNs / size.
  const batchNs = (small! - large!) / (1 / 8 - 1 / BATCH);
  return { frameNs: large! - batchNs / BATCH, batchNs };
}

/** What the model says of the same loop: each round outside, then through one lock. */
function predict(workers: number, outsideNs: number, insideNs: number, costs: Costs): number {
  const nows = Array.from({ length: workers }, () => 0);
  const lock = new Lock();
  const rounds = 200_000;
  for (let i = 0; i < rounds; i++) {
    const first = nows.indexOf(Math.min(...nows));
    nows[first] = lock.pass(nows[first]! + outsideNs, insideNs, costs);
  }
  return (rounds / Math.max(...nows)) * 1000;
}

/** `slower`: how much longer a thread takes while the other one works, without any lock. */
async function measureLocks(): Promise<{ costs: Costs; slower: number }> {
  const steps = 200;
  const alone = await threads(1, steps, 0);
  const two = await threads(2, steps, 0, false);
  const empty = await threads(1, 0, 0);
  const fought = await threads(2, 0, 0);
  const costs = { ...measureWork(), lockNs: 1000 / empty, passNs: 1000 / fought };
  return { costs, slower: (2 * alone) / two };
}

async function validate(costs: Costs): Promise<object[]> {
  const rows: object[] = [];
  console.log('\ntwo threads and a lock     rounds per us  simulated  ratio');
  for (const [outside, inside] of [
    [2000, 20],
    [1000, 200],
    [500, 500],
    [100, 1000],
  ] as const) {
    // What a step takes while another thread works, with a lock of its own.
    const pair = (await threads(2, outside, inside, false)) / 2;
    const stepNs = (1000 / pair - costs.lockNs) / (outside + inside);
    const measured = await threads(2, outside, inside);
    const simulated = predict(2, outside * stepNs, inside * stepNs, costs);
    const cells = [measured, simulated, simulated / measured].map((x) => x.toFixed(2).padStart(10));
    rows.push({ outside, inside, measured, simulated });
    console.log(`${outside} outside, ${inside} inside`.padEnd(24), cells.join(' '));
  }
  return rows;
}

/** Prints it all, and returns it. */
export async function model(): Promise<object> {
  const { costs, slower } = await measureLocks();
  const { frameNs, batchNs, lockNs, passNs } = costs;
  console.log(`a frame ${frameNs.toFixed(1)} ns, a batch ${batchNs.toFixed(0)} ns,`);
  console.log(`a lock ${lockNs.toFixed(0)} ns, one that is passed on ${passNs.toFixed(0)} ns;`);
  console.log(`a thread takes ${slower.toFixed(2)} times as long while the other core works`);
  const validated = await validate(costs);
  console.log(
    `\nmillion frames a second${WORKERS.map((n) => `${n}`.padStart(8)).join('')} workers`,
  );
  const simulated: object[] = [];
  for (const [shape, shares] of Object.entries(SHAPES)) {
    for (const mode of ['own', 'shared'] as const) {
      const rates = WORKERS.map((n) => simulate(costs, n, shares, mode));
      simulated.push({ shape, mode, workers: WORKERS, mpps: rates });
      const text = rates.map((rate) => rate.toFixed(1).padStart(8)).join('');
      console.log(`${`${shape}, ${mode}`.padEnd(23)}${text}`);
    }
  }
  return { costs, slower, validated, simulated };
}
