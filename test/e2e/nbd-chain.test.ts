/**
 * Others stand on our export: qemu-storage-daemon and qemu-nbd are its clients and serve what they
 * have from it, while it is killed and started again beneath them.
 */
import { deepEqual, ok } from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { connectBlkGuest, runBlkWorkload } from '../../src/guest/index.ts';
import { createDiskFile } from '../peers/blk-server.ts';
import { PeerServer } from '../peers/peer-server.ts';
import { requirePeer } from '../peers/require-peer.ts';
import { Scratch, sleep } from '../peers/scratch.ts';

const run = promisify(execFile);
const MAIN = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url));
const MIB = 2 ** 20;
const KILLS = 2;

/** `vring export` of a file, which can be killed and started again. */
function ourExport(scratch: Scratch, ...parts: string[]): { server: PeerServer; at: string } {
  const socket = scratch.path('ours.nbd');
  const words = ['export', ...parts, '--export', `unix:${socket},name=e`];
  const server = scratch.own(new PeerServer([process.execPath, MAIN, ...words], socket));
  // What QEMU needs to outlive it: requests wait for so long.
  const at = `driver=nbd,server.type=unix,server.path=${socket},export=e,reconnect-delay=60`;
  return { server, at };
}

/** `isOver` is asked while the server is away. */
async function killNowAndThen(server: PeerServer, isOver: () => boolean): Promise<void> {
  for (let count = 0; count < KILLS; count++) {
    await sleep(300);
    await server.kill();
    ok(!isOver(), 'there is nothing to be killed under any more');
    await server.start();
  }
  await sleep(300);
}

test('our guest on qemu-storage-daemon on our export, which is killed beneath', async (t) => {
  if (!requirePeer(t, 'qemu-storage-daemon')) return;
  await using scratch = new Scratch();
  const image = createDiskFile(scratch.path('disk.img'), 16 * MIB);
  const { server, at } = ourExport(scratch, image);
  await server.start();
  const socket = scratch.path('vhost.sock');
  const place = `addr.type=unix,addr.path=${socket}`;
  const exported = `type=vhost-user-blk,id=v,node-name=n,writable=on,${place}`;
  const words = ['--blockdev', `${at},node-name=n,discard=unmap`, '--export', exported];
  const daemon = scratch.own(new PeerServer(['qemu-storage-daemon', ...words], socket));
  await daemon.start();
  const guest = scratch.own(await connectBlkGuest({ socket }));
  const stop = new AbortController();
  const [report] = await Promise.all([
    runBlkWorkload({
      guest,
      fill: true,
      readPercent: 50,
      discardPercent: 5,
      zeroPercent: 5,
      flushEvery: 50,
      minBytes: 512,
      maxBytes: 65_536,
      rate: 2000,
      verify: true,
      signal: stop.signal,
    }),
    killNowAndThen(server, () => !guest.running).finally(() => stop.abort()),
  ]);
  deepEqual([report.errors, report.verify!.examples], [0, []]);
  ok(report.verify!.checked > 1000, `${report.verify!.checked} blocks were compared`);
});

test('nbdcopy through qemu-nbd on our export, which is killed beneath', async (t) => {
  if (!requirePeer(t, 'qemu-nbd', 'nbdcopy', 'nbdinfo')) return;
  await using scratch = new Scratch();
  const content = randomBytes(32 * MIB);
  const image = scratch.path('disk.img');
  writeFileSync(image, content);
  // Slow enough that there is something to kill: two seconds.
  const { server, at } = ourExport(scratch, 'limit:bandwidth=12M,burst=0.1', image);
  await server.start();
  const socket = scratch.path('theirs.nbd');
  const words = ['-r', '-t', '-e', '8', '-x', 'f', '-k', socket, '--image-opts', at];
  const theirs = scratch.own(new PeerServer(['qemu-nbd', ...words], socket));
  await theirs.start();
  const uri = `nbd+unix:///f?socket=${socket}`;
  const { stdout } = await run('nbdinfo', ['--json', uri]);
  const [info] = JSON.parse(stdout).exports;
  deepEqual([info['export-size'], info.is_read_only], [32 * MIB, true]);
  const copy = scratch.path('copy.img');
  const copying = run('nbdcopy', [uri, copy], { timeout: 60_000 });
  await killNowAndThen(server, () => copying.child.exitCode !== null);
  await copying;
  ok(readFileSync(copy).equals(content));
});
