/**
 * A guest of QEMU whose disks are the daemon's, while the daemon hands over to a new process and
 * is killed: Linux writes a file system meanwhile, and e2fsprogs judge it from outside.
 */
import { deepEqual, equal, match } from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { test } from 'node:test';
import type { DiskStatus } from '../../src/daemon/disks/disk-types.ts';
import { LinuxGuest } from '../../src/vmm/index.ts';
import { checkExt4, createDiskFile, formatExt4, readExt4 } from '../peers/blk-server.ts';
import { requirePeer } from '../peers/require-peer.ts';
import { Scratch, waitFor } from '../peers/scratch.ts';
import { VringProcess } from '../peers/software-guest.ts';
import { SwitchProcess } from '../peers/switch.ts';

const MIB = 2 ** 20;
const PEERS = ['qemu-system-x86_64', 'linux kernel', 'busybox', 'mkfs.ext4', 'fsck.ext4'];

const card = (index: number, socket: string): string[] => [
  '-chardev',
  `socket,id=disk${index},path=${socket},reconnect=1`,
  '-device',
  `vhost-user-blk-pci,chardev=disk${index},num-queues=2`,
];

test('a file system of QEMU through a hand-over and a kill', { timeout: 240_000 }, async (t) => {
  if (!requirePeer(t, ...PEERS)) return;
  await using scratch = new Scratch();
  const images = ['a', 'b'].map((name) => createDiskFile(scratch.path(`${name}.img`), 64 * MIB));
  for (const image of images) formatExt4(image);
  const disks = [
    { name: 'a', socket: scratch.path('a'), queues: 2, layers: [images[0]] },
    { name: 'b', socket: scratch.path('b'), queues: 2, layers: [{ fault: {} }, images[1]] },
  ];
  const config = scratch.path('config.yaml');
  writeFileSync(config, JSON.stringify({ disks }));
  const control = scratch.path('c.sock');
  const start = () => SwitchProcess.start({ ports: [], control, args: ['--config', config] });
  const daemon = scratch.own(await start());
  const guest = scratch.own(
    await LinuxGuest.start({
      name: 'disks-guest',
      ip: null,
      nics: [],
      cpus: 2,
      memoryMib: 256,
      modules: ['virtio_blk', 'ext4'],
      kernelWords: ['vring.nonet=1'],
      extra: [...card(0, scratch.path('a')), ...card(1, scratch.path('b'))],
    }),
  );
  await guest.check('mkdir -p /mnt/a /mnt/b; mount -t ext4 /dev/vda /mnt/a');
  await guest.check('mount -t ext4 /dev/vdb /mnt/b');
  // Writes, reads back past the cache, and says so when something differs.
  const loop = (at: string) =>
    `for i in $(seq 30); do dd if=/dev/urandom of=/tmp/r${at} bs=64k count=8 2>/dev/null; ` +
    `cp /tmp/r${at} /mnt/${at}/f$i; sync; echo 3 > /proc/sys/vm/drop_caches; ` +
    `cmp /tmp/r${at} /mnt/${at}/f$i || echo BAD; done`;
  const working = guest.run(`(${loop('a')}) & (${loop('b')}); wait; echo finished`, {
    timeoutMs: 200_000,
  });

  const next = scratch.own(new VringProcess('switch', '--take-over', '--control', control));
  await waitFor('the successor', 60_000, () => next.out.includes('ready:'));
  deepEqual(await daemon.ended(), { code: 0, signal: null });
  t.diagnostic(/pause [\d.]+ ms/.exec(next.err)?.[0] ?? 'no pause was said');
  next.signal('SIGKILL');
  await next.ended();
  const last = scratch.own(await start());
  await waitFor('the guest to be back', 30_000, async () => {
    const served = await last.api<DiskStatus[]>('/v1/disks');
    return served.every(({ state }) => state === 'up');
  });

  const { output } = await working;
  match(output, /finished/);
  equal(/BAD|rror/.exec(output), null, output);
  const sums = await guest.check('sha256sum /mnt/a/f30 /mnt/b/f30; umount /mnt/a /mnt/b');
  equal(await guest.check('dmesg | grep -i "i/o error" || true'), '');
  const [a, b] = sums.split('\n').map((line) => line.split(' ')[0]);
  for (const [i, sum] of [a, b].entries()) {
    match(checkExt4(images[i]!), /files/);
    equal(createHash('sha256').update(readExt4(images[i]!, 'f30')).digest('hex'), sum);
  }
});
