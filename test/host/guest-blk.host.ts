/**
 * The software block guest on vDPA disks, which stop and begin again as a whole: the kernel's
 * simulator, and a disk of ours that the kernel has through VDUSE.
 *
 * @test-host memory=1536 time-limit=240 long
 */
import { deepEqual, equal, ok, rejects } from 'node:assert/strict';
import { before, test } from 'node:test';
import { BlkDisk, connectBlkGuest, runBlkWorkload } from '../../src/guest/index.ts';
import type { BlkReport } from '../../src/guest/index.ts';
import { BlkServer, createDiskFile } from '../peers/blk-server.ts';
import { Scratch } from '../peers/scratch.ts';
import { addVdpaDevice, deleteVdpaDevice, loadModules, vhostVdpaPath } from './inside.ts';
import { limitPinning } from './vdpa-guest.ts';

const MIB = 2 ** 20;
/** Few: the processors are interpreted. */
const WORK = { readPercent: 40, minBytes: 4096, maxBytes: 16384, depth: 8, verify: true } as const;

before(async () => {
  await loadModules('vdpa_sim_blk', 'vduse', 'vhost_vdpa');
  await limitPinning('unlimited');
});

function nothingWrong(report: BlkReport): void {
  equal(report.errors, 0);
  ok(report.verify !== null && report.verify.checked > 0, 'nothing was compared');
  deepEqual(report.verify.examples, []);
}

/** Every kind of request, and a stop in the middle of work, after which the disk goes on. */
async function useDisk(path: string, scratch: Scratch): Promise<void> {
  const options = { backend: `vhost-vdpa:${path}`, requestBytes: 16384 };
  const guest = scratch.own(await connectBlkGuest(options));
  const disk = new BlkDisk(guest);
  const bytes = Uint8Array.from({ length: 100_352 }, (_, i) => (i * 13) & 255);
  await disk.write(MIB, bytes);
  await disk.flush();
  deepEqual(await disk.read(MIB, bytes.length), bytes);
  await rejects(disk.read(disk.sizeBytes, 512), { code: 'ERR_VRING_BLK_IOERR' });
  nothingWrong(await runBlkWorkload({ ...WORK, guest, sizeBytes: MIB, requests: 300 }));
  for (let i = 0; i < 3; i++) {
    const reading = disk.read(MIB, bytes.length);
    await guest.stop();
    equal(guest.outstanding, 0);
    await guest.resume();
    deepEqual(await reading, bytes);
  }
  nothingWrong(await runBlkWorkload({ ...WORK, guest, sizeBytes: MIB, requests: 300, fill: true }));
  equal(guest.failure, null);
}

test('the simulator of the kernel', async () => {
  await using scratch = new Scratch();
  await addVdpaDevice('blk0', 'vdpasim_blk');
  scratch.own({ close: () => deleteVdpaDevice('blk0') });
  await useDisk(await vhostVdpaPath('blk0'), scratch);
});

test('a disk of ours through VDUSE', async () => {
  await using scratch = new Scratch();
  const file = createDiskFile(scratch.path('disk.img'), 8 * MIB);
  const words = ['--vduse', 'disk0', '--file', file, '--bind', 'vhost'];
  const server = scratch.own(await BlkServer.start(...words));
  await useDisk(String((await server.waitEvent('ready'))['node']), scratch);
});
