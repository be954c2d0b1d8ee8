/**
 * /dev/vhost-vsock under the software guest's socket stack; the host's end is the kernel's own
 * AF_VSOCK, reached with socat.
 */
// @test-host time-limit=600 long
import { deepEqual, equal, match, ok, rejects, throws } from 'node:assert/strict';
import {
  execFile,
  execFileSync,
  spawn,
  type ChildProcess,
  type ChildProcessByStdio,
} from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { join } from 'node:path';
import type { Readable, Writable } from 'node:stream';
import { after, test } from 'node:test';
import { promisify } from 'node:util';
import { GuestIommu, VsockGuest, VsockStack, type IommuMode } from '../../src/guest/index.ts';
import { openFdCount } from '../../src/sys/index.ts';
import { VhostVsockBackend } from '../../src/vhost-kernel/index.ts';
import { VHOST_F_LOG_ALL } from '../../src/wire/vhost-user.ts';
import { hasFeature, VIRTIO_F_VERSION_1 } from '../../src/wire/virtio.ts';
import { requirePeer } from '../peers/require-peer.ts';
import { Scratch, sleep, waitFor } from '../peers/scratch.ts';
import { loadModules, vhostThreads } from './tap-guest.ts';

const run = promisify(execFile);
loadModules('vhost_vsock');
const CID = 42;
const MAIN = join(import.meta.dirname, '..', '..', 'src', 'cli', 'main.ts');

type Socat = ChildProcessByStdio<Writable, Readable, null>;

/** Children of a test that failed would keep the machine waiting for this file. */
const children = new Set<ChildProcess>();
after(() => children.forEach((child) => child.kill('SIGKILL')));

function owned<C extends ChildProcess>(child: C): C {
  children.add(child);
  child.once('exit', () => children.delete(child));
  return child;
}

const socat = (...addresses: string[]): Socat =>
  owned(spawn('socat', ['-t', '30', ...addresses], { stdio: ['pipe', 'pipe', 'inherit'] }));

const sum = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

/** Without async iteration, which would end the other direction of a Duplex as well. */
async function readAll(stream: Readable): Promise<Buffer> {
  const chunks: Buffer[] = [];
  stream.on('data', (chunk: Buffer) => chunks.push(chunk));
  await once(stream, 'end');
  return Buffer.concat(chunks);
}

function pattern(bytes: number): Buffer {
  const all = Buffer.alloc(bytes);
  for (let i = 0; i < bytes; i++) all[i] = (i * 31 + (i >> 8)) & 0xff;
  return all;
}

async function start(scratch: Scratch, iommuMode?: IommuMode) {
  const iommu = iommuMode === undefined ? null : new GuestIommu(iommuMode);
  const backend = VhostVsockBackend.open({
    cid: CID,
    ...(iommu === null ? {} : { onMiss: (iova, write) => iommu.missed(iova, write) }),
  });
  iommu?.setPeer(backend.iotlb);
  const options = iommu === null ? {} : { addressSpace: iommu };
  const guest = scratch.own(await VsockGuest.start(backend, options));
  return { backend, guest, iommu, stack: new VsockStack({ link: guest }) };
}

/** Until somebody listens: a process needs a moment to start. */
async function connectSoon(stack: VsockStack, port: number) {
  for (let attempt = 0; ; attempt++) {
    try {
      return await stack.connect(2, port);
    } catch (error) {
      if ((error as { code?: string }).code !== 'ERR_VRING_VSOCK_REFUSED' || attempt > 50)
        throw error;
      await sleep(100);
    }
  }
}

for (const mode of [undefined, 'offset', 'scatter'] as const) {
  const where = mode === undefined ? '' : `, behind an IOMMU (${mode})`;
  test(`the guest connects to a program of the host, bytes both ways${where}`, async (t) => {
    if (!requirePeer(t, 'socat')) return;
    await using scratch = new Scratch();
    const { stack, iommu } = await start(scratch, mode);
    const host = socat('VSOCK-LISTEN:5000', 'STDIO');
    const stream = await connectSoon(stack, 5000);
    const [there, back] = [pattern(1_500_000), Buffer.from(pattern(1_300_001).toReversed())];
    const received = readAll(host.stdout);
    host.stdin.end(back);
    stream.end(there);
    const [atHost, atGuest] = await Promise.all([received, readAll(stream)]);
    equal(atHost.length, there.length);
    equal(sum(atHost), sum(there));
    equal(sum(atGuest), sum(back));
    await stream.ended;
    equal(stack.streams, 0);
    if (iommu !== null) {
      ok(iommu.counters.misses > 0);
      equal(iommu.counters.faults, 0);
    }
  });
}

test('programs of the host connect to the guest, several at a time', async (t) => {
  if (!requirePeer(t, 'socat')) return;
  await using scratch = new Scratch();
  const { stack, guest } = await start(scratch);
  stack.listen(7, (stream) => {
    stream.on('error', (error) => console.error(error));
    stream.pipe(stream);
  });
  const sent = pattern(400_000);
  const echoes = Array.from({ length: 4 }, async (_, i) => {
    const host = socat(`VSOCK-CONNECT:${CID}:7`, 'STDIO');
    const received = readAll(host.stdout);
    const mine = sent.subarray(i * 1000);
    host.stdin.end(mine);
    equal(sum(await received), sum(mine));
  });
  await Promise.all(echoes);
  equal(stack.counters.accepted, 4);
  equal(guest.counters.rxMalformed, 0);
});

test('refused on both sides', async (t) => {
  if (!requirePeer(t, 'socat')) return;
  await using scratch = new Scratch();
  const { stack } = await start(scratch);
  await rejects(stack.connect(2, 5999), { code: 'ERR_VRING_VSOCK_REFUSED' });
  await rejects(run('socat', [`VSOCK-CONNECT:${CID}:5998`, 'STDIO']), /reset by peer/);
});

test('stop and resume in the middle of a stream', async (t) => {
  if (!requirePeer(t, 'socat')) return;
  await using scratch = new Scratch();
  const { stack, guest } = await start(scratch);
  const host = socat('VSOCK-LISTEN:5000', 'STDIO');
  const stream = await connectSoon(stack, 5000);
  const there = pattern(800_000);
  const received = readAll(host.stdout);
  stream.end(there);
  host.stdin.end('bye');
  stream.resume();
  for (let i = 0; i < 5; i++) {
    await guest.stop();
    await sleep(20);
    await guest.resume();
  }
  equal(sum(await received), sum(there));
});

test('the guest goes away: the program of the host hears of it; nothing is left', async (t) => {
  if (!requirePeer(t, 'socat')) return;
  await using scratch = new Scratch();
  const before = openFdCount();
  const { stack, guest } = await start(scratch);
  equal(vhostThreads().length, 1);
  const host = socat('-u', 'VSOCK-LISTEN:5000', 'STDOUT'); // ends when its socket does
  const exit = once(host, 'close');
  const stream = await connectSoon(stack, 5000);
  stream.on('error', () => undefined);
  const heard = readAll(host.stdout);
  stream.write('hello');
  await waitFor('the host', 5000, () => guest.counters.txPackets > 1);
  await sleep(100);
  await guest.close();
  equal((await heard).toString(), 'hello');
  host.stdin.destroy();
  await exit;
  deepEqual(vhostThreads(), []);
  ok(openFdCount() <= before, 'no fd of ours');
});

test('context ids: out of range, in use, free again', async () => {
  for (const cid of [0, 2, 2 ** 32 - 1, 2 ** 32, 3.5]) {
    throws(() => VhostVsockBackend.open({ cid }), { code: 'ERR_VRING_VSOCK_CID' });
  }
  const first = VhostVsockBackend.open({ cid: CID });
  throws(() => VhostVsockBackend.open({ cid: CID }), {
    code: 'ERR_VRING_VSOCK_CID_BUSY',
    message: 'context id 42 is in use on this host: end that guest, or take another id',
  });
  await first.close();
  const second = VhostVsockBackend.open({ cid: CID });
  const features = await second.getFeatures();
  ok(hasFeature(features, VIRTIO_F_VERSION_1));
  equal(hasFeature(features, VHOST_F_LOG_ALL), false);
  equal(second.dirtyLog, null);
  deepEqual(await second.getConfig(0, 8), Uint8Array.of(CID, 0, 0, 0, 0, 0, 0, 0));
  await rejects(second.getConfig(4, 8), { code: 'ERR_VRING_CONFIG_RANGE' });
  await second.close();
});

test('`vring guest vsock`: connect, listen and echo', async (t) => {
  if (!requirePeer(t, 'socat')) return;
  const vsock = async (ready: RegExp | null, ...args: string[]) => {
    const all = [MAIN, 'guest', 'vsock', '--backend', `vhost-vsock:${CID}`, '--json', ...args];
    const child = owned(spawn(process.execPath, all, { stdio: ['pipe', 'pipe', 'pipe'] }));
    let messages = '';
    child.stderr.on('data', (chunk) => (messages += chunk));
    if (ready !== null) await waitFor('the guest', 60_000, () => ready.test(messages));
    return { child, messages: () => messages };
  };
  const bytes = pattern(200_000);

  const host = socat('VSOCK-LISTEN:5001', 'STDIO');
  const atHost = readAll(host.stdout);
  await sleep(500);
  const { child: guest, messages } = await vsock(null, 'connect', '5001');
  const atGuest = readAll(guest.stdout);
  guest.stdin.end(bytes);
  host.stdin.end('an answer');
  equal(sum(await atHost), sum(bytes));
  equal((await atGuest).toString(), 'an answer');
  deepEqual(await once(guest, 'close'), [0, null]);
  deepEqual(JSON.parse(messages()), { sent: 200_000, received: 9 });

  const { child: listening } = await vsock(/listens on port 5002/, 'listen', '5002');
  const heard = readAll(listening.stdout);
  listening.stdin.end('hello');
  const caller = socat(`VSOCK-CONNECT:${CID}:5002`, 'STDIO');
  const answer = readAll(caller.stdout);
  caller.stdin.end(bytes);
  equal((await answer).toString(), 'hello');
  equal(sum(await heard), sum(bytes));
  deepEqual(await once(listening, 'close'), [0, null]);

  const { child: echoing } = await vsock(/echoes on port 7/, 'echo', '7');
  const speaker = socat(`VSOCK-CONNECT:${CID}:7`, 'STDIO');
  const echo = readAll(speaker.stdout);
  speaker.stdin.end(bytes);
  equal(sum(await echo), sum(bytes));
  echoing.kill();
  deepEqual(await once(echoing, 'exit'), [0, null]);
});

test('no permission, and no module', () => {
  process.seteuid!(65534);
  try {
    throws(() => VhostVsockBackend.open({ cid: CID }), { code: 'ERR_VRING_DEVICE_PERMISSION' });
  } finally {
    process.seteuid!(0);
  }
  execFileSync('modprobe', ['-r', 'vhost_vsock']);
  try {
    throws(
      () => VhostVsockBackend.open({ cid: CID }),
      (error: Error & { code: string }) => {
        equal(error.code, 'ERR_VRING_DEVICE_MISSING');
        match(error.message, /vhost-vsock does not exist; load its module: modprobe vhost_vsock/);
        return true;
      },
    );
  } finally {
    loadModules('vhost_vsock');
  }
});
