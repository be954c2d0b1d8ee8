/**
 * Images that are not as they should be, each under the engine of files and under layers on a
 * storage thread: the request gets its status, what is said names the disk and the byte, the disk
 * goes on, and another disk in another process notices nothing all the while.
 */
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdirSync, rmSync, statSync, truncateSync } from 'node:fs';
import { after, before, test } from 'node:test';
import {
  type BlkGuest,
  type BlkReport,
  connectBlkGuest,
  runBlkWorkload,
} from '../../src/guest/index.ts';
import {
  VIRTIO_BLK_S_IOERR,
  VIRTIO_BLK_S_OK,
  VIRTIO_BLK_T_DISCARD,
  VIRTIO_BLK_T_FLUSH,
  VIRTIO_BLK_T_IN,
  VIRTIO_BLK_T_OUT,
} from '../../src/wire/virtio-blk.ts';
import { BlkServer, createDiskFile } from '../peers/blk-server.ts';
import { requireRoot } from '../peers/require-peer.ts';
import { Scratch, waitFor } from '../peers/scratch.ts';
import { vring } from '../peers/switch.ts';

const KIB = 1024;
const MIB = 2 ** 20;

/** The neighbour: a disk of another process, every byte of which is verified from first to last. */
const neighbour = { scratch: new Scratch(), stop: new AbortController() };
let report: Promise<BlkReport>;

before(async () => {
  const { scratch, stop } = neighbour;
  const socket = scratch.path('s');
  const file = createDiskFile(scratch.path('disk.img'), 4 * MIB);
  scratch.own(await BlkServer.start('--socket', socket, '--file', file));
  const guest = scratch.own(await connectBlkGuest({ socket }));
  // Gently: what is looked at is that it goes on.
  const load = { minBytes: 4096, maxBytes: 16384, flushEvery: 20, rate: 500, verify: true };
  report = runBlkWorkload({ guest, ...load, signal: stop.signal });
});

after(async () => {
  neighbour.stop.abort();
  const { errors, verify, ops } = await report;
  await neighbour.scratch[Symbol.asyncDispose]();
  equal(errors, 0);
  deepEqual(verify?.examples, []);
  ok(ops.read!.requests + ops.write!.requests > 100, 'the neighbour stood still');
});

/** How a file becomes a disk: words of `vring serve blk`. */
const WAYS: Readonly<Record<string, (path: string) => string[]>> = {
  file: (path) => ['--file', path],
  'layers over a file': (path) => ['--layer', 'fault:seed=1', '--layer', path],
};

class Disk {
  readonly server: BlkServer;
  readonly guest: BlkGuest;
  readonly #changes: { count: number };

  static async serve(scratch: Scratch, words: readonly string[]): Promise<Disk> {
    const socket = scratch.path('s');
    const server = scratch.own(await BlkServer.start('--socket', socket, ...words));
    const changes = { count: 0 };
    const onConfigChange = (): void => void changes.count++;
    const guest = scratch.own(await connectBlkGuest({ socket, onConfigChange }));
    return new Disk(server, guest, changes);
  }

  private constructor(server: BlkServer, guest: BlkGuest, changes: { count: number }) {
    this.server = server;
    this.guest = guest;
    this.#changes = changes;
  }

  get configChanges(): number {
    return this.#changes.count;
  }

  async write(at: number, sizeBytes: number): Promise<number> {
    const write = Buffer.alloc(sizeBytes, 'w');
    const request = { type: VIRTIO_BLK_T_OUT, sector: at / 512, write };
    return (await this.guest.requests.send(request)).status;
  }

  async read(at: number, readBytes: number): Promise<number> {
    const request = { type: VIRTIO_BLK_T_IN, sector: at / 512, readBytes };
    return (await this.guest.requests.send(request)).status;
  }

  async flush(): Promise<number> {
    return (await this.guest.requests.send({ type: VIRTIO_BLK_T_FLUSH, sector: 0 })).status;
  }

  /** One range. virtio 1.2, 5.2.6: sector, number of sectors, flags. */
  async discard(at: number, sizeBytes: number): Promise<number> {
    const write = Buffer.alloc(16);
    write.writeBigUInt64LE(BigInt(at / 512), 0);
    write.writeUInt32LE(sizeBytes / 512, 8);
    const request = { type: VIRTIO_BLK_T_DISCARD, sector: 0, write };
    return (await this.guest.requests.send(request)).status;
  }
}

/** What the operator reads: disk, operation, byte and reason. */
function saidOf({ op, at, error, image }: Record<string, unknown>, path: string): unknown[] {
  ok(String(image).includes(path), `'${String(image)}' does not name ${path}`);
  return [op, at, error];
}

for (const [way, words] of Object.entries(WAYS)) {
  test(`${way}: cut short while it is open`, async () => {
    await using scratch = new Scratch();
    const file = createDiskFile(scratch.path('disk.img'), 4 * MIB);
    const disk = await Disk.serve(scratch, words(file));
    truncateSync(file, MIB);
    equal(await disk.read(2 * MIB, 4096), VIRTIO_BLK_S_IOERR);
    const said = await disk.server.waitEvent('io-error');
    deepEqual(saidOf(said, file), ['read', 2 * MIB, 'EIO']);
    equal(await disk.read(0, 4096), VIRTIO_BLK_S_OK);
    equal(await disk.write(0, 4096), VIRTIO_BLK_S_OK);
    equal(await disk.flush(), VIRTIO_BLK_S_OK);
    // Told of it, the disk is as large as the file, and beyond is no place any more.
    disk.server.signal('SIGUSR2');
    await waitFor('the change', 5000, () => disk.configChanges > 0);
    equal((await disk.server.waitEvent('resized'))['sizeBytes'], MIB);
    equal(await disk.read(2 * MIB, 4096), VIRTIO_BLK_S_IOERR);
    equal(await disk.read(MIB - 4096, 4096), VIRTIO_BLK_S_OK);
  });

  test(`${way}: growing while it is open, and removed`, async () => {
    await using scratch = new Scratch();
    const file = createDiskFile(scratch.path('disk.img'), MIB);
    const disk = await Disk.serve(scratch, words(file));
    truncateSync(file, 3 * MIB);
    equal(await disk.write(2 * MIB, 4096), VIRTIO_BLK_S_IOERR); // until it is told
    disk.server.signal('SIGUSR2');
    await waitFor('the change', 5000, () => disk.configChanges > 0);
    equal(await disk.write(2 * MIB, 4096), VIRTIO_BLK_S_OK);
    equal(statSync(file).size, 3 * MIB);
    rmSync(file);
    equal(await disk.write(MIB, 4096), VIRTIO_BLK_S_OK);
    equal(await disk.read(2 * MIB, 4096), VIRTIO_BLK_S_OK);
    equal(await disk.flush(), VIRTIO_BLK_S_OK);
  });

  test(`${way}: on a file system that is full`, async (t) => {
    if (!requireRoot(t)) return;
    await using scratch = new Scratch();
    const small = mountTmpfs(scratch, '2m');
    const file = createDiskFile(`${small}/disk.img`, 8 * MIB);
    const disk = await Disk.serve(scratch, words(file));
    let at = 0;
    while (at < 8 * MIB && (await disk.write(at, 64 * KIB)) === VIRTIO_BLK_S_OK) at += 64 * KIB;
    ok(at >= MIB && at <= 2 * MIB, `full at ${at}`);
    const said = await disk.server.waitEvent('io-error');
    deepEqual(saidOf(said, file), ['write', at, 'ENOSPC']);
    equal(await disk.read(0, 64 * KIB), VIRTIO_BLK_S_OK);
    equal(await disk.read(4 * MIB, 64 * KIB), VIRTIO_BLK_S_OK);
    equal(await disk.write(0, 64 * KIB), VIRTIO_BLK_S_OK); // where there is something already
    equal(await disk.flush(), VIRTIO_BLK_S_OK); // what was acknowledged is there
    equal(await disk.discard(0, MIB), VIRTIO_BLK_S_OK);
    equal(await disk.write(at, 64 * KIB), VIRTIO_BLK_S_OK); // there is room again
  });

  test(`${way}: missing, or not to be written`, async (t) => {
    await using scratch = new Scratch();
    const at = ['serve', 'blk', '--socket', scratch.path('s')];
    const none = scratch.path('none.img');
    await rejects(vring(...at, ...words(none)), /none\.img: there is no such file/);
    if (!requireRoot(t)) return;
    const folder = mountTmpfs(scratch, '2m');
    const file = createDiskFile(`${folder}/fixed.img`, MIB);
    execFileSync('mount', ['-o', 'remount,ro', folder]);
    await rejects(vring(...at, ...words(file)), (error: Error) => {
      match(error.message, /EROFS: .*fixed\.img: it is on a read-only .*; serve it read-only/);
      return true;
    });
    const disk = await Disk.serve(scratch, [...words(file), '--read-only']);
    equal(await disk.read(0, 4096), VIRTIO_BLK_S_OK);
    equal(await disk.write(0, 4096), VIRTIO_BLK_S_IOERR);
  });
}

function mountTmpfs(scratch: Scratch, size: string): string {
  const folder = scratch.path(`tmpfs-${size}`);
  mkdirSync(folder);
  execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'tmpfs', folder]);
  scratch.own({ close: () => execFileSync('umount', ['-l', folder]) });
  return folder;
}
