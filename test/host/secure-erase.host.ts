/**
 * @test-host memory=1536 time-limit=400 long
 *
 * SECURE_ERASE by the kernel's own driver: virtio_blk over VDUSE, `blkdiscard --secure`. Linux 6.1
 * takes bit 0 of the type for the direction (drivers/block/virtio_blk.c, virtblk_add_req), which
 * holds for all types but this one, 14: its ranges come in memory that is ours to write, where
 * virtio 1.2, 5.2.6 has them in memory that is ours to read. Over VDUSE they are not even copied to
 * us. So nothing can be erased for it; what matters is that nothing else is.
 */
import { deepEqual, equal, ok, rejects } from 'node:assert/strict';
import { readFileSync, statSync, writeFileSync } from 'node:fs';
import { basename } from 'node:path';
import { before, test } from 'node:test';
import { BlkServer } from '../peers/blk-server.ts';
import { Scratch } from '../peers/scratch.ts';
import { loadModules, run } from './inside.ts';

const MIB = 2 ** 20;
/** Whatever a machine that does other things as well takes. */
const LATE_MS = 60_000;

before(() => loadModules('vduse', 'virtio_vdpa', 'virtio_blk'));

test('blkdiscard --secure of Linux 6.1 is refused, and the disk goes on', async () => {
  await using scratch = new Scratch();
  const file = scratch.path('disk.img');
  writeFileSync(file, new Uint8Array(8 * MIB).fill(7));
  const room = statSync(file).blocks;
  const words = ['--vduse', 'vring-erase', '--file', file, '--secure-erase'];
  const server = scratch.own(await BlkServer.start(...words));
  const { node } = await server.waitEvent('ready', LATE_MS);
  // Linux knows the feature: it has the granularity of its discards from both.
  const queue = `/sys/block/${basename(String(node))}/queue`;
  equal(readFileSync(`${queue}/discard_granularity`, 'utf8').trim(), '4096');
  const range = ['--offset', String(MIB), '--length', String(4 * MIB)];
  await rejects(run('blkdiscard', ['--secure', ...range, String(node)]), /Input\/output error/);
  ok(
    readFileSync(file).every((byte) => byte === 7),
    'nothing has changed',
  );
  equal(statSync(file).blocks, room);

  await run('blkdiscard', ['--zeroout', ...range, String(node)]);
  const bytes = readFileSync(file);
  const all = (value: number, from: number, to: number): boolean =>
    bytes.subarray(from * MIB, to * MIB).every((byte) => byte === value);
  ok(all(7, 0, 1) && all(0, 1, 5) && all(7, 5, 8), 'what it asks for as all do is done');
  const { counters } = await server.end(LATE_MS);
  const { errors, faults, unsupported, rejected } = counters as Record<string, number>;
  deepEqual([errors, faults, unsupported, rejected], [0, 0, 0, 1], JSON.stringify(counters));
});
