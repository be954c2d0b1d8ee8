/**
 * NBD with the programs that others use: theirs on our export, and our client on their servers, which
 * are killed and come back.
 */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { FileLayer } from '../../src/storage/layer/file-layer.ts';
import type { Extent } from '../../src/storage/layer/layer.ts';
import { NbdExport, openNbdLayer } from '../../src/storage/nbd/index.ts';
import { openFd } from '../../src/sys/index.ts';
import { PeerServer } from '../peers/peer-server.ts';
import { requirePeer } from '../peers/require-peer.ts';
import { Scratch, waitFor } from '../peers/scratch.ts';

const run = promisify(execFile);
const MIB = 2 ** 20;
const O_RDWR = 2;

/** The output of a program that must succeed. */
async function output(program: string, ...args: string[]): Promise<string> {
  const { stdout } = await run(program, args, { timeout: 30_000, maxBuffer: 2 ** 26 });
  return stdout;
}

function image(path: string, content: Buffer | number): string {
  writeFileSync(path, typeof content === 'number' ? '' : content);
  if (typeof content === 'number') truncateSync(path, content);
  return path;
}

/** A file whose second MiB is known to be a hole, as a format would know. */
class HoleyLayer extends FileLayer {
  override async extents(at: number, sizeBytes: number): Promise<Extent[]> {
    const parts: Extent[] = [
      { at: 0, sizeBytes: MIB, kind: 'data' },
      { at: MIB, sizeBytes: MIB, kind: 'hole' },
      { at: 2 * MIB, sizeBytes: this.sizeBytes - 2 * MIB, kind: 'data' },
    ];
    const end = at + sizeBytes;
    return parts
      .map((part) => {
        const start = Math.max(at, part.at);
        return { ...part, at: start, sizeBytes: Math.min(end, part.at + part.sizeBytes) - start };
      })
      .filter((part) => part.sizeBytes > 0);
  }
}

async function exportFile(
  scratch: Scratch,
  path: string,
  name = '',
): Promise<{ server: NbdExport; uri: string }> {
  const file = openFd(path, O_RDWR);
  const layer = scratch.own(new HoleyLayer({ file, path, readOnly: false }));
  const socket = scratch.path(`export-${name}`);
  const server = scratch.own(await NbdExport.start(layer, { at: { socket }, name }));
  return { server, uri: server.status().uri };
}

test('nbdinfo, nbdcopy, qemu-img, qemu-io and qemu-nbd on our export', async (t) => {
  if (!requirePeer(t, 'nbdinfo', 'nbdcopy', 'qemu-img', 'qemu-io', 'qemu-nbd')) return;
  await using scratch = new Scratch();
  const content = randomBytes(16 * MIB);
  content.fill(0, MIB, 2 * MIB);
  const path = image(scratch.path('disk.img'), content);
  const { server, uri } = await exportFile(scratch, path, 'disk one');

  const info = JSON.parse(await output('nbdinfo', '--json', uri)).exports[0];
  assert.equal(info['export-size'], 16 * MIB);
  assert.equal(info['export-name'], 'disk one');
  assert.deepEqual(info.contexts, ['base:allocation']);
  assert.equal(info['block_size_minimum'], 512);
  for (const can of ['can_multi_conn', 'can_fua', 'can_flush', 'can_trim', 'can_zero', 'can_df']) {
    assert.equal(info[can], true, can);
  }
  assert.equal(info.is_read_only, false);
  const map = JSON.parse(await output('nbdinfo', '--map', '--json', uri));
  assert.deepEqual(
    map.map((e: { offset: number; length: number; type: number }) => [e.offset, e.length, e.type]),
    [
      [0, MIB, 0],
      [MIB, MIB, 3],
      [2 * MIB, 14 * MIB, 0],
    ],
  );
  assert.match(await output('nbdinfo', '--list', uri), /export="disk%20one"|export="disk one"/);
  const socket = decodeURIComponent(uri.split('socket=')[1]!);
  const list = await output('qemu-nbd', '--list', '--socket', socket);
  assert.match(list, /exports available: 1\n export: 'disk one'\n[^]*size: +16777216\n/);
  assert.match(list, /available meta contexts: 1\n +base:allocation/);

  const copy = image(scratch.path('copy.img'), 16 * MIB);
  await output('nbdcopy', uri, copy);
  assert.ok(readFileSync(copy).equals(content), 'nbdcopy from us');
  const other = image(scratch.path('other.img'), randomBytes(16 * MIB));
  await output('nbdcopy', '--flush', other, uri);
  assert.ok(readFileSync(path).equals(readFileSync(other)), 'nbdcopy to us');
  await output('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', other, uri);
  await output('qemu-img', 'convert', '-n', '-f', 'raw', '-O', 'raw', copy, uri);
  await output('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', copy, uri);

  const commands = ['write -P 7 512 64k', 'write -f -P 8 1M 4k', 'write -z 2M 1M', 'discard 4M 1M'];
  commands.push('flush', 'read -P 7 512 64k', 'read -P 8 1M 4k', 'read -P 0 2M 1M');
  const io = await output('qemu-io', '-f', 'raw', ...commands.flatMap((c) => ['-c', c]), uri);
  assert.doesNotMatch(io, /verification failed|error/i);
  const bytes = readFileSync(path);
  assert.ok(bytes.subarray(512, 512 + 65536).every((byte) => byte === 7));
  assert.ok(bytes.subarray(2 * MIB, 3 * MIB).every((byte) => byte === 0));
  const status = server.status();
  assert.deepEqual([status.failedRequests, status.badClients], [0, 0]);
});

const qemuNbd = (socket: string, path: string): string[] => [
  'qemu-nbd',
  '-t',
  '-f',
  'raw',
  '--discard=unmap',
  '-e',
  '8',
  '-x',
  'e',
  '-k',
  socket,
  path,
];
const storageDaemon = (socket: string, path: string): string[] => [
  'qemu-storage-daemon',
  '--blockdev',
  `driver=file,filename=${path},discard=unmap,node-name=e`,
  '--nbd-server',
  `addr.type=unix,addr.path=${socket}`,
  '--export',
  'type=nbd,id=e,node-name=e,name=e,writable=on',
];

for (const [name, command] of Object.entries({ qemuNbd, storageDaemon })) {
  test(`our client on ${name}, killed and restarted all the time`, async (t) => {
    if (!requirePeer(t, 'qemu-nbd', 'qemu-storage-daemon')) return;
    await using scratch = new Scratch();
    const path = image(scratch.path('disk.img'), 8 * MIB);
    const socket = scratch.path('s');
    const server = scratch.own(new PeerServer(command(socket, path), socket));
    await server.start();
    const disk = scratch.own(await openNbdLayer({ uri: `nbd+unix:///e?socket=${socket}` }));
    const extents = await disk.extents(0, 8 * MIB);
    assert.deepEqual(extents, [{ at: 0, sizeBytes: 8 * MIB, kind: 'hole' }]);
    const model = Buffer.alloc(8 * MIB);
    const over = new AbortController();
    const work = Promise.all(
      Array.from({ length: 8 }, async (_, worker) => {
        for (let round = 0; round < 40 || !over.signal.aborted; round++) {
          const size = 512 * (1 + Math.floor(Math.random() * 64));
          const at = worker * MIB + 512 * Math.floor(Math.random() * ((MIB - size) / 512));
          if (round % 4 === 0) {
            model.fill(0, at, at + size);
            await disk.zero(at, size, { unmap: round % 8 === 0, fua: round % 16 === 0 });
          } else if (round % 4 === 3) {
            const bytes = Buffer.alloc(size);
            await disk.read(at, bytes);
            assert.ok(bytes.equals(model.subarray(at, at + size)), `at ${at}`);
          } else {
            const bytes = randomBytes(size);
            model.set(bytes, at);
            await disk.write(at, bytes, round % 16 === 1);
          }
          if (round % 10 === 9) await disk.flush();
          // Not as much as the server can take: there is only so much to kill.
          await new Promise((done) => setTimeout(done, 2));
        }
      }),
    ).then(() => {});
    const kills = (async () => {
      for (let count = 1; count <= 5; count++) {
        await new Promise((done) => setTimeout(done, 60));
        await server.kill();
        await server.start();
        await waitFor('a reconnect', 5000, () => disk.counters()['nbdReconnects']! >= count);
      }
      over.abort();
    })();
    await Promise.all([work, kills]);
    await disk.flush();
    await disk.discard(0, 512);
    model.fill(0, 0, 512);
    await disk.zero(0, 512, { unmap: false, fua: true });
    assert.ok(readFileSync(path).equals(model), 'what the server has is what was written');
    assert.ok(disk.counters()['nbdReplayedWrites']! > 0, JSON.stringify(disk.counters()));
  });
}

test('a server whose blocks are larger than sectors: the rest is read, changed, written', async (t) => {
  if (!requirePeer(t, 'qemu-storage-daemon', 'nbdinfo')) return;
  await using scratch = new Scratch();
  const content = randomBytes(MIB);
  const path = image(scratch.path('disk.img'), content);
  const socket = scratch.path('s');
  const command = [
    'qemu-storage-daemon',
    '--blockdev',
    `driver=file,filename=${path},node-name=f`,
    '--blockdev',
    'driver=blkdebug,image=f,align=4096,node-name=e',
    ...storageDaemon(socket, path).slice(3),
  ];
  const server = scratch.own(new PeerServer(command, socket));
  await server.start();
  const uri = `nbd+unix:///e?socket=${socket}`;
  const info = JSON.parse(await output('nbdinfo', '--json', uri)).exports[0];
  assert.equal(info['block_size_minimum'], 4096);
  const disk = scratch.own(await openNbdLayer({ uri }));
  await Promise.all(
    Array.from({ length: 64 }, async (_, i) => {
      const bytes = randomBytes(512 * (1 + (i % 3)));
      const at = 2048 * i + 512 * (i % 2);
      bytes.copy(content, at);
      await disk.write(at, bytes, false);
    }),
  );
  content.fill(0, 200_192, 300_032);
  await disk.zero(200_192, 300_032 - 200_192, { unmap: true, fua: false });
  await disk.flush();
  const some = Buffer.alloc(1024);
  await disk.read(2560, some);
  assert.ok(some.equals(content.subarray(2560, 3584)));
  assert.ok(readFileSync(path).equals(content));
});

for (const [name, words] of Object.entries({
  'no structured replies': ['--no-sr'],
  'newstyle that is not fixed, without structured replies': ['--mask-handshake=0'],
  oldstyle: ['--oldstyle'],
})) {
  test(`nbdkit as an old server: ${name}`, async (t) => {
    if (!requirePeer(t, 'nbdkit')) return;
    await using scratch = new Scratch();
    const path = image(scratch.path('disk.img'), randomBytes(4 * MIB));
    const socket = scratch.path('s');
    const command = ['nbdkit', '--foreground', ...words, '--unix', socket, 'file', path];
    const server = scratch.own(new PeerServer(command, socket));
    await server.start();
    const disk = scratch.own(await openNbdLayer({ uri: `nbd+unix:///?socket=${socket}` }));
    const back = Buffer.alloc(4 * MIB);
    await disk.read(0, back);
    assert.ok(back.equals(readFileSync(path)));
    const bytes = randomBytes(MIB);
    // After its oldstyle handshake nbdkit 1.32 refuses all but reads and writes, which it offers.
    const isOldstyle = words.includes('--oldstyle');
    await disk.write(512, bytes, !isOldstyle);
    if (isOldstyle) return;
    await disk.zero(MIB, MIB, { unmap: true, fua: false });
    await server.kill();
    await server.start();
    await disk.flush();
    bytes.copy(back, 512);
    back.fill(0, MIB, 2 * MIB);
    assert.ok(readFileSync(path).equals(back));
    assert.equal(disk.counters()['nbdReconnects'], 1);
  });
}
