/**
 * A back-end under its load, of which windows are measured: start it, load it with testpmd, read
 * both sides' counters.
 *
 * Several stands are up at a time and take turns of less than a second: all processes of the others
 * are stopped (SIGSTOP) meanwhile, so that cores, caches and the place of the virtual cores are as
 * alike as they get. (With a start of all processes between two runs a pair lay 10 s apart, and
 * compared one state of the machine with another.)
 */
import { parseCycles, parseMegahertz, Testpmd, virtioUserVdev } from '../test/peers/dpdk.ts';
import { Scratch, sleep } from '../test/peers/scratch.ts';
import type { Backend, BackendKind } from './backends.ts';
import { snapshot, waitingShare } from './disturbance.ts';
import { coreToCoreNs, placementBetween } from './placement.ts';
import { BACKEND_CORE, CLIENT_CORE, CLIENT_MACS, type Run, type Scenario } from './scenario.ts';

/** Descriptors of every ring. */
const RING_SIZE = 1024;
/**
 * Frames that are always on their way, per port, in bursts of 32: half of a ring, so that a
 * batch finds work and a full ring drops nothing.
 */
const BURSTS_IN_FLIGHT = 16;
/** The load is restarted when a direction has lost its frames. */
const LOAD_ATTEMPTS = 6;
const SETTLE_MS = 700;
/** After a stop: caches are warm and rings in their state again. */
const WARM_MS = 60;
/** Waiting for a core above this share makes a run useless. */
const MAX_WAITING_SHARE = 0.08;

// What is stopped hears no signal of the terminal: it is killed when we exit.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));

export class Stand {
  readonly kind: BackendKind;
  readonly #scratch: Scratch;
  readonly #backend: Backend;
  readonly #client: Testpmd;

  private constructor(kind: BackendKind, scratch: Scratch, backend: Backend, client: Testpmd) {
    this.kind = kind;
    this.#scratch = scratch;
    this.#backend = backend;
    this.#client = client;
  }

  /** Starts it and its load, and stops all of it until `run`. */
  static async start(kind: BackendKind, scenario: Scenario): Promise<Stand> {
    const scratch = new Scratch();
    try {
      const backend = scratch.own(await kind.start(scenario, scratch.folder));
      const client = scratch.own(await startClient(scenario, backend.sockets));
      await startLoad(client);
      const stand = new Stand(kind, scratch, backend, client);
      stand.#signal('SIGSTOP');
      return stand;
    } catch (error) {
      await scratch[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** One window: everything goes on, is measured, and is stopped again. */
  async run(seconds: number): Promise<Run> {
    const cores = [BACKEND_CORE, CLIENT_CORE] as const;
    const lineBefore = await coreToCoreNs(cores);
    this.#signal('SIGCONT');
    const run = await this.#measure(seconds).finally(() => this.#signal('SIGSTOP'));
    const coreToCore = [lineBefore, await coreToCoreNs(cores)] as const;
    const placement = placementBetween(...coreToCore);
    const moved = placement === null ? 'the virtual cores were moved meanwhile' : null;
    return { ...run, coreToCoreNs: coreToCore, placement, problem: run.problem ?? moved };
  }

  /** Where the time of a profiled back-end went; it goes on from now on. */
  async profile(): Promise<string> {
    this.#signal('SIGCONT');
    return (await this.#backend.profile?.()) ?? 'this back-end has no profile';
  }

  async close(): Promise<void> {
    this.#signal('SIGCONT');
    await this.#scratch[Symbol.asyncDispose]();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #measure(seconds: number): Promise<Omit<Run, 'coreToCoreNs' | 'placement'>> {
    const client = this.#client;
    const backend = this.#backend;
    await sleep(WARM_MS);
    await backend.startCounting();
    await client.command('clear fwd stats all');
    const pids = this.#pids();
    const before = await client.stats();
    const start = snapshot(pids);
    await sleep(seconds * 1000);
    const after = await client.stats();
    const end = snapshot(pids);
    const elapsed = (end.atMs - start.atMs) / 1000;
    const waiting = waitingShare(start, end);
    const backendNsPerFrame = await backend.nanosecondsPerFrame();
    const forward = await client.command('show fwd stats all');
    const cycles = parseCycles(forward);
    const megahertz = parseMegahertz(forward);
    const ppsPerPort = after.map((port, i) => (port.rxPackets - before[i]!.rxPackets) / elapsed);
    return {
      backend: this.kind.name,
      pps: ppsPerPort.reduce((a, b) => a + b, 0) / ppsPerPort.length,
      ppsPerPort,
      backendNsPerFrame,
      clientNsPerFrame: cycles === null || megahertz === null ? null : (cycles * 1000) / megahertz,
      waitingShare: waiting,
      problem: problemOf(ppsPerPort, waiting),
    };
  }

  #pids(): number[] {
    return [this.#client.pid, ...this.#backend.pids];
  }

  #signal(name: 'SIGSTOP' | 'SIGCONT'): void {
    for (const pid of this.#pids()) {
      try {
        process.kill(pid, name);
      } catch {
        continue; // it has ended, which its own calls tell
      }
    }
  }
}

function problemOf(ppsPerPort: readonly number[], waiting: number): string | null {
  if (ppsPerPort.some((pps) => pps < 1)) return 'a direction stood still';
  if (waiting <= MAX_WAITING_SHARE) return null;
  return `disturbed: a polling thread waited ${(waiting * 100).toFixed(0)} % of the time`;
}

/**
 * The same client for every back-end: DPDK's virtio driver in testpmd. `io` forwarding with two
 * ports moves what one receives to the other, so frames run in circles client, port, back-end,
 * other port, and each keeps the source address of the port that it is sent from.
 */
async function startClient(scenario: Scenario, sockets: readonly string[]): Promise<Testpmd> {
  const vdevs = sockets.map((path, index) =>
    virtioUserVdev(index, {
      path,
      queueSize: RING_SIZE,
      packed: scenario.ring === 'packed',
      mac: CLIENT_MACS[index] as string,
    }),
  );
  const args = [`--txpkts=${scenario.frameBytes}`];
  if (scenario.topology === 'pair') {
    args.push(`--eth-peer=0,${CLIENT_MACS[1]}`, `--eth-peer=1,${CLIENT_MACS[0]}`);
  }
  const client = await Testpmd.start({
    vdevs,
    mainCore: BACKEND_CORE,
    workerCores: [CLIENT_CORE],
    descriptors: RING_SIZE,
    mbufs: 16_384,
    args,
  });
  await client.command('set record-core-cycles on');
  return client;
}

/**
 * Gets every direction to run.
 * @throws Error when one stands still after LOAD_ATTEMPTS.
 */
async function startLoad(client: Testpmd): Promise<void> {
  // One burst first: a learning switch drops or floods until it knows both addresses.
  await client.start(1);
  await sleep(SETTLE_MS);
  await client.stop();
  for (let attempt = 0; attempt < LOAD_ATTEMPTS; attempt++) {
    await client.start(BURSTS_IN_FLIGHT);
    await sleep(SETTLE_MS);
    const before = await client.stats();
    await sleep(100);
    const after = await client.stats();
    if (after.every((port, i) => port.rxPackets > before[i]!.rxPackets)) return;
    await client.stop();
  }
  throw new Error(`no traffic after ${LOAD_ATTEMPTS} attempts`);
}
