import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { TEST_FEATURES, TestBackend } from '../guest/testing.ts';
import { BackendListener } from '../vhost-user/index.ts';

const MAIN = fileURLToPath(new URL('main.ts', import.meta.url));
const folder = mkdtempSync(join(tmpdir(), 'vring-guest-'));
const sockets = ['a.sock', 'b.sock'].map((name) => join(folder, name));
const listeners: BackendListener[] = [];

before(() => {
  const backends: TestBackend[] = [];
  for (const [self, path] of sockets.entries()) {
    const mac = Uint8Array.of(2, 0, 0, 0, 0, self + 1);
    const onFrame = (packet: Uint8Array): void => void backends[1 - self].deliver(packet);
    backends.push(new TestBackend({ features: TEST_FEATURES, config: { mac }, onFrame }));
    listeners.push(new BackendListener({ path, target: backends[self] }));
  }
});

after(async () => {
  for (const listener of listeners) await listener.close();
  rmSync(folder, { recursive: true, force: true });
});

type Result = { status: number | null; out: string; err: string };

class Run {
  readonly child: ChildProcess;
  out = '';
  err = '';

  constructor(...args: string[]) {
    this.child = spawn(process.execPath, [MAIN, 'guest', 'net', ...args]);
    this.child.stdout?.on('data', (data: Buffer) => (this.out += data.toString()));
    this.child.stderr?.on('data', (data: Buffer) => (this.err += data.toString()));
  }

  /** Waits for the line that says that it answers now. */
  async ready(): Promise<void> {
    while (!this.out.includes('ready')) {
      assert.equal(this.child.exitCode, null, this.err);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  async end(signal?: NodeJS.Signals): Promise<Result> {
    if (signal !== undefined) this.child.kill(signal);
    if (this.child.exitCode === null) await once(this.child, 'close');
    return { status: this.child.exitCode, out: this.out, err: this.err };
  }
}

const guest = (...args: string[]): Promise<Result> => new Run(...args).end();
const lastJson = (text: string) => JSON.parse(text.trim().split('\n').at(-1) ?? '');

test('wrong usage is status 2 and says what is wrong', async () => {
  const socket = ['--socket', sockets[0]];
  const cases: [string[], RegExp][] = [
    [['ping', '10.0.0.2'], /--socket/],
    [[...socket, '--backend', 'in-process', 'info'], /two back-ends/],
    [['--backend', 'vhost-nut:tap0', 'info'], /expected is vhost-user:PATH\[,server\], vhost-net/],
    [['--backend', 'in-process', '--server', 'info'], /--server: is for vhost-user/],
    [['--backend', 'in-process', '--migrate-to', 'in-process', 'info'], /is --backend, too/],
    [[...socket, 'ping', '10.0.0.2'], /--ip/],
    [[...socket, '--ip', '10.0.0.1/24', 'ping', 'nobody'], /nobody/],
    [[...socket, '--ip', '10.0.0.1/99', 'ping', '10.0.0.2'], /10\.0\.0\.1\/99/],
    [[...socket, '--features', '+magic', 'info'], /magic/],
    [[...socket, '--ring', 'round', 'info'], /round/],
    [[...socket, '--ring-size', '100', 'info'], /power of two/],
    [[...socket, 'pps', '--size', '1'], /62/],
    [[...socket, 'dance'], /dance/],
  ];
  const results = await Promise.all(cases.map(([args]) => guest(...args)));
  for (const [i, [args, message]] of cases.entries()) {
    assert.equal(results[i].status, 2, args.join(' '));
    assert.match(results[i].err, message);
    assert.equal(results[i].out, '');
  }
});

test('a missing back-end is status 1, named, with a way out', async () => {
  const path = join(folder, 'nobody.sock');
  const { status, out, err } = await guest('--socket', path, '--json', 'info');
  assert.equal(status, 1);
  assert.ok(err.includes(path));
  assert.match(err, /vring switch --port/);
  assert.equal(lastJson(out).error.code, 'ERR_VRING_GUEST_NO_BACKEND');
});

test('help has examples', async () => {
  const { status, out } = await guest('--help');
  assert.equal(status, 0);
  assert.match(out, /Examples:/);
});

test('info prints offered and negotiated features', async () => {
  const { status, out } = await guest('--socket', sockets[0], '--json', '--ring', 'packed', 'info');
  assert.equal(status, 0);
  const info = lastJson(out);
  assert.ok(info.negotiated.names.includes('RING_PACKED'));
  assert.equal(info.mac, '02:00:00:00:00:01');
  assert.equal(info.config.mtu, 1500);
});

test('a guest that is its own device: what it sends comes back', async () => {
  const args = ['--backend', 'in-process', '--json', '--ring', 'packed'];
  const loop = ['pps', '--loop', '--window', '64', '--seconds', '0.5', '--verify-every', '1'];
  const { status, out, err } = await guest(...args, ...loop);
  assert.equal(status, 0, err);
  const { records, calls } = lastJson(out);
  assert.ok(records.sent > 0);
  assert.deepEqual(
    [records.good, records.verified, records.corrupt],
    Array(2).fill(records.sent).concat(0),
  );
  assert.equal(calls, 0, 'nobody waited for one');
  const info = lastJson((await guest(...args, 'info')).out);
  assert.deepEqual([info.kind, info.backend], ['in-process', 'in-process']);
});

test('a kernel back-end that is not there is status 1, with the remedy', async () => {
  const missing = '/dev/vhost-vdpa-none';
  const { status, err } = await guest('--backend', `vhost-vdpa:${missing}`, 'info');
  assert.equal(status, 1);
  assert.match(err, /vhost-vdpa-none does not exist; .*modprobe/);
});

test('echo answers ping over both families until SIGTERM', async () => {
  const own = ['--ip', '10.0.0.2/24', '--ip6', 'fd00::2/64'];
  const echo = new Run('--socket', sockets[1], ...own, '--json', 'echo');
  await echo.ready();
  const from = ['--socket', sockets[0], '--ip', '10.0.0.1/24', '--ip6', 'fd00::1/64'];
  for (const to of ['10.0.0.2', 'fd00::2']) {
    const { status, out } = await guest(...from, 'ping', to, '-c', '2', '-i', '0.05', '-W', '5');
    assert.equal(status, 0);
    assert.match(out, /2 sent, 2 received, 0 % lost/);
  }
  const nobody = await guest(...from, '--json', 'ping', '10.0.0.9', '-c', '1');
  assert.equal(nobody.status, 1);
  assert.equal(lastJson(nobody.out).received, 0);
  const { status, out } = await echo.end('SIGTERM');
  assert.equal(status, 0);
  assert.equal(lastJson(out).counters.echoRequestsIn, 4);
});

test('a file arrives as it was', async () => {
  const [source, target] = [join(folder, 'source'), join(folder, 'target')];
  const bytes = Buffer.alloc(200_001, 'vring');
  writeFileSync(source, bytes);
  const into = ['--ip', '10.0.0.2/24', 'bulk-receive', '--out', target, '--wait', '10'];
  const receiver = new Run('--socket', sockets[1], ...into);
  await receiver.ready();
  const from = ['--socket', sockets[0], '--ip', '10.0.0.1/24', '--json'];
  const { status, out } = await guest(...from, 'bulk-send', '10.0.0.2', '--file', source);
  assert.equal(status, 0);
  assert.equal(lastJson(out).matches, true);
  assert.equal((await receiver.end()).status, 0);
  assert.ok(readFileSync(target).equals(bytes));
});

test('pps and sink: what is sent is counted', async () => {
  const sink = new Run('--socket', sockets[1], '--json', 'sink', '--min-frames', '50');
  await sink.ready();
  const to = ['--to', '02:00:00:00:00:02', '--rate', '1k', '--seconds', '0.5'];
  const sent = await guest('--socket', sockets[0], '--json', 'pps', ...to);
  assert.equal(sent.status, 0);
  await new Promise((resolve) => setTimeout(resolve, 200));
  const received = await sink.end('SIGTERM');
  assert.equal(received.status, 0, received.err);
  const { records } = lastJson(received.out);
  assert.equal(records.good, lastJson(sent.out).sent.frames);
  assert.equal(records.lost + records.corrupt, 0);
});

test('a guest on a back-end that goes away ends with status 1', async () => {
  const echo = new Run('--socket', sockets[1], '--ip', '10.0.0.2/24', 'echo');
  await echo.ready();
  await listeners[1].session?.close();
  const { status, err } = await echo.end();
  assert.equal(status, 1);
  assert.match(err, /b\.sock/);
});
