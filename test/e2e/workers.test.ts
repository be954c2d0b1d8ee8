/**
 * A switch with several data-plane workers: receive queues with a writer each, receive queues that
 * workers share, queues that move under load, uplinks, and a hand-over. Traffic is numbered: nothing may be
 * lost, doubled or reordered.
 */
import { deepEqual, doesNotMatch, equal, match, ok, rejects } from 'node:assert/strict';
import { cpSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { test } from 'node:test';
import type { PortStatus } from '../../src/daemon/switch-types.ts';
import { runTraffic } from '../../src/guest/index.ts';
import * as sink from '../../src/guest/sink.hot.ts';
import { MAX_FLOWS } from '../../src/guest/test-frame.ts';
import { NetNamespace } from '../peers/netns.ts';
import { readPcapng } from '../peers/pcapng.ts';
import { checkMessages, startCapture, startRecorder } from '../peers/recording.ts';
import { requirePeer, requireRoot } from '../peers/require-peer.ts';
import { Scratch, sleep, waitFor } from '../peers/scratch.ts';
import { Host, type HostOptions, VringProcess, macOf } from '../peers/software-guest.ts';
import { startSwitch, SwitchProcess } from '../peers/switch.ts';
import { VethPair } from '../peers/veth.ts';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const TWO = ['--workers', '2'];
const NO_LOSS = { lost: 0, repeated: 0, reordered: 0, corrupt: 0 };

type Flow = { readonly from: Host; readonly frames?: number; readonly rate: number };

/** Everybody sends to `to` at once, until `during` is over where no number says when. */
async function flood(
  to: Host,
  toNumber: number,
  flows: readonly Flow[],
  during: () => Promise<void> = async () => undefined,
  arrived: () => Promise<unknown> = () => sleep(200),
) {
  const stop = new AbortController();
  const done = new AbortController();
  const sink = runTraffic({ guest: to.guest, signal: stop.signal, verifyEvery: 1 });
  const sent = Promise.all(
    flows.map(({ from, frames, rate }, i) =>
      runTraffic({
        guest: from.guest,
        signal: done.signal,
        generate: {
          sizeBytes: 200,
          targetMac: macOf(toNumber),
          firstFlow: 16 * i,
          flows: 16,
          frames: frames ?? Infinity,
          rate,
        },
      }),
    ),
  );
  await during();
  if (flows.some(({ frames }) => frames === undefined)) done.abort();
  await sent;
  await arrived();
  stop.abort();
  const { good, lost, repeated, reordered, corrupt } = (await sink).records;
  return { good, lost, repeated, reordered, corrupt };
}

/** What the receiver would have said of frames that were captured on their way to it. */
function judgeRecords(frames: readonly Uint8Array[]) {
  const counters = new Float64Array(sink.SINK_COUNTERS);
  const runs = new Int32Array(MAX_FLOWS).fill(-1);
  const next = new Uint32Array(MAX_FLOWS);
  const seen = new Int32Array((MAX_FLOWS * sink.SINK_WINDOW) / 32);
  for (const frame of frames) {
    const view = new DataView(frame.buffer, frame.byteOffset, frame.length);
    const [start, length] = [Float64Array.of(0), Int32Array.of(frame.length)];
    sink.checkFrames(view, start, length, 1, runs, next, seen, counters, 1, 0);
  }
  return {
    good: counters[sink.SINK_RECORDS],
    lost: counters[sink.SINK_LOST],
    repeated: counters[sink.SINK_REPEATED],
    reordered: counters[sink.SINK_REORDERED],
    corrupt: counters[sink.SINK_CORRUPT],
  };
}

/** By which workers frames reached a receive queue cannot be seen, but that all took some can. */
async function busyWorkers(vswitch: SwitchProcess): Promise<number[]> {
  const workers = await vswitch.workers();
  return workers.filter(({ queues }) => queues.length > 0).map(({ id }) => id);
}

for (const packed of [false, true]) {
  const kind = packed ? 'packed' : 'split';
  test(`two workers, ${kind}: own and shared receive queues`, { timeout: 60_000 }, async (t) => {
    await using scratch = new Scratch();
    const ports = { a: ',queues=2', b: ',queues=2', one: '' };
    const vswitch = await startSwitch(scratch, ports, TWO);
    const options: HostOptions = { packed, notify: 'manual', ringSize: 4096 };
    const join = async (name: string, number: number, more: HostOptions) =>
      scratch.own(await Host.join(scratch.path(name), number, { ...options, ...more }));
    const a = await join('a', 1, { queuePairs: 2 });
    const b = await join('b', 2, { queuePairs: 2 });
    const one = await join('one', 3, {});
    deepEqual(await busyWorkers(vswitch), [0, 1]);
    for (const { guest } of [a, b, one]) guest.announce();
    const frames = 20_000;
    const rate = 10_000;
    await t.test('two queue pairs', async () => {
      const got = await flood(b, 2, [{ from: a, frames, rate }]);
      deepEqual(got, { good: frames, ...NO_LOSS });
    });
    await t.test('one pair, which both workers write', async () => {
      const flows = [
        { from: a, frames, rate },
        { from: b, frames, rate },
      ];
      const got = await flood(one, 3, flows);
      deepEqual(got, { good: 2 * frames, ...NO_LOSS });
      const { counters, queues } = await vswitch.port('one');
      ok(counters['txFrames']! >= 2 * frames);
      const receiveq = queues.find(({ name }) => name === 'receiveq1')!;
      equal(receiveq.counters['chains'], counters['txFrames'], 'the counters of all workers');
    });
    for (const { counters } of await vswitch.ports()) equal(counters['faults'], 0);
    equal((await vswitch.api<unknown[]>('/v1/macs')).length, 3, 'one table for both');
  });

  test(`queues move to an idle worker under load, ${kind}`, { timeout: 60_000 }, async () => {
    await using scratch = new Scratch();
    const vswitch = await startSwitch(scratch, { a: '', b: '', c: '' }, TWO);
    const options: HostOptions = { packed, notify: 'manual', ringSize: 4096 };
    const hosts: Host[] = [];
    for (const [at, name] of ['a', 'b', 'c'].entries()) {
      hosts.push(scratch.own(await Host.join(scratch.path(name), at + 1, options)));
      hosts.at(-1)!.guest.announce();
    }
    const places = async () =>
      (await vswitch.workers()).flatMap(({ id, queues }) =>
        queues.filter(({ index }) => index === 1).map(({ port }) => `${port} ${id}`),
      );
    const before = (await places()).sort();
    deepEqual(before, ['a 0', 'b 1', 'c 0']);
    const [a, b, c] = hosts as [Host, Host, Host];
    const flows = [
      { from: a, frames: 50_000, rate: 10_000 },
      { from: c, frames: 50_000, rate: 10_000 },
    ];
    const got = await flood(b, 2, flows, async () => {
      await waitFor('a queue that moved', 4500, async () => {
        return (await places()).sort().join() !== before.join();
      });
    });
    deepEqual(got, { good: 100_000, ...NO_LOSS });
    const after = await places();
    ok(after.includes('a 0') !== after.includes('c 0'), `apart: ${after.join()}`);
    const { queues } = await vswitch.port('a');
    const chains = queues.find(({ name }) => name === 'transmitq1')!.counters['chains']!;
    ok(chains >= 50_000, 'what a queue counted goes with it');
  });
}

test('two workers in one capture, and a recorded session', { timeout: 60_000 }, async () => {
  await using scratch = new Scratch();
  const vswitch = await startSwitch(scratch, { a: ',queues=2', one: '' }, TWO);
  const options: HostOptions = { notify: 'manual', ringSize: 1024 };
  const a = scratch.own(await Host.join(scratch.path('a'), 1, { ...options, queuePairs: 2 }));
  const recorder = await startRecorder(scratch, scratch.path('one'), '--rings');
  const one = await Host.join(recorder.socket, 2, options);
  one.guest.announce();
  const sending = (await vswitch.workers()).filter(({ queues }) =>
    queues.some(({ port, index }) => port === 'a' && index % 2 === 1),
  );
  equal(sending.length, 2, 'each worker has a queue of the sender');
  const frames = 10_000; // all of them fit into the ring of a capture
  const file = scratch.path('both.pcapng');
  const capture = await startCapture(vswitch, 'one', '-w', file, '--count', `${frames}`);
  scratch.own(capture);
  const got = await flood(one, 2, [{ from: a, frames, rate: 10_000 }]);
  deepEqual(got, { good: frames, ...NO_LOSS });
  const ended = await Promise.race([capture.ended(), sleep(5000)]);
  deepEqual(ended, { code: 0, signal: null });
  const captured = readPcapng(readFileSync(file));
  ok(captured.every(({ direction, fullBytes }) => direction === 2 && fullBytes === 200));
  const judged = judgeRecords(captured.map(({ bytes }) => bytes));
  deepEqual(judged, { good: frames, ...NO_LOSS });
  await one.close();
  await vswitch.waitState('one', 'listening');
  checkMessages(await recorder.end());
});

test('a hand-over between switches with two workers', { timeout: 60_000 }, async () => {
  await using scratch = new Scratch();
  const vswitch = await startSwitch(scratch, { a: ',queues=2', b: '' }, TWO);
  const options: HostOptions = { notify: 'manual', ringSize: 8192 };
  const a = scratch.own(await Host.join(scratch.path('a'), 1, { ...options, queuePairs: 2 }));
  const b = scratch.own(await Host.join(scratch.path('b'), 2, options));
  b.guest.announce();
  const got = await flood(b, 2, [{ from: a, frames: 30_000, rate: 5000 }], async () => {
    const next = new VringProcess('switch', '--take-over', '--control', vswitch.control);
    scratch.own(next);
    await next.says(/ready: \d+ port/);
    equal((await vswitch.workers()).length, 2, 'the successor has as many');
  });
  deepEqual(got, { good: 30_000, ...NO_LOSS });
});

/** Switches of two workers at both ends of a veth pair, with a guest of two queue pairs each. */
async function startPair(scratch: Scratch, kind: string) {
  const host = scratch.own(await NetNamespace.create());
  const pair = scratch.own(await VethPair.create(host, 2));
  const start = async (name: string, number: number, netns: string, uplink: string) => {
    const ports = [`${name}=vhost-user:${scratch.path(name)},queues=2`, `up=${kind}:${uplink}`];
    const control = scratch.path(`${name}-control`);
    const vswitch = scratch.own(await SwitchProcess.start({ ports, control, args: TWO, netns }));
    const options: HostOptions = { notify: 'manual', ringSize: 4096, queuePairs: 2 };
    const guest = scratch.own(await Host.join(scratch.path(name), number, options));
    return { vswitch, guest, name, number };
  };
  const [near, far] = await Promise.all([
    start('a', 1, host.name, 'up0'),
    start('b', 2, pair.far.name, 'far0'),
  ]);
  for (const { guest } of [near.guest, far.guest]) guest.announce();
  return { host, pair, near, far };
}

type End = Awaited<ReturnType<typeof startPair>>['near'];
type Work = () => Promise<void>;

for (const kind of ['packet', 'xdp']) {
  test(`two workers and an uplink by ${kind}`, { timeout: 60_000 }, async (t) => {
    if (!requirePeer(t, 'ip') || !requireRoot(t)) return;
    await using scratch = new Scratch();
    const { host, pair, near, far } = await startPair(scratch, kind);
    const [a, b] = [near.guest, far.guest];
    const [frames, rate] = [3000, 10_000];
    /** Each frame comes, but where a worker had no processor for as long as its ring lasts. */
    const bothWays = async () => {
      for (const [from, to, { vswitch, name, number }] of [
        [a, b, far],
        [b, a, near],
      ] as const) {
        const count = async () => {
          const noRoom = (await vswitch.port('up')).counters['rxDropNoRoom']!;
          return { noRoom, came: (await vswitch.port(name)).counters['txFrames']! };
        };
        const before = await count();
        let noRoom = 0;
        const arrived = async () => {
          await waitFor('every frame', 5000, async () => {
            const now = await count();
            noRoom = now.noRoom - before.noRoom;
            return now.came - before.came + noRoom >= frames;
          });
          await sleep(100);
        };
        const got = await flood(to, number, [{ from, frames, rate }], undefined, arrived);
        deepEqual({ ...got, lost: 0 }, { good: frames - noRoom, ...NO_LOSS });
        ok(got.lost <= noRoom);
      }
    };
    /** Nothing but that frames are lost meanwhile. */
    const duringTraffic = async (to: Host, { vswitch, name, number }: End, work: Work) => {
      const from = to === a ? b : a;
      const arrived = async () => {
        let last = -1;
        await waitFor('a pause', 5000, async () => {
          await sleep(150);
          const before = last;
          last = (await vswitch.port(name)).counters['txFrames']!;
          return last === before;
        });
      };
      const { good, lost, ...rest } = await flood(to, number, [{ from, rate }], work, arrived);
      ok(good > 0);
      deepEqual({ ...rest, lost: 0 }, NO_LOSS);
      return lost;
    };
    const resumed = async ({ vswitch, name }: End) => {
      const count = async () => (await vswitch.port(name)).counters['txFrames']!;
      const before = await count();
      await waitFor('more frames', 5000, async () => (await count()) > before + 100);
    };
    await t.test('frames both ways, by both workers', async () => {
      await bothWays();
      const { queues } = await far.vswitch.port('b');
      const used = queues.filter(({ name, counters }) => {
        return name.startsWith('receiveq') && counters['chains']! > frames / 100;
      });
      equal(used.length, 2, 'each worker writes one');
    });
    await t.test('the interface goes down and comes back under traffic', async () => {
      const lost = await duringTraffic(b, far, async () => {
        await pair.far.ip('link', 'set', 'far0', 'down');
        for (const { vswitch } of [near, far]) await vswitch.waitState('up', 'down', 3000);
        await pair.far.ip('link', 'set', 'far0', 'up');
        for (const { vswitch } of [near, far]) await vswitch.waitState('up', 'up', 3000);
        await resumed(far);
      });
      ok(lost > 0);
    });
    await t.test('the port is removed under traffic, and added again', async () => {
      const lost = await duringTraffic(a, near, async () => {
        await resumed(near);
        await near.vswitch.api('/v1/ports/up', 'DELETE');
        const macs = await near.vswitch.api<{ port: string }[]>('/v1/macs');
        const ports = macs.map(({ port }) => port);
        deepEqual(ports, ['a'], 'nobody learned from it any more');
        await near.vswitch.api('/v1/ports', 'POST', { name: 'up', kind, interface: 'up0' });
        await resumed(near);
      });
      ok(lost > 0);
    });
    const handOver = () =>
      t.test('a hand-over under traffic', async () => {
        const before = (await near.vswitch.port('up')).counters;
        await duringTraffic(b, far, async () => {
          const args = ['switch', '--take-over', '--control', near.vswitch.control];
          const next = scratch.own(new VringProcess(...args, { netns: host.name }));
          await next.says(/ready: \d+ port/);
          await near.vswitch.waitState('up', 'up', 3000);
          await sleep(50);
        });
        const after = (await near.vswitch.port('up')).counters;
        ok(after['txFrames']! > before['txFrames']!, 'counters go on');
        equal((await near.vswitch.workers()).length, 2);
      });
    if (kind === 'xdp') await handOver(); // whose queues the old process must let go of
    await t.test('and all is as before', bothWays);
    for (const { vswitch } of [near, far]) {
      for (const { counters } of await vswitch.ports()) equal(counters['faults'] ?? 0, 0);
    }
    await t.test('each worker sends by a queue of its own', async () => {
      await host.ip('link', 'add', 'other0', 'type', 'veth', 'peer', 'name', 'other1');
      const port = { name: 'other', kind, interface: 'other0' };
      const added = near.vswitch.api<PortStatus>('/v1/ports', 'POST', port);
      const refusal = /has 1 queue and the switch 2 workers.*ethtool -L other0 combined 2/;
      if (kind === 'xdp') await rejects(added, refusal);
      else equal((await added).name, 'other', 'sockets are as many as needed');
    });
  });
}

test('a worker that ends with a lock ends the switch, and nobody waits for it', async () => {
  await using scratch = new Scratch();
  const root = treeWith(scratch, 'src/devices/net/net-port.ts', [
    '    const result = this.#result;\n', // the lock of the receive queue was taken before
    "    if (batch.frameLen[list[0]] === 999) throw new Error('a mistake of ours');\n",
  ]);
  const ports = ['a', 'b', 'one'].map((name) => `${name}=vhost-user:${scratch.path(name)}`);
  const control = scratch.path('control');
  const vswitch = scratch.own(await SwitchProcess.start({ ports, control, args: TWO, root }));
  const hosts: Host[] = [];
  for (const [at, name] of ['a', 'b', 'one'].entries()) {
    const options: HostOptions = { notify: 'manual', ringSize: 1024 };
    hosts.push(scratch.own(await Host.join(scratch.path(name), at + 1, options)));
    hosts.at(-1)!.guest.announce();
  }
  const [a, b] = hosts as [Host, Host];
  const send = (from: Host, sizeBytes: number, frames: number): Promise<unknown> => {
    const generate = { sizeBytes, targetMac: macOf(3), frames, rate: 10_000 };
    return runTraffic({ guest: from.guest, generate }).catch(() => 'the switch is gone');
  };
  const others = send(b, 200, 100_000);
  await sleep(100);
  const startedMs = performance.now();
  await send(a, 999, 1);
  deepEqual(await vswitch.ended(), { code: 1, signal: null });
  ok(performance.now() - startedMs < 4000, 'no session is given up on');
  match(vswitch.log, /the data plane failed: data-plane worker "vring-plane-0" ended: a mistake/);
  doesNotMatch(vswitch.log, /giving up/);
  equal(await others, 'the switch is gone');
});

/** A copy of the sources with something after the one place where `before` stands. */
function treeWith(scratch: Scratch, file: string, [before, more]: [string, string]): string {
  const root = scratch.path('tree');
  for (const name of ['src', 'package.json']) {
    cpSync(join(ROOT, name), join(root, name), { recursive: true });
  }
  for (const name of ['node_modules', 'native', 'build'])
    symlinkSync(join(ROOT, name), join(root, name));
  const parts = readFileSync(join(root, file), 'utf8').split(before);
  equal(parts.length, 2, `${file} has it once`);
  writeFileSync(join(root, file), parts.join(before + more));
  return root;
}
