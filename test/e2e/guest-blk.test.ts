/**
 * The software block guest on the command line and as a library, against qemu-storage-daemon and
 * against `vring serve blk`: every byte, every status, and back-ends that are killed under load.
 */
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { BlkDisk, connectBlkGuest, runBlkWorkload } from '../../src/guest/index.ts';
import type { BlkReport } from '../../src/guest/index.ts';
import { BlkServer, createDiskFile } from '../peers/blk-server.ts';
import { requirePeer } from '../peers/require-peer.ts';
import { Scratch, sleep, waitFor } from '../peers/scratch.ts';
import { StorageDaemon } from '../peers/storage-daemon.ts';
import { vring } from '../peers/switch.ts';
import { killUnderOurGuest } from '../peers/target-kills.ts';

const MIB = 2 ** 20;
const KILLS = 10;

/** In memory: what is measured here is not the machine's disk. */
class Image {
  readonly #folder = mkdtempSync('/dev/shm/vring-');
  readonly path: string;

  constructor(sizeBytes: number) {
    this.path = createDiskFile(join(this.#folder, 'disk.img'), sizeBytes);
  }

  close(): void {
    rmSync(this.#folder, { recursive: true, force: true });
  }
}

function nothingWrong(report: BlkReport): void {
  equal(report.errors, 0);
  ok(report.verify !== null && report.verify.checked > 0, 'nothing was compared');
  deepEqual(report.verify.examples, []);
}

test('qemu-storage-daemon: every byte of a mix over two queues', async (t) => {
  if (!requirePeer(t, 'qemu-storage-daemon')) return;
  await using scratch = new Scratch();
  const { path } = scratch.own(new Image(32 * MIB));
  const socket = scratch.path('s');
  scratch.own(await StorageDaemon.start({ socket, file: path, queues: 2 }));
  const guest = scratch.own(await connectBlkGuest({ socket, queues: 2, segmentBytes: 4096 }));
  const report = await runBlkWorkload({
    guest,
    fill: true,
    requests: 5000,
    discardPercent: 5,
    zeroPercent: 5,
    flushEvery: 50,
    minBytes: 4096,
    maxBytes: 65536,
    verify: true,
  });
  nothingWrong(report);
  deepEqual(Object.keys(report.ops).sort(), ['discard', 'flush', 'read', 'write', 'zero']);
  equal(report.wrongLengths, 0);
  ok(report.verify!.checked > 7000, 'nearly all of the disk was compared');
});

test('qemu-storage-daemon: the end of the disk, and a disk that is read-only', async (t) => {
  if (!requirePeer(t, 'qemu-storage-daemon')) return;
  await using scratch = new Scratch();
  const { path } = scratch.own(new Image(MIB));
  writeFileSync(path, Buffer.alloc(MIB, 'r'));
  const socket = scratch.path('s');
  scratch.own(await StorageDaemon.start({ socket, file: path, writable: false }));
  const guest = scratch.own(await connectBlkGuest({ socket }));
  const disk = new BlkDisk(guest);
  equal(disk.sizeBytes, MIB);
  equal(guest.config.readOnly, true);
  ok((await disk.read(0, MIB)).every((byte) => byte === 0x72));
  await rejects(disk.read(MIB, 512), { code: 'ERR_VRING_BLK_IOERR' });
  await rejects(disk.read(MIB - 512, 1024), { code: 'ERR_VRING_BLK_IOERR' });
  await rejects(disk.write(0, new Uint8Array(512)), { code: 'ERR_VRING_BLK_IOERR' });
  await rejects(runBlkWorkload({ guest, requests: 1 }), /the disk is read-only/);
  equal(guest.failure, null);
});

/** Kills what serves the disk at uneven moments, and starts it again. */
async function killed(
  scratch: Scratch,
  socket: string,
  kind: { readonly packed: boolean; readonly queues: number },
  kill: () => Promise<void>,
): Promise<BlkReport> {
  const guest = scratch.own(await connectBlkGuest({ socket, ...kind, reconnect: true }));
  const stop = new AbortController();
  const running = runBlkWorkload({
    guest,
    readPercent: 30,
    flushEvery: 50,
    minBytes: 4096,
    maxBytes: 16384,
    verify: true,
    signal: stop.signal,
  });
  for (let i = 1; i <= KILLS; i++) {
    await sleep(20 + 37 * (i % 4));
    await kill();
    await waitFor('the guest to be back', 10_000, () => guest.reconnects === i);
  }
  stop.abort();
  return running;
}

test(`qemu-storage-daemon: nothing is lost when it is killed ${KILLS} times`, async (t) => {
  if (!requirePeer(t, 'qemu-storage-daemon')) return;
  await using scratch = new Scratch();
  const { path } = scratch.own(new Image(16 * MIB));
  const options = { socket: scratch.path('s'), file: path, queues: 2 };
  let daemon = scratch.own(await StorageDaemon.start(options));
  const kind = { packed: false, queues: 2 };
  const report = await killed(scratch, options.socket, kind, async () => {
    await daemon.kill();
    daemon = scratch.own(await StorageDaemon.start(options));
  });
  nothingWrong(report);
  equal(report.reconnects, KILLS);
  t.diagnostic(`${report.repeated} requests were given again`);
});

test(`vring serve blk: nothing is lost when it is killed ${KILLS} times`, async (t) => {
  const report = await killUnderOurGuest({ times: KILLS, random: Math.random }, null, true);
  t.diagnostic(`${report.verify!.checked} blocks were compared`);
});

test('on the command line', async () => {
  await using scratch = new Scratch();
  const socket = scratch.path('s');
  scratch.own(await BlkServer.start('--socket', socket, '--memory', '8M', '--serial', 'seven'));
  const blk = (...words: string[]) => vring('guest', 'blk', '--socket', socket, ...words);
  match(await blk('info'), /size +8388608 bytes in blocks of 512/);
  deepEqual(JSON.parse(await blk('--json', 'id')), { id: 'seven' });
  const file = scratch.path('in');
  writeFileSync(file, Buffer.alloc(65536, 'abc'));
  await blk('write', '--offset', '1M', '--file', file);
  const text = await blk('read', '--offset', '1M', '--bytes', '4K');
  equal(text.slice(0, 9), 'abcabcabc');
  await blk('zero', '--offset', '1M', '--bytes', '4K');
  equal((await blk('read', '--offset', '1M', '--bytes', '4K')).replaceAll('\0', ''), '');
  await blk('discard', '--offset', '1M', '--bytes', '4K');
  await blk('flush');
  const words = ['--ring', 'packed', '--json', 'verify', '--requests', '500', '--seed', '3'];
  const report = JSON.parse(await blk(...words)) as BlkReport;
  equal(report.seed, 3);
  nothingWrong(report);
  match(await blk('bench', '--requests', '100'), /^[\d.k]+ IOPS, .*\nread +100 requests/);
  await Promise.all([
    rejects(blk('read', '--offset', '8M', '--bytes', '512'), /sector 16384 .* an I\/O error/),
    rejects(
      blk('read', '--offset', '1X', '--bytes', '512'),
      /no number of bytes; expected is such as 4096/,
    ),
    rejects(blk('--read-only', 'verify'), /verify would change the disk/),
    rejects(vring('guest', 'blk', '--socket', '/none', 'id'), /vring serve blk --socket/),
  ]);
});
