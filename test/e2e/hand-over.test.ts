/**
 * A switch that hands everything over to a new process: `vring switch --take-over`, as a user
 * runs it, while guests send. Nothing may be lost, doubled or reordered, and no session may end.
 */
import { deepEqual, equal, match, ok } from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { test } from 'node:test';
import { expect } from '../../src/daemon/hand-over.ts';
import { HAND_OVER_FORMAT, HandOverChannel } from '../../src/daemon/hand-over-channel.ts';
import { runTraffic } from '../../src/guest/index.ts';
import { acceptUnix, listenUnix } from '../../src/sys/index.ts';
import { LinuxGuest } from '../../src/vmm/index.ts';
import { requirePeer } from '../peers/require-peer.ts';
import { Scratch, sleep, waitFor } from '../peers/scratch.ts';
import { Host, VringProcess, ip4, macOf } from '../peers/software-guest.ts';
import { startSwitch, SwitchProcess, vring } from '../peers/switch.ts';

/** Frames may wait in a sender's ring for a pause; the receiver must have room for all of them. */
const MANY = { ringSize: 1024, notify: 'manual' } as const;
const ROOMY = { ringSize: 8192, notify: 'manual' } as const;

/** A successor as a user starts it; `vswitch` answers for whichever process serves. */
async function takeOver(vswitch: SwitchProcess, ...args: string[]): Promise<VringProcess> {
  const next = new VringProcess('switch', '--take-over', '--control', vswitch.control, ...args);
  await next.says(/ready: \d+ port/);
  return next;
}

const pauseOf = (process: VringProcess): number =>
  Number(/took over from process .* pause ([\d.]+) ms/.exec(process.err)?.[1] ?? Number.NaN);

test('three hand-overs in a row under traffic', { timeout: 120_000 }, async (t) => {
  await using scratch = new Scratch();
  const vswitch = await startSwitch(scratch, { a: '', b: '', r: ',reflect', q: ',queues=2' });
  const a = scratch.own(await Host.join(scratch.path('a'), 1, { ...MANY, packed: true }));
  const b = scratch.own(await Host.join(scratch.path('b'), 2, ROOMY));
  const r = scratch.own(await Host.join(scratch.path('r'), 3, { ...MANY, packed: true }));
  const q = scratch.own(await Host.join(scratch.path('q'), 4, { queuePairs: 2 }));
  b.guest.announce();
  await vring('port', 'set', 'r', '--policy', 'latency', '--control', vswitch.control);
  const before = await vswitch.ports();

  const stop = new AbortController();
  const sink = runTraffic({ guest: b.guest, signal: stop.signal });
  const send = { sizeBytes: 200, targetMac: macOf(2), rate: 5000, frames: 30_000 };
  const sender = runTraffic({ guest: a.guest, generate: send });
  const loop = { sizeBytes: 600, targetMac: macOf(3), rate: 3000, frames: 18_000, window: 256 };
  const reflected = runTraffic({ guest: r.guest, generate: loop });

  const pauses: number[] = [];
  let last: VringProcess | null = null;
  for (let round = 0; round < 3; round++) {
    const next = await takeOver(vswitch);
    scratch.own(next);
    if (last === null) {
      deepEqual(await vswitch.ended(), { code: 0, signal: null });
      match(vswitch.log, /handed over to process \d+; pause/);
    } else {
      deepEqual(await last.ended(), { code: 0, signal: null });
    }
    pauses.push(pauseOf(next));
    last = next;
  }
  await Promise.all([sender, reflected]);
  await sleep(200);
  stop.abort();
  const { records } = await sink;
  t.diagnostic(`pauses: ${pauses.join(', ')} ms`);
  deepEqual(
    { good: records.good, lost: records.lost, repeated: records.repeated, late: records.reordered },
    { good: 30_000, lost: 0, repeated: 0, late: 0 },
    'from port to port',
  );
  const { records: back } = await reflected;
  deepEqual([back.good, back.lost, back.repeated], [18_000, 0, 0], 'through the reflecting port');

  const after = await vswitch.ports();
  for (const [i, port] of after.entries()) {
    equal(port.state, 'up');
    equal(port.sessions, 1, 'the session went on');
    equal(port.policy, port.name === 'r' ? 'latency' : 'balanced', 'what was set is still so');
    deepEqual(port.features, before[i]!.features);
    ok(port.counters['rxFrames']! >= before[i]!.counters['rxFrames']!);
  }
  equal(after[0]!.counters['rxFrames'], 30_000, 'counters go on');
  const macs = await vswitch.api<{ mac: string; port: string }[]>('/v1/macs');
  ok(
    macs.some(({ mac, port }) => mac === macOf(2) && port === 'b'),
    'addresses are known still',
  );
  const kinds = (await vswitch.events()).map(({ kind }) => kind);
  equal(kinds.filter((kind) => kind === 'taken-over').length, 3, 'and so is what happened');
  equal(kinds.filter((kind) => kind === 'port-added').length, 4);

  await t.test('front-ends connect to the successor like to any switch', async () => {
    await q.close();
    await vswitch.waitState('q', 'listening');
    const again = scratch.own(await Host.join(scratch.path('q'), 5, { packed: true }));
    await vswitch.waitState('q', 'up');
    await vswitch.api('/v1/ports', 'POST', {
      name: 'n',
      kind: 'vhost-user',
      path: scratch.path('n'),
    });
    const fresh = scratch.own(await Host.join(scratch.path('n'), 6));
    ok(await fresh.hears(ip4(5)));
    ok(await again.hears(ip4(6)));
  });

  await t.test('the last one ends like any switch', async () => {
    deepEqual(await last!.close(), { code: 0, signal: null });
    for (const name of ['a', 'b', 'control']) equal(existsSync(scratch.path(name)), false, name);
  });
});

test(
  'a hand-over that fails leaves the guests with the old process',
  { timeout: 60_000 },
  async (t) => {
    await using scratch = new Scratch();
    const vswitch = await startSwitch(scratch, { a: '', b: '' });
    const a = scratch.own(await Host.join(scratch.path('a'), 1, MANY));
    const b = scratch.own(await Host.join(scratch.path('b'), 2, ROOMY));
    b.guest.announce();
    const stop = new AbortController();
    const sink = runTraffic({ guest: b.guest, signal: stop.signal });
    const send = { sizeBytes: 200, targetMac: macOf(2), rate: 5000, frames: 25_000 };
    const sender = runTraffic({ guest: a.guest, generate: send });
    const failures = async () =>
      (await vswitch.events()).filter(({ kind }) => kind === 'hand-over-failed');

    await t.test('a configuration that the guests cannot live with', async () => {
      const port = `a=vhost-user:${scratch.path('a')},queues=4`;
      const args = ['--take-over', '--control', vswitch.control, '--port', port];
      const next = new VringProcess('switch', ...args);
      equal((await next.ended()).code, 1);
      match(next.err, /port a: queuePairs is 4 and was 1, which a running port cannot change/);
      await waitFor('the event', 2000, async () => (await failures()).length === 1);
    });

    for (const step of ['prepare', 'switch'] as const) {
      await t.test(`a successor that dies after "${step}"`, async () => {
        const count = (await failures()).length;
        const listener = listenUnix(scratch.path('successor'));
        const request = {
          socket: scratch.path('successor'),
          format: HAND_OVER_FORMAT,
          version: 'x',
        };
        await vswitch.api('/v1/hand-over', 'POST', request);
        const channel = new HandOverChannel(acceptUnix(listener.number)!);
        (await expect(channel, 'prepare', 5000)).fds.close();
        if (step === 'switch') {
          await channel.send('ready', null);
          (await expect(channel, 'switch', 5000)).fds.close();
          await sleep(10);
        }
        channel.close();
        listener.close();
        await waitFor('the event', 5000, async () => (await failures()).length === count + 1);
      });
    }

    await t.test('one of another format', async () => {
      const request = { socket: '/nowhere', format: 99, version: '9.9' };
      const refused = await vswitch.api('/v1/hand-over', 'POST', request).catch(String);
      match(String(refused), /409.*vring 9\.9: .*format 99, this one knows/);
    });

    await sender;
    await sleep(200);
    stop.abort();
    const { records } = await sink;
    deepEqual([records.good, records.lost, records.repeated], [25_000, 0, 0]);
    ok(vswitch.isRunning);
    for (const port of await vswitch.ports()) deepEqual([port.state, port.sessions], ['up', 1]);
  },
);

test('guests of QEMU that ping each other', { timeout: 120_000 }, async (t) => {
  if (!requirePeer(t, 'qemu-system-x86_64', 'linux kernel', 'busybox')) return;
  await using scratch = new Scratch();
  const nic = { queuePairs: 1, mrgRxbuf: true, mtu: null } as const;
  const nics = [
    { ...nic, path: scratch.path('a'), mode: 'client', packed: false, mac: '52:54:00:00:0e:01' },
    { ...nic, path: scratch.path('b'), mode: 'server', packed: true, mac: '52:54:00:00:0e:02' },
  ] as const;
  const guests = nics.map((own, i) =>
    scratch.own(LinuxGuest.launch({ name: `guest${i}`, ip: `10.0.0.${i + 1}/24`, nics: [own] })),
  ) as [LinuxGuest, LinuxGuest];
  const ports = [`a=vhost-user:${scratch.path('a')}`, `b=vhost-user:${scratch.path('b')},client`];
  const vswitch = await SwitchProcess.start({ ports, control: scratch.path('control') });
  scratch.own(vswitch);
  await Promise.all(guests.map((guest) => guest.waitReady()));
  await vswitch.waitState('a', 'up');
  await vswitch.waitState('b', 'up');
  const pinged = guests[0].run('ping -c 60 -i 0.1 10.0.0.2');
  const pauses: number[] = [];
  for (let round = 0; round < 2; round++) {
    const next = scratch.own(await takeOver(vswitch));
    pauses.push(pauseOf(next));
  }
  const { output } = await pinged;
  match(output, /60 packets transmitted, 60 packets received, 0% packet loss/);
  t.diagnostic(`pauses: ${pauses.join(', ')} ms; ${/round-trip.*/.exec(output)?.[0]}`);
  match((await guests[1].run('ping -c 3 -i 0.1 10.0.0.1')).output, /3 packets received/);
  for (const port of await vswitch.ports()) deepEqual([port.state, port.sessions], ['up', 1]);
});
