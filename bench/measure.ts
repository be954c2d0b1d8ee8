/** One measured run: start a back-end, load it with testpmd, read both sides' counters. */
import { parseCycles, parseMegahertz, Testpmd, virtioUserVdev } from '../test/peers/dpdk.ts';
import { Scratch, sleep } from '../test/peers/scratch.ts';
import type { BackendKind } from './backends.ts';
import { snapshot, waitingShare } from './disturbance.ts';
import { BACKEND_CORE, CLIENT_CORE, CLIENT_MACS, type Run, type Scenario } from './scenario.ts';

/** Descriptors of every ring. */
const RING_SIZE = 1024;
/**
 * Frames that are always on their way, per port, in bursts of 32: half of a ring, so that a
 * batch finds work and a full ring drops nothing.
 */
const BURSTS_IN_FLIGHT = 16;
/** The load is restarted when a direction has lost its frames; more than this is a failed run. */
const LOAD_ATTEMPTS = 3;
const SETTLE_MS = 700;
/** Waiting for a core above this share makes a run useless. */
const MAX_WAITING_SHARE = 0.08;

export async function measure(
  kind: BackendKind,
  scenario: Scenario,
  seconds: number,
): Promise<Run> {
  await using scratch = new Scratch();
  const backend = scratch.own(await kind.start(scenario, scratch.folder));
  const client = scratch.own(await startClient(scenario, backend.sockets));
  const problem = await startLoad(client);
  await backend.startCounting();
  await client.command('clear fwd stats all');
  const pids = [client.pid, ...backend.pids];
  const before = await client.stats();
  const start = snapshot(pids);
  await sleep(seconds * 1000);
  const after = await client.stats();
  const end = snapshot(pids);
  const elapsed = (end.atMs - start.atMs) / 1000;
  const waiting = waitingShare(start, end);
  const backendNsPerFrame = await backend.nanosecondsPerFrame();
  const profile = kind.name === 'profiled' ? ((await backend.profile?.()) ?? null) : null;
  const forward = await client.stop();
  const cycles = parseCycles(forward);
  const megahertz = parseMegahertz(forward);
  const ppsPerPort = after.map((port, i) => (port.rxPackets - before[i]!.rxPackets) / elapsed);
  return {
    backend: kind.name,
    pps: ppsPerPort.reduce((a, b) => a + b, 0) / ppsPerPort.length,
    ppsPerPort,
    backendNsPerFrame,
    clientNsPerFrame: cycles === null || megahertz === null ? null : (cycles * 1000) / megahertz,
    waitingShare: waiting,
    profile,
    problem: problem ?? problemOf(ppsPerPort, waiting),
  };
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

/** Gets every direction to run; null, or what went wrong. */
async function startLoad(client: Testpmd): Promise<string | null> {
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
    if (after.every((port, i) => port.rxPackets > before[i]!.rxPackets)) return null;
    await client.stop();
  }
  await client.start(BURSTS_IN_FLIGHT);
  return `no traffic after ${LOAD_ATTEMPTS} attempts`;
}
