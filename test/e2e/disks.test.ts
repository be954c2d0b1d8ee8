/**
 * Disks of the daemon, as a user runs it: many in one process, of which none notices another; a
 * daemon that is killed, and one that hands over to a new process, under guests that know of every
 * byte what it must be.
 */
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { expect } from '../../src/daemon/hand-over.ts';
import { HAND_OVER_FORMAT, HandOverChannel } from '../../src/daemon/hand-over-channel.ts';
import type { DiskState, DiskStatus } from '../../src/daemon/disks/disk-types.ts';
import {
  BlkDisk,
  type BlkGuest,
  type BlkReport,
  connectBlkGuest,
  runBlkWorkload,
} from '../../src/guest/index.ts';
import { acceptUnix, listenUnix } from '../../src/sys/index.ts';
import { createDiskFile } from '../peers/blk-server.ts';
import { Scratch, sleep, waitFor } from '../peers/scratch.ts';
import { VringProcess } from '../peers/software-guest.ts';
import { SwitchProcess, vring } from '../peers/switch.ts';

const MIB = 2 ** 20;
const KILLS = 5;

type DiskLines = Readonly<Record<string, unknown>> & { readonly name: string };

/** A daemon with disks and no ports. */
async function start(scratch: Scratch, ...disks: DiskLines[]): Promise<SwitchProcess> {
  const config = scratch.path('config.yaml');
  const placed = disks.map((disk) => ({ socket: scratch.path(disk.name), ...disk }));
  writeFileSync(config, JSON.stringify({ disks: placed })); // YAML is a superset
  const control = scratch.path('c.sock');
  const started = await SwitchProcess.start({ ports: [], control, args: ['--config', config] });
  return scratch.own(started);
}

const file = (scratch: Scratch, name: string, sizeBytes = 16 * MIB): string =>
  createDiskFile(scratch.path(`${name}.img`), sizeBytes);

const disk = (daemon: SwitchProcess, name: string): Promise<DiskStatus> =>
  daemon.api(`/v1/disks/${name}`);

function waitState(daemon: SwitchProcess, name: string, state: DiskState): Promise<DiskStatus> {
  return waitFor(`disk ${name} ${state}`, 20_000, async () => {
    const status = await disk(daemon, name).catch(() => null);
    return status?.state === state ? status : null;
  });
}

/** Writes and reads until `stop`; every read is judged. */
function verify(guest: BlkGuest, signal: AbortSignal): Promise<BlkReport> {
  const sizes = { minBytes: 4096, maxBytes: 16384 };
  return runBlkWorkload({ guest, readPercent: 40, flushEvery: 50, ...sizes, verify: true, signal });
}

function nothingWrong(report: BlkReport): void {
  equal(report.errors, 0);
  ok(report.verify !== null && report.verify.checked > 0, 'nothing was compared');
  deepEqual(report.verify.examples, []);
}

test('a medium that fails is noticed by its own disk alone', { timeout: 120_000 }, async () => {
  await using scratch = new Scratch();
  const [good, bad] = [file(scratch, 'good'), file(scratch, 'bad')];
  const daemon = await start(
    scratch,
    { name: 'good', layers: [good] },
    { name: 'bad', layers: [{ fault: {} }, `file:${bad}`] },
    { name: 'gone', layers: [scratch.path('gone.img')] },
  );
  const gone = await disk(daemon, 'gone');
  equal(gone.state, 'failed');
  match(gone.reason!.message, /ENOENT: .*gone\.img/);
  match(daemon.log, /ready: 0 ports, 3 disks/);
  const healthy = scratch.own(await connectBlkGuest({ socket: scratch.path('good') }));
  const sick = new BlkDisk(scratch.own(await connectBlkGuest({ socket: scratch.path('bad') })));
  const stop = new AbortController();
  const running = verify(healthy, stop.signal);

  const rules = [{ op: 'any', action: 'error', errno: 'EIO' }];
  await daemon.api('/v1/disks/bad/faults', 'POST', { rules });
  for (let i = 0; i < 200; i++) {
    await rejects(sick.read(0, 4096), { code: 'ERR_VRING_BLK_IOERR' });
    await rejects(sick.write(8192, new Uint8Array(4096)), { code: 'ERR_VRING_BLK_IOERR' });
  }
  await rejects(sick.flush(), { code: 'ERR_VRING_BLK_IOERR' });
  // Requests that do not come back hold up their disk, and neither the other nor the API.
  const slow = [{ op: 'any', action: 'delay', ms: 3000 }];
  await daemon.api('/v1/disks/bad/faults', 'POST', { rules: slow });
  const late = sick.read(0, 4096);
  const began = performance.now();
  const status = await disk(daemon, 'bad');
  ok(performance.now() - began < 2000, 'the API answers meanwhile');
  ok(status.errors >= 401, `${status.errors} errors`);
  equal(status.lastError!.errno, 'EIO');
  await daemon.api('/v1/disks/bad/faults', 'POST', { rules: [] });
  equal((await late).length, 4096, 'late, and right');

  stop.abort();
  nothingWrong(await running);
  equal((await disk(daemon, 'good')).errors, 0);
  const events = await daemon.events();
  ok(events.some((event) => event.disk === 'bad' && /bad\.img.* EIO/.test(event.message)));
  ok(events.every((event) => event.disk !== 'good' || !/error|EIO/.test(event.kind)));

  createDiskFile(scratch.path('gone.img'), MIB);
  await waitState(daemon, 'gone', 'listening'); // by itself
});

test('vring disks add, with all that a driver may be offered, and a power cut', async () => {
  await using scratch = new Scratch();
  const daemon = await start(scratch);
  const control = ['--control', daemon.control];
  const add = (name: string, ...words: string[]): Promise<string> =>
    vring('disks', 'add', name, '--socket', scratch.path(name), ...words, ...control);
  await add('e', '--file', file(scratch, 'e'), '--secure-erase', '--lifetime', '1,3,2', '--iommu');
  const offered = scratch.own(await connectBlkGuest({ socket: scratch.path('e') }));
  const eraser = new BlkDisk(offered);
  await eraser.write(0, new Uint8Array(4096).fill(7));
  await eraser.secureErase(0, 4096);
  deepEqual(await eraser.read(0, 4096), new Uint8Array(4096));
  const { preEolInfo, deviceLifetimeEstTypA, deviceLifetimeEstTypB } = await eraser.getLifetime();
  deepEqual([preEolInfo, deviceLifetimeEstTypA, deviceLifetimeEstTypB], [1, 3, 2]);
  await add('s', '--file', file(scratch, 's'), '--no-packed');
  await rejects(connectBlkGuest({ socket: scratch.path('s'), packed: true }), /RING_PACKED/);
  await rejects(add('x', '--file', 'x', '--lifetime', '1,2'), /--lifetime: '1,2', expected are/);

  const layers = ['--layer', 'fault:cache=volatile', '--layer', file(scratch, 'v', MIB)];
  await add('v', ...layers);
  const guest = scratch.own(await connectBlkGuest({ socket: scratch.path('v') }));
  const volatile = new BlkDisk(guest);
  await volatile.write(0, new Uint8Array(4096).fill(1));
  await volatile.flush();
  for (let i = 0; i < 16; i++) await volatile.write(8192 * (i + 1), new Uint8Array(4096).fill(2));
  const cut = JSON.parse(await vring('disks', 'cut', 'v', '--seed', '9', '--json', ...control));
  equal(cut.requests, 16);
  equal(cut.kept + cut.lost + cut.torn, 16);
  ok(cut.kept > 0 && cut.lost > 0, 'a seed with which both are there');
  await rejects(volatile.read(0, 4096), { code: 'ERR_VRING_BLK_IOERR' });
  match(await vring('disks', 'cut', 'v', ...control), /of 16 unflushed requests .*seed 9/);
  await vring('disks', 'reopen', 'v', ...control);
  deepEqual(await volatile.read(0, 4096), new Uint8Array(4096).fill(1), 'what was flushed');
  let [kept, lost] = [0, 0];
  for (let i = 0; i < 16; i++) {
    const bytes = await volatile.read(8192 * (i + 1), 4096);
    if (bytes.every((byte) => byte === 2)) kept++;
    if (bytes.every((byte) => byte === 0)) lost++;
  }
  deepEqual([kept, lost], [cut.kept, cut.lost]);
  await rejects(vring('disks', 'cut', 's', ...control), /nothing that does cut|knows cut/);
});

test('a daemon that is killed under two guests', { timeout: 120_000 }, async (t) => {
  await using scratch = new Scratch();
  const disks = [
    { name: 'a', layers: [file(scratch, 'a')], queues: 2 },
    { name: 'b', layers: [{ fault: {} }, `file:${file(scratch, 'b')}`] },
  ];
  let daemon = await start(scratch, ...disks);
  const guests = [
    scratch.own(await connectBlkGuest({ socket: scratch.path('a'), queues: 2, reconnect: true })),
    scratch.own(
      await connectBlkGuest({ socket: scratch.path('b'), packed: true, reconnect: true }),
    ),
  ];
  const stop = new AbortController();
  const running = guests.map((guest) => verify(guest, stop.signal));
  for (let kill = 1; kill <= KILLS; kill++) {
    await sleep(200 + 37 * kill);
    process.kill(daemon.pid, 'SIGKILL');
    await daemon.ended();
    daemon = await start(scratch, ...disks); // as a supervisor would
    const back = () => guests.every(({ reconnects }) => reconnects === kill);
    await waitFor('the guests to be back', 20_000, back);
  }
  await sleep(200);
  stop.abort();
  for (const report of await Promise.all(running)) {
    nothingWrong(report);
    equal(report.reconnects, KILLS);
    t.diagnostic(`${report.verify!.checked} blocks compared, ${report.repeated} given again`);
  }
});

test('what the API adds is there after a restart', { timeout: 120_000 }, async () => {
  await using scratch = new Scratch();
  let daemon = await start(scratch, { name: 'mine', layers: ['memory:1M'] });
  const [image, socket] = [file(scratch, 'added', 4 * MIB), scratch.path('added')];
  const control = ['--control', daemon.control];
  const said = await vring(
    'disks',
    'add',
    'added',
    '--socket',
    socket,
    '--file',
    image,
    ...control,
  );
  match(said, /disk added is listening: .*added, 4194304 bytes/);
  await vring('disks', 'resize', 'added', '8M', ...control);
  // Limits come and go under a session, which does not end for it.
  const guest = await connectBlkGuest({ socket });
  const bytes = new Uint8Array(4096).fill(9);
  await new BlkDisk(guest).write(0, bytes);
  await vring('disks', 'limit', 'added', '--iops', '50', '--burst', '0.1', ...control);
  await daemon.api('/v1/disks/added', 'PATCH', { limits: { iops: 20, burstSeconds: 0.1 } });
  const began = performance.now();
  for (let i = 0; i < 20; i++) await new BlkDisk(guest).read(0, 512);
  ok(performance.now() - began > 700, 'twenty reads take a second');
  await daemon.api('/v1/disks/added', 'PATCH', { limits: null });
  deepEqual(Buffer.from(await new BlkDisk(guest).read(0, 4096)), Buffer.from(bytes));
  await daemon.api('/v1/disks/added', 'PATCH', { limits: { iops: 5000 } });
  await daemon.api('/v1/disks/added/reopen', 'POST');
  equal((await new BlkDisk(guest).read(0, 512))[0], 9);
  const seen = await disk(daemon, 'added');
  deepEqual([seen.state, seen.sessions, seen.limits], ['up', 1, { iops: 5000 }]);
  ok(seen.counters['reads']! >= 22, 'counters go on');
  equal(
    seen.latency['read']!.counts.reduce((sum, count) => sum + count),
    seen.counters['reads'],
  );
  await guest.close();
  await daemon.api('/v1/disks', 'POST', {
    name: 'second',
    socket: scratch.path('second'),
    layers: ['memory:1M'],
  });
  await rejects(
    vring('disks', 'add', 'third', '--socket', socket, '--file', image, ...control),
    /socket .*added already belongs to disk added/,
  );
  await rejects(
    vring(
      'disks',
      'add',
      'third',
      '--socket',
      scratch.path('3'),
      '--file',
      '/no/image',
      ...control,
    ),
    /disk third cannot be opened: .*ENOENT: \/no\/image/,
  );
  await vring('disks', 'remove', 'second', ...control);
  process.kill(daemon.pid, 'SIGKILL'); // right behind the answer
  await daemon.ended();
  const state = scratch.path('c.disks.json');
  deepEqual(
    JSON.parse(readFileSync(state, 'utf8')).disks.map(({ name }: { name: string }) => name),
    ['added'],
  );

  daemon = await start(scratch, { name: 'mine', layers: ['memory:1M'] });
  const names = async () => (await daemon.api<DiskStatus[]>('/v1/disks')).map(({ name }) => name);
  deepEqual(await names(), ['mine', 'added']);
  const added = await disk(daemon, 'added');
  deepEqual([added.sizeBytes, added.origin, added.limits], [8 * MIB, 'api', { iops: 5000 }]);
  await daemon.close();

  // The configuration's own disk goes before one that is remembered under its name.
  daemon = await start(scratch, { name: 'added', layers: ['memory:1M'] });
  const other = await disk(daemon, 'added');
  deepEqual([other.sizeBytes, other.origin], [MIB, 'config']);
  ok((await daemon.events()).some(({ kind }) => kind === 'disk-shadowed'));
  await daemon.close();

  // A file that cannot be read is said, kept, and not replaced.
  writeFileSync(state, '{"version": 9}');
  daemon = await start(scratch, { name: 'mine', layers: ['memory:1M'] });
  deepEqual(await names(), ['mine']);
  const more = { name: 'more', socket: scratch.path('more'), layers: ['memory:1M'] };
  await rejects(
    daemon.api('/v1/disks', 'POST', more),
    /c\.disks\.json cannot be read: .*version 9/,
  );
  deepEqual(await names(), ['mine'], 'the disk was not added');
  equal(existsSync(scratch.path('more')), false);
  equal(readFileSync(state, 'utf8'), '{"version": 9}');
});

test('snapshots, by the command line', { timeout: 120_000 }, async () => {
  await using scratch = new Scratch();
  const layers = [{ overlay: { folder: scratch.path('overlay') } }, file(scratch, 'base', 4 * MIB)];
  const daemon = await start(scratch, { name: 'o', layers });
  const disks = (...words: string[]) => vring('disks', ...words, '--control', daemon.control);
  const guest = await connectBlkGuest({ socket: scratch.path('o') });
  const write = (byte: number) => new BlkDisk(guest).write(0, new Uint8Array(4096).fill(byte));
  await write(1);
  await disks('snapshot', 'o', 'before');
  await write(2);
  match(await disks('snapshots', 'o'), /"before"/);
  await rejects(disks('rollback', 'o', 'before'), /disk o: a driver uses it, .* or say force/);
  await guest.close();
  await waitState(daemon, 'o', 'listening');
  await disks('rollback', 'o', 'before');
  const again = scratch.own(await connectBlkGuest({ socket: scratch.path('o') }));
  equal((await new BlkDisk(again).read(0, 512))[0], 1);
  await rejects(disks('snapshot', 'o', '../x'), /is not the name of a snapshot/);
});

/** A successor as a user starts it. */
async function takeOver(scratch: Scratch, control: string): Promise<VringProcess> {
  const next = new VringProcess('switch', '--take-over', '--control', control);
  scratch.own(next);
  await waitFor('the successor', 60_000, () => next.out.includes('ready:'));
  return next;
}

const pauseOf = (process: VringProcess): number =>
  Number(/took over from process .* pause ([\d.]+) ms/.exec(process.err)?.[1] ?? Number.NaN);

test('two hand-overs under guests that verify', { timeout: 120_000 }, async (t) => {
  await using scratch = new Scratch();
  const daemon = await start(
    scratch,
    { name: 'file', layers: [file(scratch, 'file')], queues: 2 },
    { name: 'layers', layers: [{ fault: {} }, `file:${file(scratch, 'layers')}`] },
    { name: 'idle', layers: [file(scratch, 'idle', MIB)] },
    { name: 'gone', layers: ['/no/such/image'] },
  );
  const added = { name: 'added', socket: scratch.path('added'), layers: [file(scratch, 'added')] };
  await daemon.api('/v1/disks', 'POST', added);
  const guests = [
    await connectBlkGuest({ socket: scratch.path('file'), queues: 2, reconnect: true }),
    await connectBlkGuest({ socket: scratch.path('layers'), packed: true, reconnect: true }),
    await connectBlkGuest({ socket: scratch.path('added'), packed: true, reconnect: true }),
  ].map((guest) => scratch.own(guest));
  const stop = new AbortController();
  const running = guests.map((guest) => verify(guest, stop.signal));
  await sleep(500);
  const before = await disk(daemon, 'file');
  let last: VringProcess | null = null;
  for (let round = 0; round < 2; round++) {
    const next = await takeOver(scratch, daemon.control);
    const predecessor: { ended(): Promise<unknown> } = last ?? daemon;
    deepEqual(await predecessor.ended(), { code: 0, signal: null });
    t.diagnostic(`pause ${pauseOf(next)} ms`);
    ok(pauseOf(next) < 10_000);
    last = next;
    await sleep(300);
  }
  stop.abort();
  for (const report of await Promise.all(running)) {
    nothingWrong(report);
    equal(report.reconnects, 0, 'the session went on');
    t.diagnostic(`${report.verify!.checked} blocks compared`);
  }
  const after = await disk(daemon, 'file'); // of whoever serves at the control socket
  deepEqual([after.state, after.sessions], ['up', 1]);
  ok(after.counters['reads']! > before.counters['reads']!, 'counters go on');
  equal((await disk(daemon, 'added')).origin, 'api');
  equal((await disk(daemon, 'gone')).state, 'failed');
  const guest = scratch.own(await connectBlkGuest({ socket: scratch.path('idle') }));
  equal((await new BlkDisk(guest).read(0, 512)).length, 512, 'front-ends connect to the successor');
  await last!.close();
  equal(existsSync(scratch.path('file')), false, 'the last one ends like any daemon');
});

test('a hand-over that fails leaves the disks where they were', { timeout: 120_000 }, async () => {
  await using scratch = new Scratch();
  const image = file(scratch, 'a');
  const daemon = await start(scratch, { name: 'a', layers: [image] });
  const guest = scratch.own(await connectBlkGuest({ socket: scratch.path('a'), reconnect: true }));
  const stop = new AbortController();
  const running = verify(guest, stop.signal);
  const config = (layers: readonly string[]): string => {
    const path = scratch.path('newer.yaml');
    const disks = [{ name: 'a', socket: scratch.path('a'), layers }];
    writeFileSync(path, JSON.stringify({ disks }));
    return path;
  };
  const words = ['switch', '--take-over', '--control', daemon.control, '--config'];
  const refused = new VringProcess(...words, config(['memory:16M']));
  equal((await refused.ended()).code, 1);
  match(refused.err, /disk a: layers is .*memory.* which a running disk cannot change/);

  // A successor that dies when the disks are its own nearly: nobody serves, the image is closed.
  const opened = (): boolean =>
    readdirSync(`/proc/${daemon.pid}/fd`).some((fd) => {
      return readlinkSync(`/proc/${daemon.pid}/fd/${fd}`) === image;
    });
  ok(opened());
  const listener = listenUnix(scratch.path('successor'));
  const request = { socket: scratch.path('successor'), format: HAND_OVER_FORMAT, version: 'x' };
  await daemon.api('/v1/hand-over', 'POST', request);
  const channel = new HandOverChannel(acceptUnix(listener.number)!);
  (await expect(channel, 'prepare', 30_000)).fds.close();
  await channel.send('ready', null);
  (await expect(channel, 'switch', 30_000)).fds.close();
  equal(opened(), false, 'another process may open it');
  channel.close();
  listener.close();
  await waitFor('the disk to be back', 20_000, async () => {
    return (await daemon.events()).some(({ kind }) => kind === 'hand-over-failed') && opened();
  });
  equal(daemon.isRunning, true);
  await sleep(300);
  stop.abort();
  const report = await running;
  nothingWrong(report);
  equal(report.reconnects, 0);
  const { state, sessions } = await disk(daemon, 'a');
  deepEqual([state, sessions], ['up', 1]);
});
