/**
 * The back-ends that are compared. Each gives one or two vhost-user sockets, keeps to its core,
 * and says what a frame costs it by its own counters.
 */
import { vhostVdev, Testpmd, parseCycles, parseMegahertz } from '../test/peers/dpdk.ts';
import { OvsDpdk } from '../test/peers/ovs.ts';
import { SwitchProcess } from '../test/peers/switch.ts';
import { PROFILE_ARGUMENTS, takeProfile } from './profile.ts';
import { BACKEND_CORE, type Scenario, type Topology } from './scenario.ts';

export type Backend = {
  /** One per port of the client. */
  readonly sockets: readonly string[];
  /** Its processes, for finding out whether it was disturbed. */
  readonly pids: readonly number[];
  /** Called when the load runs steadily: from here on its counters count. */
  startCounting(): Promise<void>;
  /** Nanoseconds of its own loop per frame since then; null when it cannot say. */
  nanosecondsPerFrame(): Promise<number | null>;
  /** Where its time went, as text; only of a profiled one. */
  profile?(): Promise<string>;
  close(): Promise<unknown>;
};

export type BackendKind = {
  readonly name: string;
  readonly topologies: readonly Topology[];
  isInstalled(): boolean;
  start(scenario: Scenario, folder: string): Promise<Backend>;
};

function portNames(scenario: Scenario): string[] {
  return scenario.topology === 'loop' ? ['p0'] : ['p0', 'p1'];
}

/** Our switch: one reflecting port, or two ports between which it learns addresses. */
export const VRING: BackendKind = {
  name: 'vring',
  topologies: ['loop', 'pair'],
  isInstalled: () => true,
  start: (scenario, folder) => startVring(scenario, folder),
};

/** The same under V8's profiler, which slows it down: its rates are not compared. */
export const VRING_PROFILED: BackendKind = {
  name: 'profiled',
  topologies: ['loop', 'pair'],
  isInstalled: () => true,
  start: (scenario, folder) => startVring(scenario, folder, { isProfiled: true }),
};

/** Our switch as it is in another tree. */
export function vringOf(name: string, root: string): BackendKind {
  return { ...VRING, name, start: (scenario, folder) => startVring(scenario, folder, { root }) };
}

/** Our switch with more options of both ports, as they stand behind `NAME=vhost-user:PATH`. */
export function vringWith(name: string, portOptions: string): BackendKind {
  const options = { portOptions: `,${portOptions}` };
  return { ...VRING, name, start: (scenario, folder) => startVring(scenario, folder, options) };
}

type VringOptions = {
  readonly isProfiled?: boolean;
  readonly root?: string;
  readonly portOptions?: string;
};

async function startVring(
  scenario: Scenario,
  folder: string,
  { isProfiled = false, root, portOptions = '' }: VringOptions = {},
): Promise<Backend> {
  const more = `${portOptions}${scenario.topology === 'loop' ? ',reflect' : ''}`;
  const names = portNames(scenario);
  const vswitch = await SwitchProcess.start({
    ports: names.map((name) => `${name}=vhost-user:${folder}/${name}${more}`),
    control: `${folder}/control`,
    core: BACKEND_CORE,
    ...(root !== undefined && { root }),
    nodeArgs: isProfiled ? PROFILE_ARGUMENTS : [],
    environment: isProfiled ? { VRING_PROFILE: folder } : {},
  });
  let before = { busy: 0, frames: 0 };
  return {
    sockets: names.map((name) => `${folder}/${name}`),
    pids: [vswitch.pid],
    async startCounting() {
      before = await busyTime(vswitch);
    },
    async nanosecondsPerFrame() {
      const now = await busyTime(vswitch);
      const frames = now.frames - before.frames;
      return frames === 0 ? null : ((now.busy - before.busy) * 1e9) / frames;
    },
    profile: () => takeProfile(vswitch.pid, folder),
    close: () => vswitch.close(),
  };
}

/** Seconds that the workers were busy, and frames that they took in. */
export async function busyTime(vswitch: SwitchProcess): Promise<{ busy: number; frames: number }> {
  const [workers, ports] = await Promise.all([vswitch.workers(), vswitch.ports()]);
  // A worker counts the time of polls that found work; its processor time also holds the polls
  // that found nothing, and is the same when the back-end is the bottleneck.
  const busy = workers.map((worker) => {
    const { busyMs } = worker as { busyMs?: number };
    return busyMs === undefined ? worker.cpuSeconds : busyMs / 1000;
  });
  const frames = ports.map((port) => port.counters['rxFrames'] ?? 0);
  const sum = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0);
  return { busy: sum(busy), frames: sum(frames) };
}

/** DPDK's vhost library in testpmd, `io` forwarding: port 0 to itself, or port 0 to port 1. */
export const DPDK: BackendKind = {
  name: 'dpdk',
  topologies: ['loop', 'pair'],
  isInstalled: () => true,
  async start(scenario, folder) {
    const sockets = portNames(scenario).map((name) => `${folder}/${name}`);
    const testpmd = await Testpmd.start({
      vdevs: sockets.map((path, index) => vhostVdev(index, path)),
      mainCore: BACKEND_CORE,
      workerCores: [BACKEND_CORE],
      descriptors: 1024,
      mbufs: 16_384,
    });
    await testpmd.command('set record-core-cycles on');
    await testpmd.start();
    return {
      sockets,
      pids: [testpmd.pid],
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
  },
};

/** Open vSwitch's user-space datapath, one forwarding thread, its normal action (learning). */
export const OVS: BackendKind = ovsKind('ovs', {});

/**
 * The same, whose forwarding thread sleeps up to `sleepUs` in a round that found little: what there
 * is in 3.1 against a core that is always busy. See `pmd-maxsleep` in ovs-vswitchd.conf.db(5).
 */
export function ovsSleeping(sleepUs: number): BackendKind {
  return ovsKind(`ovs-${sleepUs}us`, { 'pmd-maxsleep': String(sleepUs) });
}

function ovsKind(name: string, otherConfig: Readonly<Record<string, string>>): BackendKind {
  return {
    name,
    topologies: ['pair'],
    isInstalled: () => OvsDpdk.isInstalled(),
    async start(scenario, folder) {
      const ports = portNames(scenario);
      const ovs = await OvsDpdk.start({
        folder,
        ports,
        workerCore: BACKEND_CORE,
        otherConfig,
        ownNetwork: true, // several are up at a time
      });
      return {
        sockets: ports.map((port) => ovs.socketPath(port)),
        pids: ovs.pids,
        async startCounting() {
          await ovs.appctl('dpif-netdev/pmd-stats-clear');
        },
        async nanosecondsPerFrame() {
          return parsePmdStats(await ovs.appctl('dpif-netdev/pmd-perf-show'));
        },
        close: () => ovs.close(),
      };
    },
  };
}

/** Busy nanoseconds per received packet from `pmd-perf-show`. */
export function parsePmdStats(text: string): number | null {
  // "Rx packets: 7655942 (3827 Kpps, 511 cycles/pkt)", "- busy iterations: 119624 (.. % of used
  // cycles)", "Used TSC cycles: 5201338290 (100.1 % of total cycles)", "... (2600.00 MHz)"
  const cycles = /Rx packets:\s+\d+\s+\([^)]*?(\d+) cycles\/pkt\)/.exec(text);
  const rate = /Rx packets:\s+(\d+)\s+\(([\d.]+) Kpps/.exec(text);
  if (cycles === null || rate === null) return null;
  const used = /Used TSC cycles:\s+(\d+)\s+\(\s*([\d.]+) %/.exec(text);
  const duration = /Measurement duration:\s+([\d.]+) s/.exec(text);
  if (used === null || duration === null) return null;
  const hertz = (Number(used[1]) / Number(duration[1]) / Number(used[2])) * 100;
  return (Number(cycles[1]) / hertz) * 1e9;
}

export const BACKENDS: readonly BackendKind[] = [VRING, DPDK, OVS];
