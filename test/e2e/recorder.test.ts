/**
 * `vring record` between real peers: guests do not notice it, and what it wrote is complete,
 * readable by Wireshark, and drives a back-end again by `vring replay`.
 */
import { deepEqual, equal, match, ok } from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { test } from 'node:test';
import type { ReplayReport } from '../../src/recorder/index.ts';
import { LinuxGuest } from '../../src/vmm/index.ts';
import { Testpmd, vhostVdev, virtioUserVdev } from '../peers/dpdk.ts';
import { checkMessages, startRecorder } from '../peers/recording.ts';
import { requirePeer, requireRoot } from '../peers/require-peer.ts';
import { Scratch, sleep, waitFor } from '../peers/scratch.ts';
import { Host, ip4, runVring } from '../peers/software-guest.ts';
import { startSwitch } from '../peers/switch.ts';
import { checkPing } from '../peers/traffic.ts';

async function replay(
  out: string,
  socket: string,
  ...args: string[]
): Promise<{ status: number | null; report: ReplayReport }> {
  const {
    status,
    out: text,
    err,
  } = await runVring('replay', out, '--socket', socket, '--compare', '--json', ...args);
  ok(text !== '', err);
  return { status, report: JSON.parse(text) as ReplayReport };
}

test('software guest and switch: rings, pcapng, and a replay that answers the same', async (t) => {
  await using scratch = new Scratch();
  const vswitch = await startSwitch(scratch, { a: '', b: '', again: '' });
  const pcapng = scratch.path('out.pcapng');
  const recorder = await startRecorder(scratch, scratch.path('a'), '--rings', '--pcapng', pcapng);
  const b = scratch.own(await Host.join(scratch.path('b'), 2));
  const a = await Host.join(recorder.socket, 1);
  ok(await a.hears(ip4(2)));
  ok(await b.hears(ip4(1), 1400));
  await a.close();
  const again = await Host.join(recorder.socket, 1, { packed: true });
  ok(await again.hears(ip4(2)));
  await again.close();
  await vswitch.waitState('a', 'listening');
  const recorded = await recorder.end();
  checkMessages(recorded);
  const { header, events, messages } = recorded;
  equal(header.rings, true);
  deepEqual([...new Set(events.map(({ session }) => session))], [1, 2]);
  const rings = events.filter((each) => 'ring' in each);
  for (const kind of ['kick', 'call'] as const) {
    const seen = rings.filter(({ event, session }) => event === kind && session === 1);
    ok(seen.length > 0, `${kind}s`);
    ok(seen.every(({ available, used }) => available !== null && used !== null));
  }
  ok(
    rings.filter(({ session }) => session === 2).every(({ used }) => used === null),
    'packed',
  );

  await t.test('tshark reads the control messages', (sub) => {
    if (!requirePeer(sub, 'tshark')) return;
    const fields = ['-T', 'fields', '-e', 'frame.comment', '-e', 'frame.len'];
    const lines = execFileSync('tshark', ['-r', pcapng, ...fields], { encoding: 'utf8' })
      .trimEnd()
      .split('\n')
      .map((line) => line.split('\t'));
    equal(lines.length, messages.length);
    for (const [i, [comment, length]] of lines.entries()) {
      ok(comment?.startsWith(messages[i]!.name), comment);
      equal(Number(length), 16 + messages[i]!.hex.length / 2);
    }
    const summary = execFileSync('tshark', ['-r', pcapng, '-c', '1', '-V'], { encoding: 'utf8' });
    match(summary, /USER 0/);
  });

  await t.test('the switch answers a replay the same', async () => {
    const { status, report } = await replay(recorder.out, scratch.path('again'));
    const wrong = report.sessions.flatMap((each) => each.differences).filter((d) => !d.allowed);
    deepEqual(wrong, []);
    deepEqual([status, report.same, report.sessions.length], [0, true, 2]);
    await vswitch.waitState('again', 'listening');
  });
});

test('DPDK’s virtio-user: frames run, client mode of the back-end', async (t) => {
  if (!requirePeer(t, 'dpdk-testpmd') || !requireRoot(t)) return;
  await using scratch = new Scratch();
  // The front-end listens, the switch connects: the recorder's sides are exchanged.
  const [front, rec] = [scratch.path('front'), scratch.path('rec.sock')];
  const vswitch = await startSwitch(scratch, {});
  const recorder = await startRecorder(scratch, front, '--client');
  const body = { name: 'p', kind: 'vhost-user', path: rec, mode: 'client', reflect: true };
  await vswitch.api('/v1/ports', 'POST', body);
  const testpmd = scratch.own(
    await Testpmd.start({ vdevs: [virtioUserVdev(0, { path: front, server: true })] }),
  );
  await vswitch.waitState('p', 'up', 15_000);
  await testpmd.start(1);
  await waitFor('frames that come back', 5000, async () => {
    return (await testpmd.stats())[0]!.rxPackets > 1000;
  });
  await testpmd.close();
  const recorded = await recorder.end();
  checkMessages(recorded);
  const [first] = recorded.messages;
  deepEqual([first!.from, first!.kind], ['front-end', 'request']);
  const table = recorded.messages.find(({ name }) => name === 'VHOST_USER_SET_MEM_TABLE')!;
  ok(table.fds.every(({ kind }) => kind === 'memfd' || kind === 'hugetlbfs'));
});

test('software guest and testpmd’s net_vhost', async (t) => {
  if (!requirePeer(t, 'dpdk-testpmd') || !requireRoot(t)) return;
  await using scratch = new Scratch();
  const paths = [scratch.path('v0'), scratch.path('v1')] as const;
  const vdevs = paths.map((path, i) => vhostVdev(i, path));
  const testpmd = scratch.own(await Testpmd.start({ vdevs }));
  await testpmd.start();
  const recorder = await startRecorder(scratch, paths[0], '--rings');
  const b = scratch.own(await Host.join(paths[1], 2));
  const a = await Host.join(recorder.socket, 1);
  ok(await waitFor('an answer', 5000, () => a.hears(ip4(2), 56, 500)));
  ok(await b.hears(ip4(1)));
  await a.close();
  const recorded = await recorder.end();
  checkMessages(recorded);
  ok(recorded.events.some(({ event }) => event === 'call'));
});

test('QEMU: a guest pings; the replay on our back-end and on DPDK’s', async (t) => {
  if (!requirePeer(t, 'qemu-system-x86_64', 'linux kernel', 'busybox')) return;
  await using scratch = new Scratch();
  const vswitch = await startSwitch(scratch, { a: '', b: '', again: '' });
  const recorder = await startRecorder(scratch, scratch.path('a'), '--rings');
  scratch.own(await Host.join(scratch.path('b'), 2));
  const nic = { mode: 'client', queuePairs: 1, packed: false, mrgRxbuf: true, mtu: null } as const;
  const guest = LinuxGuest.launch({
    name: 'guest',
    ip: '10.0.0.1/24',
    nics: [{ ...nic, path: recorder.socket, mac: '52:54:00:00:0e:01' }],
  });
  scratch.own(guest);
  await guest.waitReady();
  await checkPing(guest, ip4(2));
  await guest.close();
  await vswitch.waitState('a', 'listening');
  const recorded = await recorder.end();
  checkMessages(recorded);
  ok(recorded.events.some(({ event }) => event === 'kick'));

  await t.test('ours answers the same', async () => {
    const { status, report } = await replay(recorder.out, scratch.path('again'));
    const wrong = report.sessions.flatMap((each) => each.differences).filter((d) => !d.allowed);
    deepEqual(wrong, []);
    equal(status, 0);
  });

  await t.test('DPDK goes through it and differs in what it offers', async (sub) => {
    if (!requirePeer(sub, 'dpdk-testpmd') || !requireRoot(sub)) return;
    const path = scratch.path('dpdk');
    const testpmd = scratch.own(await Testpmd.start({ vdevs: [vhostVdev(0, path)] }));
    await sleep(200);
    const { status, report } = await replay(recorder.out, path);
    equal(status, 1);
    const wrong = report.sessions.flatMap((each) => each.differences).filter((d) => !d.allowed);
    sub.diagnostic(JSON.stringify(wrong));
    const names = new Set(wrong.map(({ name }) => name));
    ok(names.has('VHOST_USER_GET_FEATURES') && names.has('VHOST_USER_GET_PROTOCOL_FEATURES'));
    ok(!wrong.some(({ field }) => field === 'answer'), 'it answers to the end');
    await testpmd.close();
  });
});
