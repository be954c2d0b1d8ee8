/** Disks as NBD servers beside their guests, `serve blk` and `serve scsi`; `vring export`. */
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { BlkDisk, connectBlkGuest, ScsiDisk, ScsiGuest } from '../../src/guest/index.ts';
import { BlkServer, createDiskFile } from '../peers/blk-server.ts';
import { requirePeer } from '../peers/require-peer.ts';
import { Scratch } from '../peers/scratch.ts';
import { vring } from '../peers/switch.ts';

const run = promisify(execFile);
const MIB = 2 ** 20;

async function exportsOf(uri: string): Promise<Record<string, unknown>> {
  const { stdout } = await run('nbdinfo', ['--json', uri], { timeout: 30_000 });
  return JSON.parse(stdout).exports[0];
}

test('serve blk: what a guest writes, clients of two exports read', async (t) => {
  if (!requirePeer(t, 'nbdinfo', 'nbdcopy')) return;
  await using scratch = new Scratch();
  const image = createDiskFile(scratch.path('a.img'), 4 * MIB);
  const [socket, nbd] = [scratch.path('s'), scratch.path('a.nbd')];
  const words = ['--socket', socket, '--file', image, '--export', `unix:${nbd},name=a,read-only`];
  words.push('--export', 'tcp:127.0.0.1:0,max=8');
  const server = scratch.own(await BlkServer.start(...words));
  const { exports } = await server.waitEvent('ready');
  const [unix, tcp] = exports as [string, string];
  equal(unix, `nbd+unix:///a?socket=${encodeURIComponent(nbd)}`);
  match(tcp, /^nbd:\/\/127\.0\.0\.1:\d+\/$/);
  equal(statSync(nbd).mode & 0o777, 0o600);
  const guest = scratch.own(await connectBlkGuest({ socket }));
  const disk = new BlkDisk(guest);
  const bytes = randomBytes(MIB);
  await disk.write(MIB, bytes);

  const copy = scratch.path('copy.img');
  await run('nbdcopy', [tcp, copy]);
  ok(
    readFileSync(copy)
      .subarray(MIB, 2 * MIB)
      .equals(bytes),
  );
  deepEqual(
    [(await exportsOf(unix))['is_read_only'], (await exportsOf(tcp))['is_read_only']],
    [true, false],
  );
  const other = scratch.path('other.img');
  writeFileSync(other, randomBytes(4 * MIB));
  await rejects(run('nbdcopy', [other, unix]), 'read-only');
  await run('nbdcopy', ['--flush', other, tcp]);
  ok(Buffer.from(await disk.read(0, 4 * MIB)).equals(readFileSync(other)));

  truncateSync(image, 8 * MIB);
  server.signal('SIGUSR2');
  await server.waitEvent('resized');
  equal((await exportsOf(tcp))['export-size'], 8 * MIB);
  await server.end();
  equal(existsSync(nbd), false, 'its socket is gone');
});

test('serve scsi: exports of units, which come and go', async (t) => {
  if (!requirePeer(t, 'nbdinfo')) return;
  await using scratch = new Scratch();
  const [socket, first, second] = [scratch.path('s'), scratch.path('0'), scratch.path('1')];
  const words = ['--socket', socket, '--commands', '--lun', '0:0=memory:1M'];
  words.push('--lun', '0:1=fault', '--lun', '0:1=memory:2M', '--export', `0:1=unix:${second}`);
  const server = scratch.own(await BlkServer.startScsi(...words));
  const guest = scratch.own(await ScsiGuest.connect(socket, {}));
  const unit = new ScsiDisk(guest, 0, 1);
  await unit.write(8, new Uint8Array(512).fill(7), 512);
  const layered = `nbd+unix:///?socket=${second}`;
  equal((await exportsOf(layered))['export-size'], 2 * MIB);
  const copy = scratch.path('copy');
  await run('nbdcopy', [layered, copy]);
  equal(readFileSync(copy)[8 * 512], 7);

  server.say(`export 0:0=unix:${first},read-only`);
  const { uri } = await server.waitEvent('exported');
  equal((await exportsOf(uri as string))['export-size'], MIB);
  server.say('unexport 0:0');
  await server.waitEvent('unexported');
  equal(existsSync(first), false);
  server.say('export 5:0=unix:/x');
  match(String((await server.waitEvent('problem'))['reason']), /5:0: is not there/);
  server.say('remove 0:1');
  await server.waitEvent('removed');
  equal(existsSync(second), false, 'a unit takes its exports along');
});

test('what cannot be exported is said, and nothing is served', async () => {
  await using scratch = new Scratch();
  const image = createDiskFile(scratch.path('a.img'), MIB);
  const at = ['--socket-path', scratch.path('s'), '--blk-file', image];
  const problem = (...words: string[]): Promise<unknown> => vring(...words);
  await rejects(problem('disk', ...at, '--export', 'udp:1'), /'udp' is no place for an export/);
  const taken = ['--export', 'tcp:127.0.0.1:1', '--export', `unix:${scratch.path('none/x')}`];
  await rejects(problem('disk', ...at, ...taken.slice(2)), /none\/x/);
  await rejects(problem('export', image), /--export unix:PATH or tcp:HOST:PORT/);
  await rejects(problem('export', scratch.path('no.img'), ...taken.slice(0, 2)), /ENOENT/);
  equal(existsSync(scratch.path('s')), false);
});
