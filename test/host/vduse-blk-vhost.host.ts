/**
 * A disk served over VDUSE and driven by a program: our block driver on /dev/vhost-vdpa-N, which
 * knows of every byte what it must be. Server and driver are two processes, the kernel is between.
 *
 * @test-host memory=1024 time-limit=600
 */
import { deepEqual, equal, match, ok } from 'node:assert/strict';
import { before, test } from 'node:test';
import { BlkGuest, runBlkWorkload } from '../../src/guest/index.ts';
import { VhostVdpaBackend } from '../../src/vhost-kernel/index.ts';
import { BlkServer, createDiskFile } from '../peers/blk-server.ts';
import { Scratch } from '../peers/scratch.ts';
import { loadModules } from './inside.ts';
import { limitPinning } from './vdpa-guest.ts';

const MIB = 2 ** 20;

before(async () => {
  await loadModules('vduse', 'vhost_vdpa');
  await limitPinning('unlimited');
});

for (const packed of [false, true]) {
  test(`every byte is what it must be: ${packed ? 'packed' : 'split'} rings`, async (t) => {
    await using scratch = new Scratch();
    const file = createDiskFile(scratch.path('disk.img'), 8 * MIB);
    const words = ['--vduse', `vhost-${packed ? 'p' : 's'}`, '--file', file];
    const server = await BlkServer.start(...words, '--queues', '2', '--bind', 'vhost');
    scratch.own(server);
    const { node, driver } = await server.waitEvent('ready');
    equal(driver, 'vhost_vdpa');
    match(String(node), /^\/dev\/vhost-vdpa-\d+$/);
    const backend = await VhostVdpaBackend.open(String(node));
    const guest = await BlkGuest.start(backend, { queues: 2, packed });
    scratch.own(guest);
    equal(guest.config.capacityBytes, 8 * MIB);
    const report = await runBlkWorkload({
      guest,
      requests: 1500,
      readPercent: 40,
      discardPercent: 5,
      zeroPercent: 5,
      flushEvery: 20,
      minBytes: 4096,
      maxBytes: 32768,
      verify: true,
    });
    t.diagnostic(`${Math.round(report.iops)} requests per second`);
    equal(report.errors, 0);
    ok(report.verify !== null && report.verify.checked > 0, 'nothing was compared');
    const wrong = Object.values(report.verify.wrong);
    deepEqual(
      wrong,
      wrong.map(() => 0),
      JSON.stringify(report.verify.examples),
    );
    await guest.close();
    const { counters } = (await server.end()) as { counters: Record<string, number> };
    deepEqual([counters['errors'], counters['faults'], counters['rejected']], [0, 0, 0]);
  });
}
