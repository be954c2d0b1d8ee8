/**
 * One measured run of an uplink: a back-end reflects what testpmd's `flowgen` sends over a veth
 * pair. The back-end has core 0; the client at the far end core 1, over DPDK's AF_PACKET driver
 * for all of them, sends as fast as it can and counts what comes back. Half of the kernel's work
 * for a frame (the receiving side of veth) is done by whoever sends it: the client's core has as
 * much as the other.
 */
import { messageOf } from '../src/base/errors.ts';
import { parseCycles, parseMegahertz, Testpmd } from '../test/peers/dpdk.ts';
import { NetNamespace } from '../test/peers/netns.ts';
import { Scratch, sleep } from '../test/peers/scratch.ts';
import { SwitchProcess } from '../test/peers/switch.ts';
import { VethPair } from '../test/peers/veth.ts';
import { busiestRunNs, snapshot, waitingShare } from './disturbance.ts';
import { BACKEND_CORE, CLIENT_CORE } from './scenario.ts';
import { summarize } from './statistics.ts';

/** Waiting for a core above this share makes a run useless. */
const MAX_WAITING_SHARE = 0.08;
const SETTLE_MS = 1500;

type Reflector = {
  readonly pid: number;
  startCounting(): Promise<void>;
  /** Of its own loop, system calls and all. */
  nanosecondsPerFrame(): Promise<number | null>;
  close(): Promise<unknown>;
};

export type UplinkKind = {
  readonly name: string;
  start(host: NetNamespace, scratch: Scratch): Promise<Reflector>;
};

export const UPLINK_KINDS: readonly UplinkKind[] = [
  { name: 'vring-xdp', start: (host, scratch) => startVring('xdp', host, scratch) },
  { name: 'dpdk-xdp', start: (host) => startDpdk('net_af_xdp0,iface=up0', host) },
  { name: 'vring-packet', start: (host, scratch) => startVring('packet', host, scratch) },
  { name: 'dpdk-packet', start: (host) => startDpdk('net_af_packet0,iface=up0', host) },
];

async function startVring(kind: string, host: NetNamespace, scratch: Scratch): Promise<Reflector> {
  const vswitch = await SwitchProcess.start({
    ports: [`up=${kind}:up0,reflect`],
    control: scratch.path('control'),
    core: BACKEND_CORE,
    netns: host.name,
  });
  const figures = async () => {
    const [[worker], { counters }] = await Promise.all([vswitch.workers(), vswitch.port('up')]);
    const { busyMs = 0 } = worker as { busyMs?: number };
    return { busyMs, frames: counters['rxFrames'] ?? 0 };
  };
  let before = { busyMs: 0, frames: 0 };
  return {
    pid: vswitch.pid,
    async startCounting() {
      before = await figures();
    },
    async nanosecondsPerFrame() {
      const now = await figures();
      return ((now.busyMs - before.busyMs) * 1e6) / (now.frames - before.frames);
    },
    close: () => vswitch.close(),
  };
}

async function startDpdk(vdev: string, host: NetNamespace): Promise<Reflector> {
  const testpmd = await Testpmd.start({
    vdevs: [vdev],
    mainCore: BACKEND_CORE,
    workerCores: [BACKEND_CORE],
    descriptors: 1024,
    mbufs: 16_384,
    netns: host.name,
  });
  await testpmd.command('set record-core-cycles on');
  await testpmd.start();
  return {
    pid: testpmd.pid,
    async startCounting() {
      await testpmd.command('clear fwd stats all');
    },
    async nanosecondsPerFrame() {
      const text = await testpmd.command('show fwd stats all');
      const cycles = parseCycles(text);
      const megahertz = parseMegahertz(text);
      return cycles === null || megahertz === null ? null : (cycles * 1000) / megahertz;
    },
    close: () => testpmd.close(),
  };
}

export type UplinkRun = {
  readonly backend: string;
  /** Frames per second that came back, and that were sent. */
  readonly pps: number;
  readonly offeredPps: number;
  readonly backendNsPerFrame: number | null;
  /** Processor time of its busiest thread per frame that came back, however it was disturbed. */
  readonly cpuNsPerFrame: number;
  readonly problem: string | null;
};

async function measure(kind: UplinkKind, frameBytes: number, seconds: number): Promise<UplinkRun> {
  await using scratch = new Scratch();
  const host = scratch.own(await NetNamespace.create());
  const { far } = scratch.own(await VethPair.create(host));
  const reflector = scratch.own(await kind.start(host, scratch));
  const client = await Testpmd.start({
    vdevs: ['net_af_packet0,iface=far0,qdisc_bypass=1'],
    mainCore: BACKEND_CORE,
    workerCores: [CLIENT_CORE],
    forwardMode: 'flowgen',
    descriptors: 1024,
    mbufs: 16_384,
    netns: far.name,
    args: [`--txpkts=${frameBytes}`],
  });
  scratch.own(client);
  await client.start();
  await sleep(SETTLE_MS);
  await reflector.startCounting();
  const [before] = await client.stats();
  const pids = [client.pid, reflector.pid];
  const start = snapshot(pids);
  const ownStart = snapshot([reflector.pid]);
  await sleep(seconds * 1000);
  const [after] = await client.stats();
  const end = snapshot(pids);
  const ownEnd = snapshot([reflector.pid]);
  const elapsed = (end.atMs - start.atMs) / 1000;
  const backendNsPerFrame = await reflector.nanosecondsPerFrame();
  const pps = (after!.rxPackets - before!.rxPackets) / elapsed;
  const waiting = waitingShare(start, end);
  const disturbed = `disturbed: a thread waited ${(waiting * 100).toFixed(0)} % of the time`;
  const lame = pps < 1 ? 'nothing came back' : null;
  return {
    backend: kind.name,
    pps,
    offeredPps: (after!.txPackets - before!.txPackets) / elapsed,
    backendNsPerFrame,
    cpuNsPerFrame: busiestRunNs(ownStart, ownEnd) / (pps * elapsed),
    problem: lame ?? (waiting > MAX_WAITING_SHARE ? disturbed : null),
  };
}

/** A run that fails is said aloud and tried once more; it never ends the bench. */
export async function attemptUplink(
  kind: UplinkKind,
  frameBytes: number,
  seconds: number,
): Promise<UplinkRun> {
  const failed = {
    backend: kind.name,
    pps: 0,
    offeredPps: 0,
    backendNsPerFrame: null,
    cpuNsPerFrame: NaN,
  };
  for (let tries = 0; ; tries++) {
    const run = await measure(kind, frameBytes, seconds).catch((error: unknown): UplinkRun => ({
      ...failed,
      problem: messageOf(error),
    }));
    if (run.problem === null) return run;
    console.error(`${kind.name}: ${run.problem}`);
    if (tries === 1) return run;
  }
}

/** Only rounds where both runs count; null: there is none. */
export function compareUplinks(rounds: readonly UplinkRun[][], subject: string, rival: string) {
  const pairs = rounds.flatMap((round) => {
    const good = (name: string) => round.find((r) => r.backend === name && r.problem === null);
    const [ours, theirs] = [good(subject), good(rival)];
    return ours === undefined || theirs === undefined ? [] : [[ours, theirs] as const];
  });
  if (pairs.length === 0) return null;
  const ratio = summarize(pairs.map(([ours, theirs]) => ours.pps / theirs.pps));
  const loops = pairs
    .map(([ours, theirs]) => (theirs.backendNsPerFrame ?? NaN) / (ours.backendNsPerFrame ?? NaN))
    .filter(Number.isFinite);
  return { subject, rival, ratio, loopRatio: loops.length === 0 ? null : summarize(loops) };
}
