/**
 * `vring serve blk` over vhost-user: held against the conformance checks, and under our own block
 * driver, which knows of every byte what it must be, also when the server is killed meanwhile.
 */
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict';
import { statSync, truncateSync } from 'node:fs';
import { test } from 'node:test';
import { type DeviceProfile, PROFILES, runBackEnd } from '../../src/conformance/index.ts';
import {
  BlkGuest,
  type BlkConnectOptions,
  connectBlkGuest,
  runBlkWorkload,
} from '../../src/guest/index.ts';
import {
  VIRTIO_BLK_S_IOERR,
  VIRTIO_BLK_S_OK,
  VIRTIO_BLK_T_GET_ID,
  VIRTIO_BLK_T_IN,
  VIRTIO_BLK_T_OUT,
} from '../../src/wire/virtio-blk.ts';
import { BlkServer, createDiskFile } from '../peers/blk-server.ts';
import { Scratch, sleep, waitFor } from '../peers/scratch.ts';
import { vring } from '../peers/switch.ts';

const MIB = 2 ** 20;
const PROFILE = PROFILES['blk'] as DeviceProfile;

type Served = { readonly server: BlkServer; readonly socket: string; readonly file: string };

async function serve(scratch: Scratch, sizeBytes: number, ...words: string[]): Promise<Served> {
  const [socket, file] = [scratch.path('s'), createDiskFile(scratch.path('disk.img'), sizeBytes)];
  const server = scratch.own(await BlkServer.start('--socket', socket, '--file', file, ...words));
  return { server, socket, file };
}

async function connect(scratch: Scratch, options: BlkConnectOptions): Promise<BlkGuest> {
  return scratch.own(await connectBlkGuest(options));
}

test('every conformance check that applies passes', async () => {
  await using scratch = new Scratch();
  const { socket, server } = await serve(scratch, 16 * MIB, '--queues', '2', '--iommu');
  const patience = { answerMs: 5000, quietMs: 60, connectMs: 3000 };
  const report = await runBackEnd({ socket, profile: PROFILE, level: 'destructive', patience });
  const bad = report.checks.filter(({ verdict }) => verdict === 'fail' || verdict === 'error');
  deepEqual(
    bad.map(({ id, detail }) => `${id}: ${detail}`),
    [],
  );
  ok(report.counts.pass >= 310, `only ${report.counts.pass} checks applied`);
  ok(server.isRunning);
});

for (const packed of [false, true]) {
  const ring = packed ? 'packed' : 'split';

  test(`every byte is what it must be: ${ring} rings, two queues`, async (t) => {
    await using scratch = new Scratch();
    const { socket, server } = await serve(scratch, 32 * MIB, '--queues', '2');
    const guest = await connect(scratch, { socket, packed, queues: 2, requestBytes: 65536 });
    const report = await runBlkWorkload({
      guest,
      requests: 6000,
      readPercent: 40,
      discardPercent: 5,
      zeroPercent: 5,
      flushEvery: 20,
      minBytes: 4096,
      maxBytes: 65536,
      verify: true,
    });
    t.diagnostic(`${Math.round(report.iops)} requests per second`);
    checkReport(report);
    await guest.close();
    const { counters } = (await server.end()) as { counters: Record<string, number> };
    for (const kind of ['reads', 'writes', 'flushes', 'discards', 'writeZeroes']) {
      ok((counters[kind] ?? 0) > 0, `no ${kind}`);
    }
    deepEqual([counters['errors'], counters['faults'], counters['rejected']], [0, 0, 0]);
  });

  test(`nothing is lost when the server is killed: ${ring} rings`, async (t) => {
    await using scratch = new Scratch();
    const { socket, server, file } = await serve(scratch, 16 * MIB, '--queues', '2');
    const guest = await connect(scratch, { socket, packed, queues: 2, reconnect: true });
    const abort = new AbortController();
    const running = runBlkWorkload({
      guest,
      readPercent: 30,
      flushEvery: 50,
      minBytes: 512,
      maxBytes: 16384,
      verify: true,
      signal: abort.signal,
    });
    const words = ['--socket', socket, '--file', file, '--queues', '2'];
    let current = server;
    for (let kill = 0; kill < 3; kill++) {
      await sleep(300);
      await current.kill();
      current = scratch.own(await BlkServer.start(...words));
      await waitFor('the guest', 20_000, () => guest.reconnects === kill + 1);
    }
    await sleep(300);
    abort.abort();
    const report = await running;
    checkReport(report);
    equal(report.reconnects, 3);
    t.diagnostic(`${report.repeated} requests were given again`);
  });
}

function checkReport(report: Awaited<ReturnType<typeof runBlkWorkload>>): void {
  equal(report.errors, 0);
  equal(report.wrongLengths, 0);
  ok(report.verify !== null && report.verify.checked > 0, 'nothing was compared');
  const wrong = Object.values(report.verify.wrong);
  deepEqual(
    wrong,
    wrong.map(() => 0),
    JSON.stringify(report.verify.examples),
  );
}

test('a disk in memory, its serial number, and the end of the disk', async () => {
  await using scratch = new Scratch();
  const socket = scratch.path('s');
  scratch.own(await BlkServer.start('--socket', socket, '--memory', '8M', '--serial', 'mem-1'));
  const guest = await connect(scratch, { socket });
  const { requests } = guest;
  const id = await requests.send({ type: VIRTIO_BLK_T_GET_ID, sector: 0, readBytes: 20 });
  equal(Buffer.from(id.data).toString().replaceAll('\0', ''), 'mem-1');
  const bytes = Buffer.alloc(1024, 'last');
  const last = (8 * MIB) / 512 - 2;
  const put = { type: VIRTIO_BLK_T_OUT, write: bytes };
  equal((await requests.send({ ...put, sector: last })).status, VIRTIO_BLK_S_OK);
  equal((await requests.send({ ...put, sector: last + 1 })).status, VIRTIO_BLK_S_IOERR);
  const get = { type: VIRTIO_BLK_T_IN, readBytes: 1024 };
  ok(bytes.equals((await requests.send({ ...get, sector: last })).data));
  equal((await requests.send({ ...get, sector: last + 1 })).status, VIRTIO_BLK_S_IOERR);
});

test('a read-only disk refuses writes', async () => {
  await using scratch = new Scratch();
  const { socket } = await serve(scratch, MIB, '--read-only');
  const { requests } = await connect(scratch, { socket });
  const write = Buffer.alloc(512, 1);
  const answer = await requests.send({ type: VIRTIO_BLK_T_OUT, sector: 0, write });
  equal(answer.status, VIRTIO_BLK_S_IOERR);
  const read = await requests.send({ type: VIRTIO_BLK_T_IN, sector: 0, readBytes: 512 });
  deepEqual([read.status, read.data.every((byte) => byte === 0)], [VIRTIO_BLK_S_OK, true]);
});

test('a file that is cut short is an error of the medium, and the disk goes on', async () => {
  await using scratch = new Scratch();
  const { socket, file, server } = await serve(scratch, 4 * MIB);
  const { requests } = await connect(scratch, { socket });
  truncateSync(file, MIB);
  const get = { type: VIRTIO_BLK_T_IN, readBytes: 4096 };
  equal((await requests.send({ ...get, sector: 4096 })).status, VIRTIO_BLK_S_IOERR);
  equal((await requests.send({ ...get, sector: 0 })).status, VIRTIO_BLK_S_OK);
  const said = await server.waitEvent('io-error');
  deepEqual([said['op'], said['at'], said['error']], ['read', 4096 * 512, 'EIO']);
  match(String(said['image']), /disk\.img$/);
});

test('a driver hears that the disk has grown', async () => {
  await using scratch = new Scratch();
  const { socket, file, server } = await serve(scratch, MIB);
  let changes = 0;
  const guest = await connect(scratch, { socket, onConfigChange: () => changes++ });
  truncateSync(file, 2 * MIB);
  server.signal('SIGUSR2');
  await waitFor('the change', 5000, () => changes > 0);
  equal((await server.waitEvent('resized'))['sizeBytes'], 2 * MIB);
  const write = Buffer.alloc(512, 7);
  const sector = (2 * MIB) / 512 - 1;
  const answer = await guest.requests.send({ type: VIRTIO_BLK_T_OUT, sector, write });
  equal(answer.status, VIRTIO_BLK_S_OK);
  equal(statSync(file).size, 2 * MIB);
});

test('what cannot be served is said', async () => {
  await using scratch = new Scratch();
  const file = createDiskFile(scratch.path('odd.img'), 1000);
  const at = ['serve', 'blk', '--socket', scratch.path('s')];
  await rejects(vring(...at, '--file', file), /has 1000 bytes; .* truncate -s SIZE/s);
  await rejects(vring(...at, '--file', scratch.path('none')), /none.*/);
  await rejects(vring(...at), /either --file PATH, --memory SIZE or --layer/);
  await rejects(vring('serve', 'blk', '--memory', '1M'), /either --socket PATH or --vduse NAME/);
  await rejects(vring(...at, '--memory', '1000'), /multiple of 512/);
  await rejects(vring('serve', 'blk', '--vduse', 'd', '--memory', '1M'), /vduse/);
});
