/**
 * `vring serve scsi` as a process, and our own driver: both ring formats, several queues, commands
 * in parallel, events, task management, a file that is too short.
 */
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFileSync, truncateSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { ScsiDisk, ScsiGuest, scsiCdb } from '../../src/guest/index.ts';
import * as scsi from '../../src/wire/scsi.ts';
import * as virtio from '../../src/wire/virtio-scsi.ts';
import { BlkServer, createDiskFile } from '../peers/blk-server.ts';
import { Scratch, waitFor } from '../peers/scratch.ts';

const MAIN = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url));
const BLOCKS = 2048;

for (const packed of [false, true]) {
  test(`${packed ? 'packed' : 'split'}: random commands in parallel, against arrays`, async () => {
    await using scratch = new Scratch();
    const image = createDiskFile(scratch.path('a.img'), BLOCKS * 512);
    const socket = scratch.path('s');
    const words = ['--socket', socket, '--queues', '2', '--lun', `0:0=${image}`];
    words.push('--lun', '1:3=fault', '--lun', '1:3=memory:1M'); // by way of a storage thread
    const server = scratch.own(await BlkServer.startScsi(...words));
    const guest = await ScsiGuest.connect(socket, { packed, queues: 2 });
    const disks = [new ScsiDisk(guest, 0, 0), new ScsiDisk(guest, 1, 3)];
    for (const disk of disks) {
      const { blocks, blockBytes, readsZeros } = await disk.capacity();
      deepEqual([blocks, blockBytes, readsZeros], [BLOCKS, 512, true]);
      deepEqual(await disk.luns(), [disk.lun]);
    }
    const model = disks.map(() => new Uint8Array(BLOCKS * 512));
    // Lanes of blocks that do not meet, each with one command at a time.
    const lane = async (number: number): Promise<void> => {
      const at = number * 64;
      for (let i = 0; i < 40; i++) {
        const which = (i + number) % 2;
        const lba = at + ((i * 7) % 48);
        const blocks = 1 + ((i * 5) % 16);
        const [from, to] = [lba * 512, (lba + blocks) * 512];
        if (i % 3 < 2) {
          const bytes = new Uint8Array(to - from).fill((i * 13 + number) & 0xff);
          model[which]!.set(bytes, from);
          await disks[which]!.write(lba, bytes, 512, i);
        } else {
          const read = await disks[which]!.read(lba, blocks, 512, i);
          deepEqual(read, model[which]!.slice(from, to), `lane ${number}, command ${i}`);
        }
      }
    };
    await Promise.all(Array.from({ length: 32 }, (_, number) => lane(number)));
    for (const disk of disks) await disk.flush();
    ok(readFileSync(image).equals(model[0]!));
    const back = await Promise.all(
      Array.from({ length: 32 }, (_, i) => disks[1]!.read(i * 64, 64, 512, i)),
    );
    ok(Buffer.concat(back).equals(model[1]!));
    await guest.close();
    const { counters } = (await server.end()) as { counters: Record<string, number> };
    deepEqual([counters['errors'], counters['faults']], [0, 0]);
  });
}

test('units come, grow and go, and the driver hears of it', async () => {
  await using scratch = new Scratch();
  const image = createDiskFile(scratch.path('a.img'), BLOCKS * 512);
  const socket = scratch.path('s');
  const words = ['--socket', socket, '--commands', '--lun', `0:0=${image}`];
  const server = scratch.own(await BlkServer.startScsi(...words));
  const events: virtio.ScsiEvent[] = [];
  const guest = await ScsiGuest.connect(socket, { onEvent: (event) => void events.push(event) });
  const disk = new ScsiDisk(guest, 0, 0);
  equal((await disk.capacity()).blocks, BLOCKS);
  server.say('add 0:200=memory:1M');
  await waitFor('an event', 5000, () => events.length === 1);
  const address = virtio.encodeScsiLun(0, 200);
  deepEqual(events[0], { event: 1, lun: address, reason: virtio.VIRTIO_SCSI_EVT_RESET_RESCAN });
  deepEqual(await disk.luns(), [0, 200]);
  const later = new ScsiDisk(guest, 0, 200);
  await later.write(0, new Uint8Array(512).fill(5), 512);
  truncateSync(image, BLOCKS * 1024);
  server.signal('SIGUSR2');
  await waitFor('an event', 5000, () => events.length === 2);
  deepEqual([events[1]!.event, events[1]!.reason], [virtio.VIRTIO_SCSI_T_PARAM_CHANGE, 0x092a]);
  equal((await disk.capacity()).blocks, 2 * BLOCKS);
  equal(await guest.manage(virtio.VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, 0, 200), 0);
  const { sense } = await guest.command({ target: 0, lun: 200, cdb: scsiCdb(0, 6) });
  deepEqual([sense?.key, sense?.asc], [scsi.KEY_UNIT_ATTENTION, 0x29]);
  equal((await later.read(0, 1, 512))[0], 5);
  server.say('remove 0:200');
  await waitFor('an event', 5000, () => events.length === 3);
  equal(events[2]!.reason, virtio.VIRTIO_SCSI_EVT_RESET_REMOVED);
  await rejects(later.read(0, 1, 512), { code: 'ERR_VRING_GUEST_SCSI' });
  server.say('add 0:0=memory:1M');
  match(String((await server.waitEvent('problem'))['reason']), /0:0.*is there already/);
  // The file is shorter than the disk: what is behind its end fails, and says where.
  truncateSync(image, 512);
  const end = disk.read(4, 1, 512);
  await rejects(end, { code: 'ERR_VRING_GUEST_SCSI', message: /MEDIUM ERROR 11\/00 at 4/ });
  equal((await server.waitEvent('io-error'))['at'], 2048);
  await guest.close();
});

test('vring guest scsi does what it says', async () => {
  await using scratch = new Scratch();
  const socket = scratch.path('s');
  const words = [
    '--socket',
    socket,
    '--queues',
    '2',
    '--lun',
    '0:0=memory:4M',
    '--lun',
    '2:1=memory:1M',
  ];
  scratch.own(await BlkServer.startScsi(...words));
  const run = async (...args: string[]): Promise<Record<string, unknown>> => {
    const command = [MAIN, 'guest', 'scsi', '--socket', socket, '--json', ...args];
    const { stdout } = await promisify(execFile)(process.execPath, command);
    return JSON.parse(stdout) as Record<string, unknown>;
  };
  const { units } = (await run('luns')) as { units: { unit: string; blocks: number }[] };
  deepEqual(
    units.map(({ unit, blocks }) => [unit, blocks]),
    [
      ['0:0', 8192],
      ['2:1', 2048],
    ],
  );
  equal((await run('inquiry', '--unit', '2:1'))['vendor'], 'vring');
  const verified = await run('verify', '--unit', '2:1', '--queues', '2', '--ring', 'packed');
  equal(verified['bytes'], 2 ** 20);
  equal((await run('tmf', 'lun-reset', '--unit', '2:1'))['response'], 0);
});
