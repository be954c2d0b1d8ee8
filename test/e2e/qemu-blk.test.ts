/**
 * A guest of QEMU with disks that are served over vhost-user: what Linux's virtio_blk makes of
 * them, a file system through its whole life, discards that give space back, a disk that may only
 * be read, a size that changes while the guest runs. What the guest wrote is read here, from the
 * file behind the disk, by e2fsprogs, which know nothing of us.
 */
import { deepEqual, equal, match, ok } from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { LinuxGuest } from '../../src/vmm/index.ts';
import { BlkServer, checkExt4, createDiskFile, formatExt4, readExt4 } from '../peers/blk-server.ts';
import { requirePeer } from '../peers/require-peer.ts';
import { Scratch, waitFor } from '../peers/scratch.ts';

const MIB = 2 ** 20;
const PEERS = ['qemu-system-x86_64', 'linux kernel', 'busybox', 'mkfs.ext4', 'fsck.ext4'];

/** QEMU's words for one disk. */
function card(index: number, socket: string, options: string): string[] {
  const device = `vhost-user-blk-pci,chardev=disk${index},id=blk${index}`;
  return [
    '-chardev',
    `socket,id=disk${index},path=${socket},reconnect=1`,
    '-device',
    `${device}${options}`,
  ];
}

const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

function bootGuest(extra: string[]): Promise<LinuxGuest> {
  return LinuxGuest.start({
    name: 'blk-guest',
    ip: null,
    nics: [],
    cpus: 2,
    memoryMib: 256,
    modules: ['virtio_blk', 'ext4'],
    kernelWords: ['vring.nonet=1'],
    extra,
  });
}

async function sysfs(guest: LinuxGuest, disk: string, ...names: string[]): Promise<string[]> {
  const paths = names.map((name) => `/sys/block/${disk}/${name}`).join(' ');
  return (await guest.check(`cat ${paths}`)).trim().split('\n');
}

test('a guest of QEMU uses the disks', async (t) => {
  if (!requirePeer(t, ...PEERS)) return;
  await using scratch = new Scratch();
  const image = createDiskFile(scratch.path('ext4.img'), 64 * MIB);
  formatExt4(image, '-b', '4096'); // no smaller than the disk's own blocks
  const fixed = scratch.path('fixed.img');
  const content = randomBytes(4 * MIB);
  writeFileSync(fixed, content);

  const [disk, readOnly] = [scratch.path('d'), scratch.path('r')];
  const words = ['--queues', '2', '--serial', 'vring-e2e-0001', '--block-size', '4096'];
  const server = scratch.own(await BlkServer.start('--socket', disk, '--file', image, ...words));
  const other = scratch.own(
    await BlkServer.start('--socket', readOnly, '--file', fixed, '--read-only'),
  );
  const raw = createDiskFile(scratch.path('raw.img'), 4 * MIB);
  const third = scratch.path('k');
  const killed = scratch.own(await BlkServer.start('--socket', third, '--file', raw));
  const guest = scratch.own(
    await bootGuest([
      ...card(0, disk, ',num-queues=2,packed=on'),
      ...card(1, readOnly, ',num-queues=1'),
      ...card(2, third, ',num-queues=1'),
    ]),
  );

  await t.test('Linux sees what was configured', async () => {
    const queue = ['logical_block_size', 'write_cache', 'discard_granularity'];
    const names = ['size', 'ro', ...queue.map((name) => `queue/${name}`), 'serial'];
    const seen = await sysfs(guest, 'vda', ...names);
    ok(Number(seen.splice(4, 1)[0]) > 0, 'no discard');
    deepEqual(seen, ['131072', '0', '4096', 'write back', 'vring-e2e-0001']);
    equal((await guest.check('ls /sys/block/vda/mq')).trim().split(/\s+/).length, 2);
    deepEqual(await sysfs(guest, 'vdb', 'size', 'ro'), ['8192', '1']);
  });

  let written = '';
  await t.test('a file system is mounted, filled, synced and read again', async () => {
    await guest.check('mkdir -p /mnt/d; mount -t ext4 /dev/vda /mnt/d');
    const make = 'dd if=/dev/urandom of=/mnt/d/random bs=64k count=192 2>/dev/null';
    await guest.check(`${make}; for i in $(seq 50); do echo "line $i" > /mnt/d/f$i; done; sync`);
    [written] = (await guest.check('sha256sum /mnt/d/random')).split(' ') as [string];
    await guest.check('umount /mnt/d; echo 3 > /proc/sys/vm/drop_caches');
    await guest.check('mount -t ext4 /dev/vda /mnt/d');
    match(await guest.check('sha256sum /mnt/d/random'), new RegExp(`^${written} `));
    equal(await guest.check('cat /mnt/d/f50'), 'line 50\n');
  });

  await t.test('discarded space is given back to the host', async () => {
    await guest.check('dd if=/dev/urandom of=/mnt/d/gone bs=64k count=192 2>/dev/null; sync');
    const before = statSync(image).blocks * 512;
    await guest.check('rm /mnt/d/gone; sync; busybox fstrim /mnt/d; umount /mnt/d');
    const after = statSync(image).blocks * 512;
    ok(before - after > 8 * MIB, `${before} bytes were allocated, and ${after} after fstrim`);
  });

  await t.test('what the guest wrote is in the file', () => {
    match(checkExt4(image), /files/);
    equal(sha256(readExt4(image, 'random')), written);
  });

  await t.test('a disk that may only be read is read, and not written', async () => {
    equal((await guest.check('sha256sum /dev/vdb')).split(' ')[0], sha256(content));
    const { status } = await guest.run('dd if=/dev/zero of=/dev/vdb bs=4096 count=1 2>&1');
    ok(status !== 0, 'the guest could open a read-only disk for writing');
    ok(readFileSync(fixed).equals(content));
  });

  await t.test('a file that grows is a disk that grows', async () => {
    truncateSync(image, 96 * MIB);
    server.signal('SIGUSR2');
    await waitFor('the new size', 5000, async () => {
      return (await sysfs(guest, 'vda', 'size'))[0] === String((96 * MIB) / 512);
    });
    // The new end can be written and read.
    await guest.check('dd if=/dev/zero bs=4096 count=1 2>/dev/null | tr "\\0" x > /tmp/x');
    await guest.check('dd if=/tmp/x of=/dev/vda bs=4096 seek=24575 conv=fsync 2>/dev/null');
    equal(readFileSync(image).subarray(-4096).toString(), 'x'.repeat(4096));
  });

  await t.test('it goes on when the server is killed, and another one comes', async () => {
    // Lines that say where they are; written past the page cache.
    const lines = 'i=0; while [ $i -lt 128 ]; do printf "%032767d\\n" $i; i=$((i+1)); done';
    await guest.check(`(${lines}) > /tmp/lines`);
    const copy = 'dd if=/tmp/lines of=/dev/vdc bs=32k oflag=direct 2>/dev/null; echo $?';
    const copies = `until [ -e /tmp/stop ]; do ${copy}; done > /tmp/log; touch /tmp/done`;
    await guest.check(`(${copies}) & true`);
    await waitFor('the copies', 20_000, () => statSync(raw).blocks * 512 > MIB);
    await killed.kill();
    const next = scratch.own(await BlkServer.start('--socket', third, '--file', raw));
    await next.waitEvent('connected');
    await guest.check('touch /tmp/stop');
    await waitFor('the end of the copies', 60_000, async () => {
      return (await guest.run('test -e /tmp/done')).status === 0;
    });
    match(await guest.check('sort /tmp/log | uniq'), /^0\n$/); // dd never failed
    equal(sha256(readFileSync(raw)), (await guest.check('sha256sum /tmp/lines')).split(' ')[0]);
  });

  await t.test('the kernel complains of nothing', async () => {
    const log = await guest.check('dmesg');
    const complaints = log.split('\n').filter((line) => /I\/O error|EXT4-fs error|BUG:/.test(line));
    deepEqual(
      complaints.filter((line) => !line.includes('vdb')),
      [],
    );
  });

  await guest.close();
  const { counters } = (await server.end()) as { counters: Record<string, number> };
  t.diagnostic(JSON.stringify(counters));
  equal(counters['errors'], 0);
  equal(counters['faults'], 0);
  for (const kind of ['reads', 'writes', 'flushes', 'discards', 'others']) {
    ok((counters[kind] ?? 0) > 0, `no ${kind}`);
  }
  await other.end();
});
