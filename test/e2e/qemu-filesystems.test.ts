/**
 * ext4 and xfs on our disks, in a guest of QEMU with Debian's kernel: made in the guest, under
 * random operations that are verified, trimmed, grown while they are mounted, served by processes
 * that are killed, and found again after the guest was rebooted. Checked at the end by e2fsck and
 * xfs_repair, from outside.
 *
 * VRING_FSX_OPERATIONS sets how many operations each of the four fsx does at least (300), and
 * VRING_KILLS how often both servers are killed (3).
 */
import { deepEqual, equal, match, ok } from 'node:assert/strict';
import { statSync, truncateSync } from 'node:fs';
import { test } from 'node:test';
import type { LinuxGuest } from '../../src/vmm/index.ts';
import { DISK_GUEST_PEERS, kernelComplaints, launchDiskGuest } from '../peers/blk-guest.ts';
import { checkExt4, checkXfs, createDiskFile } from '../peers/blk-server.ts';
import { buildGuestTool } from '../peers/guest-tools.ts';
import { requirePeer } from '../peers/require-peer.ts';
import { Scratch, waitFor } from '../peers/scratch.ts';
import { Supervisor } from '../peers/supervisor.ts';
import { killUnderFsx } from '../peers/target-kills.ts';

const MIB = 2 ** 20;
const OPERATIONS = Number(process.env['VRING_FSX_OPERATIONS'] ?? 300);
const KILLS = Number(process.env['VRING_KILLS'] ?? 3);
const SEED = Math.floor(Math.random() * 1e6);
const PROGRAMS = ['mkfs.ext4', 'resize2fs', 'mkfs.xfs', 'xfs_growfs'];
const PEERS = [...DISK_GUEST_PEERS, ...PROGRAMS, 'fsck.ext4', 'xfs_repair', 'gcc'];

type Disk = {
  readonly kind: 'ext4' | 'xfs';
  readonly node: string;
  readonly queues: number;
  readonly sizeMib: number;
  readonly grownMib: number;
  /** Words for the guest's shell. */
  readonly make: string;
  readonly mount: string;
  readonly grow: string;
};

const DISKS: readonly Disk[] = [
  {
    kind: 'ext4',
    node: 'vda',
    queues: 2,
    sizeMib: 64,
    grownMib: 128,
    make: 'mkfs.ext4 -q /dev/vda',
    mount: 'mkdir -p /mnt/vda; mount -t ext4 -o discard /dev/vda /mnt/vda',
    grow: 'resize2fs /dev/vda',
  },
  {
    kind: 'xfs', // 300 MiB at least: mkfs.xfs
    node: 'vdb',
    queues: 4,
    sizeMib: 320,
    grownMib: 448,
    make: 'mkfs.xfs -q /dev/vdb',
    mount: 'mkdir -p /mnt/vdb; mount -t xfs /dev/vdb /mnt/vdb',
    grow: 'xfs_growfs /mnt/vdb',
  },
];

const FOLDERS = DISKS.map(({ node }) => `/mnt/${node}`);

/** Two on each disk at once, each on a processor, and so on a queue, of its own. */
async function randomOperations(guest: LinuxGuest): Promise<void> {
  const runs = DISKS.flatMap(({ node }, i) =>
    [0, 1].map((n) => {
      const words = `/mnt/${node}/fsx${n} ${SEED + 2 * i + n} ${OPERATIONS} 3000000`;
      return `taskset ${1 << (2 * i + n)} fsx ${words} & p="$p $!";`;
    }),
  );
  const wait = 'failed=0; for i in $p; do wait $i || failed=1; done; [ $failed = 0 ]';
  const timeoutMs = 60_000 + OPERATIONS * 40;
  const said = await guest.check(`p=; ${runs.join(' ')} ${wait}`, { timeoutMs });
  equal(said.match(/nothing differs/g)?.length, 4, said);
}

/** Bytes that the host's file system holds for the image. */
const allocated = (image: string): number => statSync(image).blocks * 512;

test('file systems live on the disks of a guest of QEMU', async (t) => {
  if (!requirePeer(t, ...PEERS)) return;
  await using scratch = new Scratch();
  t.diagnostic(`seed ${SEED}`);
  const images = DISKS.map(({ node, sizeMib }) =>
    createDiskFile(scratch.path(node), sizeMib * MIB),
  );
  const sockets = DISKS.map(({ node }) => scratch.path(`${node}.s`));
  const servers: Supervisor[] = [];
  for (const [i, { queues }] of DISKS.entries()) {
    const words = ['--socket', sockets[i]!, '--file', images[i]!, '--queues', String(queues)];
    servers.push(scratch.own(await Supervisor.start('serve', 'blk', '--json', ...words)));
  }
  const guest = scratch.own(
    launchDiskGuest({
      cpus: 4,
      disks: DISKS.map(({ queues }, i) => ({ socket: sockets[i]!, queues, packed: i === 0 })),
      programs: PROGRAMS,
      files: [buildGuestTool('fsx', scratch.folder)],
    }),
  );
  await guest.waitReady();

  await t.test('made and mounted, over several queues', async () => {
    for (const { node, queues, make, mount } of DISKS) {
      equal((await guest.check(`ls /sys/block/${node}/mq`)).trim().split(/\s+/).length, queues);
      await guest.check(`${make} && ${mount}`);
    }
  });

  await t.test('random operations read what they wrote', () => randomOperations(guest));

  await t.test('what is deleted is given back: mount -o discard, fstrim', async () => {
    for (const [i, { node, kind }] of DISKS.entries()) {
      const path = `/mnt/${node}/gone`;
      await guest.check(`dd if=/dev/urandom of=${path} bs=64k count=192 2>/dev/null; sync`);
      const before = allocated(images[i]!);
      await guest.check(`rm ${path}; sync`);
      if (kind === 'xfs') await guest.check(`busybox fstrim /mnt/${node}`);
      await waitFor(`${kind} to give back 8 MiB of ${before} bytes`, 5000, () => {
        return before - allocated(images[i]!) > 8 * MIB;
      });
    }
  });

  await t.test('both grow while they are mounted', async () => {
    for (const [i, { node, sizeMib, grownMib, grow }] of DISKS.entries()) {
      truncateSync(images[i]!, grownMib * MIB);
      servers[i]!.signal('SIGUSR2');
      await waitFor('the new size', 5000, async () => {
        const sectors = (await guest.check(`cat /sys/block/${node}/size`)).trim();
        return sectors === String((grownMib * MIB) / 512);
      });
      await guest.check(grow);
      const [, mib] = /\s(\d+)\s/.exec(await guest.check(`df -m /mnt/${node} | tail -1`)) ?? [];
      ok(Number(mib) > sizeMib, `${node} has ${mib} MiB`);
      // Written further than the old size reached.
      const space = `busybox fallocate -l ${sizeMib - 24}M /mnt/${node}/space`;
      const data = `dd if=/dev/zero of=/mnt/${node}/data bs=1M count=16 conv=fsync 2>/dev/null`;
      await guest.check(`${space} && ${data}; rm /mnt/${node}/space /mnt/${node}/data`);
    }
    // Linux 6.1's xfs does not replay a log that still holds a growth and what was written beyond
    // the old size: mount fails with EUCLEAN, also on QEMU's own virtio-blk. So the log is emptied.
    await guest.check(`umount /mnt/vdb; ${DISKS[1]!.mount}`);
  });

  await t.test(`both servers are killed ${KILLS} times under random operations`, async (kills) => {
    const plan = { times: KILLS, random: Math.random };
    kills.diagnostic(await killUnderFsx(guest, servers, FOLDERS, plan, SEED + 10));
  });

  await t.test('the guest reboots and finds everything', async () => {
    const sums = 'sha256sum /mnt/vd[ab]/*[01]';
    const before = await guest.check(`sync; ${sums}`);
    deepEqual(await kernelComplaints(guest), []);
    await guest.reboot(); // at once: both journals are replayed
    for (const { mount } of DISKS) await guest.check(mount);
    equal(await guest.check(sums), before);
    match(before, /vdb\/fsx1/);
    deepEqual(await kernelComplaints(guest), []);
    await guest.check('umount /mnt/vda /mnt/vdb');
  });

  await guest.close();
  for (const server of servers) {
    const { counters } = (await server.close()) as { counters: Record<string, number> };
    t.diagnostic(`since the last kill: ${JSON.stringify(counters)}`);
    deepEqual([counters['errors'], counters['faults']], [0, 0]);
  }
  match(checkExt4(images[0]!), /files/);
  checkXfs(images[1]!);
});
