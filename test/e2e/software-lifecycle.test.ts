/**
 * Ports, guests and switches that come and go, and captures of what they say: `vring switch` as a
 * user starts it, with our own guests, without QEMU or DPDK.
 */
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict';
import { existsSync, readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { runTraffic } from '../../src/guest/index.ts';
import { findProgram } from '../../src/vmm/index.ts';
import { execFileSync } from 'node:child_process';
import { readPcapng, type CapturedFrame } from '../peers/pcapng.ts';
import { startCapture } from '../peers/recording.ts';
import { requireRoot } from '../peers/require-peer.ts';
import { Scratch, sleep, waitFor } from '../peers/scratch.ts';
import { Host, VringProcess, ip4, ip6, macOf, runVring } from '../peers/software-guest.ts';
import { SwitchProcess, startSwitch, vring } from '../peers/switch.ts';

/** The ICMP type of an IPv4 echo, or -1. */
const echoType = ({ bytes }: CapturedFrame): number =>
  bytes.readUInt16BE(12) === 0x0800 && bytes[23] === 1 ? bytes[34]! : -1;

test('capture of a port', { timeout: 60_000 }, async (t) => {
  await using scratch = new Scratch();
  const vswitch = await startSwitch(scratch, { a: '', b: '' });
  const a = scratch.own(await Host.join(scratch.path('a'), 1));
  scratch.own(await Host.join(scratch.path('b'), 2));
  ok(await a.hears(ip4(2)));

  await t.test('both directions in a file, ended by --count', async () => {
    const file = scratch.path('count.pcapng');
    const capture = await startCapture(vswitch, 'a', '-w', file, '--count', '6');
    for (let i = 0; i < 5; i++) ok(await a.hears(ip4(2)));
    deepEqual(await capture.ended(), { code: 0, signal: null });
    match(capture.err, /6 frames, \d+ bytes in /);
    const frames = readPcapng(readFileSync(file));
    deepEqual(frames.map(echoType), [8, 0, 8, 0, 8, 0], 'requests and replies take turns');
    deepEqual(
      frames.map(({ direction }) => direction),
      [1, 2, 1, 2, 1, 2],
    );
    for (const [i, { nanoseconds, bytes, fullBytes }] of frames.entries()) {
      equal(bytes.length, fullBytes);
      const ageMs = Date.now() - Number(nanoseconds / 1_000_000n);
      ok(ageMs >= 0 && ageMs < 30_000, `captured ${ageMs} ms ago`);
      ok(i === 0 || nanoseconds >= frames[i - 1]!.nanoseconds);
    }
    equal(statSync(file).mode & 0o777, 0o600);
    if (findProgram('tshark') === null) return t.diagnostic('tshark is not installed');
    const text = execFileSync('tshark', ['-n', '-r', file], { encoding: 'utf8', stdio: 'pipe' });
    equal(text.match(/Echo \(ping\) request/g)?.length, 3);
    equal(text.match(/Echo \(ping\) reply/g)?.length, 3);
  });

  await t.test('to standard output, cut by --snaplen, until SIGINT', async () => {
    const file = scratch.path('snap.pcapng');
    const args = ['-w', file, '--snaplen', '64'];
    const capture = await startCapture(vswitch, 'b', ...args);
    ok(await a.hears(ip4(2), 1000));
    ok(await a.hears(ip6(2), 1000));
    await sleep(300);
    capture.signal('SIGINT');
    deepEqual(await capture.ended(), { code: 0, signal: null });
    const frames = readPcapng(readFileSync(file));
    ok(frames.length >= 4);
    ok(frames.every(({ bytes }) => bytes.length <= 64));
    equal(Math.max(...frames.map(({ fullBytes }) => fullBytes)), 14 + 40 + 8 + 1000);
  });

  await t.test('a second one of the same port is refused, until the first ends', async () => {
    const first = await startCapture(vswitch, 'a', '-w', scratch.path('first.pcapng'));
    await rejects(vswitch.api('/v1/ports/a/capture'), /: 409 .*ERR_VRING_CAPTURE_BUSY/);
    const file = scratch.path('second.pcapng');
    const again = ['capture', 'a', '-w', file, '--control', vswitch.control];
    const second = await runVring(...again);
    equal(second.status, 1);
    match(second.err, /port a is being captured already/);
    equal(existsSync(file), false, 'no empty file is left');
    first.signal('SIGTERM');
    equal((await first.ended()).code, 0);
    const third = await startCapture(vswitch, 'a', '-w', file, '--count', '1');
    ok(await a.hears(ip4(2)));
    equal((await third.ended()).code, 0);
  });

  await t.test('a port that is removed ends its capture', async () => {
    const file = scratch.path('removed.pcapng');
    const capture = await startCapture(vswitch, 'b', '-w', file);
    ok(await a.hears(ip4(2)));
    await vring('port', 'remove', 'b', '--control', vswitch.control);
    equal((await capture.ended()).code, 0);
    equal(readPcapng(readFileSync(file)).length, 2);
  });
});

test('client mode: who listens is the guest', { timeout: 60_000 }, async (t) => {
  await using scratch = new Scratch();
  const socket = scratch.path('c');
  const ports = [`a=vhost-user:${scratch.path('a')}`, `c=vhost-user:${socket},client`];
  const control = scratch.path('control');
  const start = () => SwitchProcess.start({ ports, control });
  const listen = () => {
    const own = ['--socket', socket, '--mac', macOf(2), '--ip', `${ip4(2)}/24`, '--json'];
    return scratch.own(new VringProcess('guest', 'net', '--server', ...own, 'echo'));
  };
  const reached = async () => {
    const a = await Host.join(scratch.path('a'), 1);
    const answered = await a.hears(ip4(2));
    await a.close();
    return answered;
  };
  let vswitch = scratch.own(await start());

  await t.test('the port says why it waits, and finds a guest that comes late', async () => {
    const waiting = await vswitch.waitState('c', 'connecting');
    match(waiting.reason?.message ?? '', /c/);
    match(waiting.reason?.code ?? '', /^ERR_VRING_/);
    const guest = listen();
    await vswitch.waitState('c', 'up');
    ok(await reached());
    await guest.close();
  });

  await t.test('it finds the next guest', async () => {
    await vswitch.waitState('c', 'connecting');
    const guest = listen();
    equal((await vswitch.waitState('c', 'up')).sessions, 2);
    ok(await reached());
    await vswitch.close();
    equal((await guest.ended()).code, 1);
    match(guest.err, /c/);
  });

  await t.test('a switch that starts again finds the guest that listens', async () => {
    const guest = listen();
    await guest.says(/waiting at/);
    vswitch = scratch.own(await start());
    await vswitch.waitState('c', 'up');
    ok(await reached());
    process.kill(vswitch.pid, 'SIGKILL');
    equal((await guest.ended()).code, 1);
    const next = listen();
    await next.says(/waiting at/);
    vswitch = scratch.own(await start());
    await vswitch.waitState('c', 'up');
    ok(await reached());
  });
});

test('a guest that is killed while it sends', { timeout: 60_000 }, async () => {
  await using scratch = new Scratch();
  const vswitch = await startSwitch(scratch, { a: ',vlan=9', d: ',vlan=9', b: '', c: '' });
  scratch.own(await Host.join(scratch.path('d'), 4)); // what a floods is written into its memory
  const many = { ringSize: 1024, notify: 'manual' } as const;
  const b = scratch.own(await Host.join(scratch.path('b'), 2, many));
  const c = scratch.own(await Host.join(scratch.path('c'), 3, many));
  c.guest.announce();
  const stop = new AbortController();
  const sink = runTraffic({ guest: c.guest, signal: stop.signal });
  const generate = { sizeBytes: 200, targetMac: macOf(3), rate: 500, frames: 1500 };
  const neighbours = runTraffic({ guest: b.guest, generate });

  for (let round = 1; round <= 3; round++) {
    const own = ['guest', 'net', '--socket', scratch.path('a'), '--mac', macOf(1)];
    const victim = scratch.own(new VringProcess(...own, 'pps', '--rate', '20k', '--seconds', '60'));
    await waitFor('frames of the victim', 8000, async () => {
      const port = await vswitch.port('a');
      return port.sessions === round && port.counters['rxFrames']! > round * 300;
    });
    victim.signal('SIGKILL');
    equal((await victim.ended()).signal, 'SIGKILL');
    const port = await vswitch.waitState('a', 'listening');
    match(port.reason?.message ?? '', /front-end/, 'the port says why');
    deepEqual([port.queues, port.memory], [[], null]);
  }
  await neighbours;
  await sleep(100);
  stop.abort();
  const { records } = await sink;
  deepEqual([records.good, records.lost], [1500, 0], 'the neighbours lost nothing');

  const successor = scratch.own(await Host.join(scratch.path('a'), 5));
  await vswitch.waitState('a', 'up');
  equal((await vswitch.port('a')).reason, null);
  ok(await successor.hears(ip4(4)));
  ok(vswitch.isRunning);
});

test('ports are added and removed while others work', { timeout: 60_000 }, async (t) => {
  await using scratch = new Scratch();
  const vswitch = await startSwitch(scratch, { a: '' });
  const socket = scratch.path('n');
  const command = (...args: string[]) => runVring('port', ...args, '--control', vswitch.control);
  const a = scratch.own(await Host.join(scratch.path('a'), 1));

  await t.test('an added port is a port', async () => {
    const added = await command('add', `n=vhost-user:${socket}`);
    equal(added.out, `port n is listening: vhost-user:${socket}\n`);
    const n = await Host.join(socket, 2);
    ok(await a.hears(ip4(2)));
    await n.close();
  });

  await t.test('what is wrong is refused and changes nothing', async () => {
    const twins = await command('add', `n=vhost-user:${scratch.path('other')}`);
    deepEqual([twins.status, twins.out], [1, '']);
    match(twins.err, /the name n already belongs to port n/);
    const path = await command('add', `m=vhost-user:${socket}`);
    equal(path.status, 1);
    match(path.err, /already belongs to port n/);
    const spec = await command('add', 'm=vhost-user');
    equal(spec.status, 2);
    const nobody = await command('remove', 'm');
    equal(nobody.status, 1);
    match(nobody.err, /there is no port named "m"/);
    equal((await vswitch.ports()).length, 2);
    equal(existsSync(scratch.path('other')), false);
  });

  await t.test('a removed port ends its guest and takes its socket away', async () => {
    const guest = await VringProcess.guest(socket, 2, 'echo');
    ok(await a.hears(ip4(2)));
    equal((await command('remove', 'n')).status, 0);
    equal((await guest.ended()).code, 1);
    match(guest.err, /closed the connection|n:/);
    equal(existsSync(socket), false);
    equal(await a.hears(ip4(2), 56, 300), false);
    deepEqual(
      (await vswitch.ports()).map(({ name }) => name),
      ['a'],
    );
  });

  await t.test('twenty ports that come and go leave nothing behind', async () => {
    const descriptors = () => readdirSync(`/proc/${vswitch.pid}/fd`).length;
    const round = async (i: number) => {
      const port = { name: 'n', kind: 'vhost-user', path: socket, queuePairs: 2 };
      await vswitch.api('/v1/ports', 'POST', port);
      const n = await Host.join(socket, 2, { queuePairs: 2, packed: i % 2 === 0 });
      ok(await a.hears(ip4(2)));
      await vswitch.api('/v1/ports/n', 'DELETE');
      await n.close();
    };
    await round(0);
    await sleep(200);
    const before = descriptors();
    for (let i = 0; i < 20; i++) await round(i);
    await sleep(200);
    ok(descriptors() <= before, `${descriptors()} descriptors after ${before}`);
  });
});

test('the end of a switch, and its sockets', { timeout: 60_000 }, async (t) => {
  await using scratch = new Scratch();
  const control = scratch.path('control');
  const socket = scratch.path('a');
  const ports = [`a=vhost-user:${socket}`];

  await t.test('SIGTERM: status 0, guests are told, sockets are gone', async () => {
    const vswitch = scratch.own(await SwitchProcess.start({ ports, control }));
    const guest = await VringProcess.guest(socket, 1, 'echo');
    deepEqual(await vswitch.close(), { code: 0, signal: null });
    deepEqual([existsSync(control), existsSync(socket)], [false, false]);
    equal((await guest.ended()).code, 1);
  });

  await t.test('stale sockets of a killed switch are taken over', async () => {
    const killed = scratch.own(await SwitchProcess.start({ ports, control }));
    process.kill(killed.pid, 'SIGKILL');
    await killed.ended();
    deepEqual([existsSync(control), existsSync(socket)], [true, true]);
    const successor = scratch.own(await SwitchProcess.start({ ports, control }));
    const guest = await Host.join(socket, 1);
    await successor.waitState('a', 'up');
    await guest.close();
    await successor.close();
  });

  await t.test('sockets in use are refused, and their owner goes on', async () => {
    const owner = scratch.own(await SwitchProcess.start({ ports, control }));
    const again = await runVring('switch', '--control', control, '--port', 'b=tap:none');
    equal(again.status, 1);
    match(again.err, /control is in use: a switch is running there/);
    const other = ['--control', scratch.path('other')];
    const port = await runVring('switch', ...other, '--port', ports[0]!);
    equal(port.status, 1);
    match(port.err, /another process listens/);
    ok(port.err.includes(socket), 'it names the socket');
    equal(existsSync(scratch.path('other')), false);
    const guest = await Host.join(socket, 1);
    await owner.waitState('a', 'up');
    await guest.close();
    await owner.close();
  });

  await t.test('a file that is no socket is left alone', async () => {
    writeFileSync(scratch.path('file'), 'mine');
    const spec = `a=vhost-user:${scratch.path('file')}`;
    const { status, err } = await runVring('switch', '--control', control, '--port', spec);
    equal(status, 1);
    ok(err.includes(scratch.path('file')));
    equal(readFileSync(scratch.path('file'), 'utf8'), 'mine');
  });

  await t.test('mode and owner of the sockets', async (own) => {
    if (!requireRoot(own)) return;
    const config = scratch.path('switch.yaml');
    writeFileSync(
      config,
      `control: {path: ${control}, mode: 0600, owner: "1234:4321"}\n` +
        `ports: [{name: a, kind: vhost-user, path: ${socket}, socketMode: 0640, socketOwner: "1:2"}]\n`,
    );
    const more = [`b=vhost-user:${scratch.path('b')},mode=0606,owner=12:34`];
    const args = ['--config', config];
    const vswitch = scratch.own(await SwitchProcess.start({ ports: more, control, args }));
    const facts = (path: string) => {
      const { mode, uid, gid } = statSync(path);
      return [(mode & 0o7777).toString(8), uid, gid];
    };
    deepEqual(facts(control), ['600', 1234, 4321]);
    deepEqual(facts(socket), ['640', 1, 2]);
    deepEqual(facts(scratch.path('b')), ['606', 12, 34]);
    await vswitch.close();
  });
});
