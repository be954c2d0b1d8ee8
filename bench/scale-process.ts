/**
 * `npm run bench:scale -- --process`: a switch as its user starts it, with two ports and with 250,
 * all connected, of which two work under DPDK's testpmd and the others are guests that are idle.
 */
import { Scratch, sleep } from '../test/peers/scratch.ts';
import { SwitchProcess } from '../test/peers/switch.ts';
import { connectNetGuest } from '../src/guest/index.ts';
import { type Backend, type BackendKind, busyTime } from './backends.ts';
import { compare, runTable } from './report.ts';
import { measureRounds } from './rounds.ts';
import { BACKEND_CORE, type Scenario } from './scenario.ts';
import { intervalText } from './statistics.ts';

const PORTS = 250;
const WORKING = ['p0', 'p1'];
const IDLE_SECONDS = 5;
const SCENARIO: Scenario = { topology: 'pair', ring: 'split', frameBytes: 64 };

type Started = { readonly vswitch: SwitchProcess; readonly startMs: number; readonly upMs: number };

/** A switch in `folder`; all its ports but `WORKING` have a guest. */
async function start(scratch: Scratch, folder: string, ports: number): Promise<Started> {
  const names = Array.from({ length: ports }, (_, i) => `p${i}`);
  const from = performance.now();
  const vswitch = scratch.own(
    await SwitchProcess.start({
      ports: names.map((name) => `${name}=vhost-user:${folder}/${name}`),
      control: `${folder}/control`,
      core: BACKEND_CORE,
    }),
  );
  const startMs = performance.now() - from;
  const idle = names.filter((name) => !WORKING.includes(name));
  for (const [i, name] of idle.entries()) {
    const mac = `02:00:00:00:01:${i.toString(16).padStart(2, '0')}`;
    scratch.own(await connectNetGuest({ socket: `${folder}/${name}`, mac, ringSize: 256 }));
  }
  for (const name of idle) await vswitch.waitState(name, 'up');
  return { vswitch, startMs, upMs: performance.now() - from - startMs };
}

/** For `measure`: two of the ports are its client's. */
function kindOf(ports: number): BackendKind {
  return {
    name: `${ports} ports`,
    topologies: ['pair'],
    isInstalled: () => true,
    async start(_scenario, folder): Promise<Backend> {
      const scratch = new Scratch();
      const { vswitch } = await start(scratch, folder, ports);
      let before = { busy: 0, frames: 0 };
      return {
        sockets: WORKING.map((name) => `${folder}/${name}`),
        pids: [vswitch.pid],
        async startCounting() {
          before = await busyTime(vswitch);
        },
        async nanosecondsPerFrame() {
          const { busy, frames } = await busyTime(vswitch);
          return frames === before.frames
            ? null
            : ((busy - before.busy) * 1e9) / (frames - before.frames);
        },
        close: () => scratch[Symbol.asyncDispose](),
      };
    },
  };
}

async function atRest(ports: number): Promise<number> {
  await using scratch = new Scratch();
  const { vswitch, startMs, upMs } = await start(scratch, scratch.folder, ports);
  await sleep(1500); // compilers and collectors are done
  const used = vswitch.cpuSeconds();
  await sleep(IDLE_SECONDS * 1000);
  const idleMs = (vswitch.cpuSeconds() - used) * 1000;
  const bytes = vswitch.residentBytes();
  const cells = [
    `started in ${startMs.toFixed(0)} ms`,
    `${ports - WORKING.length} guests joined in ${upMs.toFixed(0)} ms`,
    `${(bytes / 2 ** 20).toFixed(1)} MiB of its own`,
    `${idleMs.toFixed(0)} ms of processor time in ${IDLE_SECONDS} s at rest`,
  ];
  console.log(`${ports} ports: ${cells.join(', ')}`);
  return bytes;
}

export async function measureProcess(rounds: number, seconds: number): Promise<object> {
  const few = await atRest(WORKING.length);
  const many = await atRest(PORTS);
  const each = (many - few) / (PORTS - WORKING.length);
  console.log(`a connected port takes ${(each / 1024).toFixed(0)} KiB`);
  const kinds = [kindOf(WORKING.length), kindOf(PORTS)];
  const measured = await measureRounds(SCENARIO, kinds, rounds, seconds);
  console.log(runTable(measured));
  const [rate] = compare(measured, kinds[1]!.name);
  if (rate === undefined) return { few, many, measured };
  const { median, count } = rate.ratio;
  const interval = `${intervalText(rate.ratio)}, ${count} pairs`;
  console.log(`rate with ${PORTS} ports to that with 2: ${median.toFixed(2)} (${interval})`);
  return { few, many, measured };
}
