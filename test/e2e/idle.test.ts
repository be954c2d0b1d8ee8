/** What the switch costs when nothing happens, and what it keeps when much has happened. */
import { equal, ok } from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { Testpmd, virtioUserVdev } from '../peers/dpdk.ts';
import { requirePeer, requireRoot } from '../peers/require-peer.ts';
import { Scratch, sleep, waitFor } from '../peers/scratch.ts';
import { SwitchProcess } from '../peers/switch.ts';

const IDLE_PORTS = 10;
const IDLE_SECONDS = 4;
/** The clock of /proc/PID/stat ticks 100 times a second: two ticks are noise. */
const IDLE_CPU_SECONDS = 0.02;
/**
 * Of all threads together. The timers of a switch at rest are node's look at connections (30 s)
 * and V8's at its memory (8 s, until some minutes after the load); each may wake a few threads.
 */
const IDLE_WAKEUPS = 3 * IDLE_SECONDS;
/** Of the main thread, where each of those timers wakes once at most: none of every second. */
const IDLE_MAIN_WAKEUPS = IDLE_SECONDS - 1;

const FRAMES = 1_000_000;
/** A leak of 16 bytes per frame would show; the collector's own ups and downs stay below. */
const GROWTH_BYTES = 8 * 2 ** 20;

// Both at once: what is looked at is each switch's own.
test(`${IDLE_PORTS} connected idle ports take no processor time`, { concurrency: 2 }, async (t) => {
  const one = t.test('one worker', (each) => idlePorts(each, 1));
  await Promise.all([one, t.test('two workers', (each) => idlePorts(each, 2))]);
});

async function idlePorts(t: TestContext, workers: number): Promise<void> {
  if (!requirePeer(t, 'dpdk-testpmd') || !requireRoot(t)) return;
  await using scratch = new Scratch();
  const names = Array.from({ length: IDLE_PORTS }, (_, i) => `p${i}`);
  const ports = names.map((name) => `${name}=vhost-user:${scratch.path(name)}`);
  const control = scratch.path('control');
  const vswitch = scratch.own(
    await SwitchProcess.start({ ports, control, args: ['--workers', String(workers)] }),
  );
  const vdevs = names.map((name, i) =>
    virtioUserVdev(i, { path: scratch.path(name), packed: i % 2 === 1 }),
  );
  const args = ['--no-lsc-interrupt'];
  const testpmd = scratch.own(await Testpmd.start({ vdevs, args, mbufs: 32_768 }));
  for (const name of names) await vswitch.waitState(name, 'up');

  await t.test('connected, before any frame', (t) => checkIdle(t, vswitch));
  await t.test('again after frames were there', async (t) => {
    await testpmd.command('set fwd rxonly');
    await testpmd.start(1);
    await waitFor('frames at every port', 5000, async () => {
      return (await vswitch.ports()).every((port) => port.counters['rxFrames']! > 0);
    });
    await testpmd.stop();
    await sleep(500);
    await checkIdle(t, vswitch);
  });
}

async function checkIdle(t: TestContext, vswitch: SwitchProcess): Promise<void> {
  await sleep(1000); // the polls of the API are over
  const look = () => {
    const { main, all } = vswitch.sleeps();
    return { cpuSeconds: vswitch.cpuSeconds(), main, all };
  };
  const before = look();
  await sleep(IDLE_SECONDS * 1000);
  const after = look();
  const used = after.cpuSeconds - before.cpuSeconds;
  const [wakeups, mainWakeups] = [after.all - before.all, after.main - before.main];
  const text = `${wakeups} wake-ups, ${mainWakeups} of them of the main thread`;
  t.diagnostic(`${used.toFixed(2)} s of processor time, ${text}`);
  ok(used <= IDLE_CPU_SECONDS, `${used.toFixed(2)} s of processor time in ${IDLE_SECONDS} s`);
  ok(wakeups <= IDLE_WAKEUPS, `${text} in ${IDLE_SECONDS} s`);
  ok(mainWakeups <= IDLE_MAIN_WAKEUPS, `${text} in ${IDLE_SECONDS} s`);
}

test(`memory does not grow over ${FRAMES / 1e6} million frames`, async (t) => {
  if (!requirePeer(t, 'dpdk-testpmd') || !requireRoot(t)) return;
  await using scratch = new Scratch();
  const ports = ['a', 'b'].map((name) => `${name}=vhost-user:${scratch.path(name)}`);
  const control = scratch.path('control');
  const vswitch = scratch.own(await SwitchProcess.start({ ports, control }));
  const macs = ['52:54:00:00:00:01', '52:54:00:00:00:02'] as const;
  const testpmd = scratch.own(
    await Testpmd.start({
      vdevs: macs.map((mac, i) =>
        virtioUserVdev(i, { path: scratch.path('ab'[i] as string), mac }),
      ),
      args: [`--eth-peer=0,${macs[1]}`, `--eth-peer=1,${macs[0]}`],
    }),
  );
  await testpmd.start(4);
  // The first million lets code be compiled and buffers be made.
  await forwarded(vswitch, FRAMES);
  const before = vswitch.residentBytes();
  const frames = await forwarded(vswitch, 2 * FRAMES);
  const growth = vswitch.residentBytes() - before;
  t.diagnostic(`${growth} bytes more after ${frames} frames`);
  ok(growth < GROWTH_BYTES, `${growth} bytes more after ${frames} frames`);
  for (const port of await vswitch.ports()) equal(port.state, 'up');
});

/** Waits until the switch has moved `count` more frames; returns how many it moved. */
async function forwarded(vswitch: SwitchProcess, count: number): Promise<number> {
  const total = async (): Promise<number> => {
    return (await vswitch.ports()).reduce((sum, port) => sum + port.counters['rxFrames']!, 0);
  };
  const start = await total();
  return waitFor(`${count} frames`, 60_000, async () => {
    const moved = (await total()) - start;
    return moved >= count ? moved : null;
  });
}
