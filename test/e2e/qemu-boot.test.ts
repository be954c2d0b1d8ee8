/**
 * A machine boots from our disk alone: QEMU's SeaBIOS, whose virtio driver polls and has no
 * interrupts, reads GRUB, GRUB reads kernel and initramfs through it, and Linux takes the disk over
 * and has its root file system there. Twice: what the guest wrote is there after a reboot.
 */
import { equal, match } from 'node:assert/strict';
import { test } from 'node:test';
import { launchDiskGuest, DISK_GUEST_PEERS } from '../peers/blk-guest.ts';
import { BlkServer, checkExt4 } from '../peers/blk-server.ts';
import { BOOT_DISK_PEERS, makeBootDisk, PARTITION_OFFSET } from '../peers/boot-disk.ts';
import { requirePeer } from '../peers/require-peer.ts';
import { Scratch } from '../peers/scratch.ts';

const MIB = 2 ** 20;

test('a machine boots from the disk, and reboots', async (t) => {
  if (!requirePeer(t, ...DISK_GUEST_PEERS, ...BOOT_DISK_PEERS, 'fsck.ext4')) return;
  await using scratch = new Scratch();
  const image = scratch.path('boot.img');
  makeBootDisk(image, scratch.folder, 96 * MIB);
  const socket = scratch.path('s');
  const server = scratch.own(await BlkServer.start('--socket', socket, '--file', image));
  const guest = scratch.own(
    launchDiskGuest({ disks: [{ socket, bootIndex: 0 }], bootFromDisk: true }),
  );
  await guest.waitReady();
  match(await guest.check('cat /proc/mounts'), /^\/dev\/vda1 \/ ext4 rw/m);
  const sum = await guest.check('dd if=/dev/urandom of=/file bs=64k count=32; sha256sum /file');
  await guest.check('sync');
  await guest.reboot();
  match(await guest.check('cat /proc/mounts'), /^\/dev\/vda1 \/ ext4 rw/m);
  equal(await guest.check('sha256sum /file'), sum.split('\n').at(-2) + '\n');
  await guest.check('sync; mount -o remount,ro /');
  await guest.close();
  const { counters } = (await server.end()) as { counters: Record<string, number> };
  t.diagnostic(JSON.stringify(counters));
  equal(counters['errors'], 0);
  equal(counters['faults'], 0);
  match(checkExt4(`${image}?offset=${PARTITION_OFFSET}`), /files/);
});
