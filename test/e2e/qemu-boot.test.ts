/**
 * A machine boots from our disk alone: QEMU's SeaBIOS, whose virtio drivers poll and have no
 * interrupts, reads GRUB, GRUB reads kernel and initramfs through it, and Linux takes the disk over
 * and has its root file system there. Twice: what the guest wrote is there after a reboot. From a
 * block device, and from a unit of a SCSI adapter.
 */
import { equal, match } from 'node:assert/strict';
import { test } from 'node:test';
import {
  DISK_GUEST_PEERS,
  type DiskGuestOptions,
  launchDiskGuest,
  SCSI_MODULES,
} from '../peers/blk-guest.ts';
import { BlkServer, checkExt4 } from '../peers/blk-server.ts';
import {
  BOOT_BLK,
  BOOT_DISK_PEERS,
  type BootDevice,
  makeBootDisk,
  PARTITION_OFFSET,
} from '../peers/boot-disk.ts';
import { requirePeer } from '../peers/require-peer.ts';
import { Scratch } from '../peers/scratch.ts';

const MIB = 2 ** 20;

type Way = {
  readonly of: string;
  readonly boot: BootDevice;
  serve(socket: string, image: string): Promise<BlkServer>;
  machine(socket: string): Pick<DiskGuestOptions, 'disks' | 'adapter'>;
};

const WAYS: readonly Way[] = [
  {
    of: 'the disk',
    boot: BOOT_BLK,
    serve: (socket, image) => BlkServer.start('--socket', socket, '--file', image),
    machine: (socket) => ({ disks: [{ socket, bootIndex: 0 }] }),
  },
  {
    of: 'a SCSI unit',
    boot: { node: 'sda', modules: SCSI_MODULES },
    serve: (socket, image) => BlkServer.startScsi('--socket', socket, '--lun', `0:0=${image}`),
    machine: (socket) => ({ disks: [], adapter: { socket, queues: 1, bootIndex: 0 } }),
  },
];

for (const { of, boot, serve, machine } of WAYS) {
  test(`a machine boots from ${of}, and reboots`, async (t) => {
    if (!requirePeer(t, ...DISK_GUEST_PEERS, ...BOOT_DISK_PEERS, 'fsck.ext4')) return;
    await using scratch = new Scratch();
    const image = scratch.path('boot.img');
    makeBootDisk(image, scratch.folder, 96 * MIB, boot);
    const socket = scratch.path('s');
    const server = scratch.own(await serve(socket, image));
    const guest = scratch.own(launchDiskGuest({ ...machine(socket), bootFromDisk: true }));
    await guest.waitReady();
    const isRoot = new RegExp(`^/dev/${boot.node}1 / ext4 rw`, 'm');
    match(await guest.check('cat /proc/mounts'), isRoot);
    const sum = await guest.check('dd if=/dev/urandom of=/file bs=64k count=32; sha256sum /file');
    await guest.check('sync');
    await guest.reboot();
    match(await guest.check('cat /proc/mounts'), isRoot);
    equal(await guest.check('sha256sum /file'), sum.split('\n').at(-2) + '\n');
    await guest.check('sync; mount -o remount,ro /');
    await guest.close();
    const { counters } = (await server.end()) as { counters: Record<string, number> };
    t.diagnostic(JSON.stringify(counters));
    equal(counters['errors'], 0);
    equal(counters['faults'], 0);
    match(checkExt4(`${image}?offset=${PARTITION_OFFSET}`), /files/);
  });
}
