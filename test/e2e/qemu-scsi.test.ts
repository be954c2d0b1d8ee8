/**
 * A guest of QEMU with disks behind a SCSI host adapter that is served over vhost-user: what Linux
 * makes of targets and units, a file system through its whole life, sg3-utils on every command,
 * units that come, go and grow, and the guest's reboot. This QEMU has neither reconnect nor an
 * inflight region for vhost-user-scsi, so nobody is killed here.
 */
import { deepEqual, equal, match, ok } from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { statSync, truncateSync } from 'node:fs';
import { test } from 'node:test';
import { guestProgram, LinuxGuest } from '../../src/vmm/index.ts';
import { nameOfUnit } from '../peers/blk-guest.ts';
import { BlkServer, checkExt4, createDiskFile, readExt4 } from '../peers/blk-server.ts';
import { requirePeer } from '../peers/require-peer.ts';
import { Scratch, waitFor } from '../peers/scratch.ts';

const MIB = 2 ** 20;
const TOOLS = (
  'sg_compare_and_write sg_get_lba_status sg_inq sg_logs sg_luns sg_modes sg_opcodes sg_persist ' +
  'sg_raw sg_rbuf sg_read_buffer sg_readcap sg_requests sg_reset sg_start sg_sync sg_turs ' +
  'sg_unmap sg_verify sg_vpd sg_wr_mode sg_write_buffer sg_write_same sgp_dd'
).split(' ');
const PEERS = ['qemu-system-x86_64', 'linux kernel', 'busybox', 'mkfs.ext4', 'fsck.ext4', 'sg_inq'];

function bootGuest(socket: string): Promise<LinuxGuest> {
  return LinuxGuest.start({
    name: 'scsi-guest',
    ip: null,
    nics: [],
    cpus: 2,
    memoryMib: 256,
    modules: ['virtio_scsi', 'sd_mod', 'sg', 'ext4'],
    files: ['mkfs.ext4', ...TOOLS].flatMap(guestProgram),
    kernelWords: ['vring.nonet=1'],
    extra: [
      '-chardev',
      `socket,id=scsi0,path=${socket}`,
      '-device',
      'vhost-user-scsi-pci,chardev=scsi0,num_queues=2',
    ],
    bootTimeoutMs: 120_000, // its firmware looks at 256 targets, and so does Linux
  });
}

/** What /sys knows of a disk. */
async function sysfs(guest: LinuxGuest, disk: string, ...names: string[]): Promise<string[]> {
  const paths = names.map((name) => `/sys/block/${disk}/${name}`).join(' ');
  return (await guest.check(`cat ${paths}`)).trim().split('\n');
}

/** `0:0:0:1` and the like: host, channel, target, unit. */
async function units(guest: LinuxGuest): Promise<string[]> {
  return (await guest.check('ls /sys/class/scsi_disk')).trim().split(/\s+/);
}

test('a guest of QEMU uses SCSI disks', async (t) => {
  if (!requirePeer(t, ...PEERS)) return;
  await using scratch = new Scratch();
  const [image, other] = ['a.img', 'b.img'].map((name) => {
    return createDiskFile(scratch.path(name), 64 * MIB);
  }) as [string, string];
  const socket = scratch.path('s');
  const words = ['--socket', socket, '--queues', '2', '--commands', '--lun', `0:0=${image}`];
  words.push('--lun', '0:1=memory:16M', '--read-only-lun', '3:0=memory:4M');
  const server = scratch.own(await BlkServer.startScsi(...words));
  const guest = scratch.own(await bootGuest(socket));
  const ended = async (expected: number, command: string): Promise<void> => {
    const { status, output } = await guest.run(command);
    equal(status, expected, `${command}: ${output}`);
  };
  const good = (...commands: string[]): Promise<string> => guest.check(commands.join(' && '));
  const [a, b, c, sg] = await Promise.all([
    nameOfUnit(guest, '0:0:0:0'),
    nameOfUnit(guest, '0:0:0:1'),
    nameOfUnit(guest, '0:0:3:0'),
    nameOfUnit(guest, '0:0:0:1', 'scsi_generic'),
  ]);

  await t.test('Linux finds targets and units, and what they are', async () => {
    deepEqual(await units(guest), ['0:0:0:0', '0:0:0:1', '0:0:3:0']);
    const names = ['size', 'ro', 'queue/write_cache', 'queue/logical_block_size'];
    deepEqual(await sysfs(guest, a, ...names), ['131072', '0', 'write back', '512']);
    deepEqual(await sysfs(guest, b, 'size', 'ro'), ['32768', '0']);
    deepEqual(await sysfs(guest, c, 'size', 'ro'), ['8192', '1']);
    equal((await sysfs(guest, a, 'device/vendor'))[0]?.trim(), 'vring');
    equal((await guest.check(`ls /sys/block/${a}/mq`)).trim().split(/\s+/).length, 2);
    match(await guest.check('cat /sys/class/scsi_disk/0:0:0:0/provisioning_mode'), /unmap/);
  });

  let written = '';
  await t.test('a file system is made, filled, synced and read again', async () => {
    await good(`mkfs.ext4 -q /dev/${a}`, 'mkdir -p /mnt/d', `mount -t ext4 /dev/${a} /mnt/d`);
    await good('dd if=/dev/urandom of=/mnt/d/random bs=64k count=192 2>/dev/null', 'sync');
    [written] = (await guest.check('sha256sum /mnt/d/random')).split(' ') as [string];
    await good('umount /mnt/d', 'echo 3 > /proc/sys/vm/drop_caches');
    await good(`mount -t ext4 /dev/${a} /mnt/d`);
    match(await guest.check('sha256sum /mnt/d/random'), new RegExp(`^${written} `));
  });

  await t.test('discarded space is given back to the host', async () => {
    await good('dd if=/dev/urandom of=/mnt/d/gone bs=64k count=192 2>/dev/null', 'sync');
    const before = statSync(image).blocks * 512;
    await good('rm /mnt/d/gone', 'sync', 'busybox fstrim /mnt/d', 'umount /mnt/d');
    const after = statSync(image).blocks * 512;
    ok(before - after > 8 * MIB, `${before} bytes were allocated, and ${after} after fstrim`);
    match(checkExt4(image), /files/);
    equal(createHash('sha256').update(readExt4(image, 'random')).digest('hex'), written);
  });

  await t.test('sg3-utils find a disk that keeps to the standards', async () => {
    match(await good(`sg_inq /dev/${b}`, `sg_luns /dev/${b}`), /SPC-4[^]*2 lun entries/);
    const pages = await good(`sg_vpd -a /dev/${b}`, `sg_vpd -p lbpv /dev/${b}`);
    match(pages, /Maximum unmap LBA count: 131072[^]*Non-rotating[^]*\(LBPRZ\): 1/);
    match(await good(`sg_readcap -l /dev/${b}`), /lbpme=1, lbprz=1[^]*Last LBA=32767/);
    match(await good(`sg_modes /dev/${b}`), /Caching[^]*08 12 04[^]*Control/);
    match(await good(`sg_opcodes /dev/${b}`), /Compare and write[^]*Get LBA status/);
    match(await good(`sg_requests /dev/${b}`, `sg_turs /dev/${b}`), /No Sense/);
    match(await good(`sg_get_lba_status --lba=0 /dev/${b}`), /blocks: +32768/);
    await good(`sg_sync /dev/${b}`, `sg_verify --lba=0 --count=1000 /dev/${b}`);
  });

  await t.test('sg3-utils write, unmap, compare', async () => {
    await good(
      'dd if=/bin/busybox of=/tmp/a bs=512 count=1 2>/dev/null',
      'cat /tmp/a /tmp/a > /tmp/aa',
    );
    const same = `sg_write_same --lba=8 --num=16 --in=/tmp/a --xferlen=512 /dev/${b}`;
    const check = `sg_raw -s 512 -i /tmp/a /dev/${b} 2f 06 00 00 00 08 00 00 10 00`; // BYTCHK 3
    await good(same, check, `${same} --10`, check);
    await good(`sg_unmap --lba=8 --num=8 --force /dev/${b}`);
    await ended(14, check); // sg3-utils: miscompare
    await good(`sg_write_same -U --lba=16 --num=8 --xferlen=512 /dev/${b}`); // zeros
    const compare = `sg_compare_and_write --in=/tmp/x --lba=8 --num=1 --xferlen=1024 /dev/${b}`;
    await good('dd if=/dev/zero bs=512 count=1 2>/dev/null | cat - /tmp/a > /tmp/x', compare);
    await ended(14, compare);
    await good(`sgp_dd if=/bin/busybox of=/dev/${sg} bs=512 count=1000 thr=4 2>&1`);
    await good(`sgp_dd if=/dev/${sg} of=/tmp/back bs=512 count=1000 thr=4 2>&1`);
    await good('head -c 512000 /bin/busybox | cmp - /tmp/back');
  });

  await t.test('modes, resets, and what is refused', async () => {
    const page = `08,12${',00'.repeat(18)}`;
    await good(`sg_wr_mode --page=8 --contents=${page} /dev/${b}`);
    match(await guest.check(`sg_modes -p 8 /dev/${b}`), /08 12 00/);
    await good(`sg_start --stop /dev/${b}`);
    await ended(2, `sg_turs /dev/${b}`); // not ready
    await good(`sg_start --start /dev/${b}`, `sg_turs /dev/${b}`, `sg_reset -d /dev/${b}`);
    match((await guest.run(`sg_turs /dev/${b}`)).output, /Bus device reset/);
    const behind = `sg_raw -r 512 /dev/${b} 28 00 ff ff ff ff 00 00 01 00 2>&1`;
    match((await guest.run(behind)).output, /address out of range/);
    ok((await guest.run(`dd if=/dev/zero of=/dev/${c} bs=4096 count=1 2>&1`)).status !== 0);
  });

  await t.test('reservations: keys, types, conflicts, and what a reset leaves', async () => {
    const persist = `sg_persist /dev/${sg}`;
    match(await good(`${persist} -c`), /Write Exclusive, all registrants: 1/);
    match(await good(`${persist} --in -k`), /generation=0x0, there are NO registered/);
    await ended(24, `${persist} --out --reserve --param-rk=0xabc --prout-type=5`);
    await good(`${persist} --out --register --param-sark=0xabc`);
    await ended(5, `${persist} --out --register --param-rk=0xabc --param-sark=1 -Z`); // APTPL
    await good(`${persist} --out --reserve --param-rk=0xabc --prout-type=5`);
    match(await good(`${persist} --in -r`), /Key=0xabc[^]*Write Exclusive, registrants only/);
    match(await good(`${persist} --in -s`), /Key=0xabc[^]*Reservation holder/);
    await ended(24, `sg_raw /dev/${sg} 16 00 00 00 00 00`); // RESERVE (6)
    await good(`sg_reset -d /dev/${b}`);
    await ended(6, `sg_turs /dev/${b}`); // unit attention
    const preempt = '--param-rk=0xabc --param-sark=0xabc --prout-type=8';
    await good(`${persist} --out --preempt-abort ${preempt}`);
    match(await good(`${persist} --in -r`), /Key=0x0[^]*Exclusive Access, all registrants/);
    await ended(5, `${persist} --out --release --param-rk=0xabc --prout-type=1`);
    await good(`${persist} --out --release --param-rk=0xabc --prout-type=8`);
    await good(`${persist} --out --register-ignore --param-sark=0xdef`);
    await good(`${persist} --out --clear --param-rk=0xdef`);
    match(await good(`${persist} --in -k`), /PR generation=0x4, there are NO registered/);
    await good(...['16', '17'].map((opcode) => `sg_raw /dev/${sg} ${opcode} 00 00 00 00 00`));
  });

  await t.test('logs and buffers', async () => {
    const logs = await good(`sg_logs -a /dev/${sg}`);
    match(logs, /Write error counter page[^]*Total bytes processed = [1-9][0-9]{5}/);
    match(logs, /Read error counter page[^]*Total uncorrected errors = 0/);
    match(logs, /Accumulated start-stop cycles = 1/);
    await good(`sg_write_buffer -m data --in=/tmp/a --length=512 /dev/${sg}`);
    // sg_read_buffer of sg3-utils 1.46 asks for no bytes, whatever it is told to.
    const data = `sg_raw -r 512 -o /tmp/b /dev/${sg} 3c 02 00 00 00 00 00 02 00 00`;
    await good(`sg_read_buffer -m desc /dev/${sg}`, data, 'cmp /tmp/a /tmp/b');
    await good(`sg_rbuf --size=1048576 /dev/${sg}`);
    await ended(5, `sg_rbuf --echo --size=65536 /dev/${sg}`); // nothing is there to be echoed
    await good('dd if=/bin/busybox of=/tmp/e bs=4096 count=1 2>/dev/null');
    await good(`sg_write_buffer -m echo --in=/tmp/e --length=4096 /dev/${sg}`);
    const echo = `sg_raw -r 4096 -o /tmp/b /dev/${sg} 3c 0a 00 00 00 00 00 10 00 00`;
    await good(`sg_rbuf --echo --size=65536 /dev/${sg}`, echo, 'cmp /tmp/e /tmp/b');
  });

  await t.test('units come and go while the guest runs', async () => {
    server.say(`add 0:7=${other}`);
    const seen = async (name: string): Promise<boolean> => (await units(guest)).includes(name);
    await waitFor('the new unit', 10_000, () => seen('0:0:0:7'));
    server.say('add 9:0=memory:8M');
    await waitFor('the new target', 10_000, () => seen('0:0:9:0'));
    await waitFor(
      'its disk',
      10_000,
      async () => (await guest.run('test -b /dev/sde')).status === 0,
    );
    equal((await sysfs(guest, 'sdd', 'size'))[0], '131072');
    await good('dd if=/tmp/back of=/dev/sde bs=64k conv=fsync 2>/dev/null');
    server.say('remove 9:0');
    await waitFor('its end', 10_000, async () => !(await seen('0:0:9:0')));
    ok(await seen('0:0:0:7'));
  });

  await t.test('blocks of a file: mapped or not, compared by several at once', async () => {
    await good('dd if=/tmp/back of=/dev/sdd bs=64k count=4 seek=4 conv=fsync 2>/dev/null');
    const status = await good('sg_get_lba_status --brief --maxlen=512 --lba=0 /dev/sdd');
    match(status, /0x0{16}  0x200  1[^]*200  0x200  0[^]*400  0x1fc00  1/);
    await good('dd if=/tmp/back of=/tmp/v bs=512 count=8 2>/dev/null');
    await good('sg_raw -s 4096 -i /tmp/v /dev/sdd 8f 02 00 00 00 00 00 00 02 00 00 00 00 08 00 00');
    const tries = [1, 2, 3, 4].map((who) => {
      const swap = `sg_compare_and_write --in=/tmp/c${who} --lba=64 --num=1 --xferlen=1024 /dev/sdd`;
      return `( ${swap} >/dev/null 2>&1; echo $? > /tmp/r${who} ) &`;
    });
    const make = [1, 2, 3, 4].map((who) => {
      return `(dd if=/dev/zero bs=512 count=1; dd if=/dev/urandom bs=512 count=1) 2>/dev/null > /tmp/c${who}`;
    });
    await good(...make);
    for (let round = 0; round < 5; round++) {
      await good('sg_write_same --lba=64 --num=1 --xferlen=512 /dev/sdd');
      const results = await good(`${tries.join(' ')} wait`, 'cat /tmp/r1 /tmp/r2 /tmp/r3 /tmp/r4');
      deepEqual(results.trim().split('\n').sort(), ['0', '14', '14', '14']);
    }
  });

  await t.test('a file that grows is a disk that grows', async () => {
    truncateSync(image, 96 * MIB);
    server.signal('SIGUSR2');
    const blocks = String((96 * MIB) / 512);
    await waitFor('the new size', 10_000, async () => {
      return (await sysfs(guest, a, 'size'))[0] === blocks;
    });
  });

  await t.test('the guest reboots, and finds it all again', async () => {
    await guest.reboot();
    deepEqual(await units(guest), ['0:0:0:0', '0:0:0:1', '0:0:0:7', '0:0:3:0']);
    const again = await nameOfUnit(guest, '0:0:0:0');
    await good('mkdir -p /mnt/d', `mount -t ext4 /dev/${again} /mnt/d`);
    match(await guest.check('sha256sum /mnt/d/random'), new RegExp(`^${written} `));
    await good('umount /mnt/d');
    const log = await guest.check('dmesg');
    deepEqual(
      log.split('\n').filter((line) => /I\/O error|EXT4-fs error|BUG:/.test(line)),
      [],
    );
  });

  await guest.close();
  const { counters } = (await server.end()) as { counters: Record<string, number> };
  t.diagnostic(JSON.stringify(counters));
  equal(counters['errors'], 0);
  equal(counters['faults'], 0);
  for (const kind of ['reads', 'writes', 'flushes', 'unmaps', 'tasks', 'events']) {
    ok((counters[kind] ?? 0) > 0, `no ${kind}`);
  }
});
