/**
 * ext4 and xfs on our disks, block devices and SCSI units, in a guest of QEMU with Debian's kernel:
 * made in the guest, under random operations that are verified, trimmed, grown while they are
 * mounted, served by processes that are killed (blk: this QEMU does not reconnect to SCSI), and
 * found again after the guest was rebooted. Checked at the end by e2fsck and xfs_repair, from
 * outside.
 *
 * VRING_FSX_OPERATIONS sets how many operations each of the four fsx does at least (300), and
 * VRING_KILLS how often both servers are killed (3).
 */
import { deepEqual, equal, match, ok } from 'node:assert/strict';
import { statSync, truncateSync } from 'node:fs';
import { test, type TestContext } from 'node:test';
import type { LinuxGuest } from '../../src/vmm/index.ts';
import {
  DISK_GUEST_PEERS,
  type DiskGuestOptions,
  kernelComplaints,
  launchDiskGuest,
  nameOfUnit,
} from '../peers/blk-guest.ts';
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
  /** Of a block device. */
  readonly queues: number;
  readonly sizeMib: number;
  readonly grownMib: number;
  /** Words for the guest's shell; `node` as in `/dev/vda`. */
  readonly make: (node: string) => string;
  readonly mount: (node: string) => string;
  readonly grow: (node: string) => string;
};

const DISKS: readonly Disk[] = [
  {
    kind: 'ext4',
    queues: 2,
    sizeMib: 64,
    grownMib: 128,
    make: (node) => `mkfs.ext4 -q /dev/${node}`,
    mount: (node) => `mkdir -p /mnt/ext4; mount -t ext4 -o discard /dev/${node} /mnt/ext4`,
    grow: (node) => `resize2fs /dev/${node}`,
  },
  {
    kind: 'xfs', // 300 MiB at least: mkfs.xfs
    queues: 4,
    sizeMib: 320,
    grownMib: 448,
    make: (node) => `mkfs.xfs -q /dev/${node}`,
    mount: (node) => `mkdir -p /mnt/xfs; mount -t xfs /dev/${node} /mnt/xfs`,
    grow: () => 'xfs_growfs /mnt/xfs',
  },
];

const FOLDERS = DISKS.map(({ kind }) => `/mnt/${kind}`);

/** How the guest comes to the disks. */
type Way = {
  readonly device: 'vhost-user-blk' | 'vhost-user-scsi';
  /** In the order of DISKS. */
  readonly queues: readonly number[];
  serve(scratch: Scratch, images: readonly string[]): Promise<Served>;
  /** Names in the guest, in the order of DISKS: other ones after a reboot, perhaps. */
  nodes(guest: LinuxGuest): Promise<string[]>;
};

type Served = {
  /** One for both, or one for each. */
  readonly servers: readonly Supervisor[];
  readonly machine: Pick<DiskGuestOptions, 'disks' | 'adapter'>;
};

const BLK: Way = {
  device: 'vhost-user-blk',
  queues: DISKS.map(({ queues }) => queues),
  async serve(scratch, images) {
    const sockets = DISKS.map(({ kind }) => scratch.path(`${kind}.s`));
    const servers: Supervisor[] = [];
    for (const [i, { queues }] of DISKS.entries()) {
      const words = ['--socket', sockets[i]!, '--file', images[i]!, '--queues', String(queues)];
      servers.push(scratch.own(await Supervisor.start('serve', 'blk', '--json', ...words)));
    }
    const disks = DISKS.map(({ queues }, i) => {
      return { socket: sockets[i]!, queues, packed: i === 0 };
    });
    return { servers, machine: { disks } };
  },
  nodes: async () => ['vda', 'vdb'],
};

const SCSI_QUEUES = 2;

/** Two targets of one adapter. This QEMU does not reconnect to it: nobody is killed. */
const SCSI: Way = {
  device: 'vhost-user-scsi',
  queues: DISKS.map(() => SCSI_QUEUES),
  async serve(scratch, images) {
    const socket = scratch.path('scsi.s');
    const units = images.flatMap((image, target) => ['--lun', `${target}:0=${image}`]);
    const words = ['--socket', socket, '--queues', String(SCSI_QUEUES), ...units];
    const server = scratch.own(await Supervisor.start('serve', 'scsi', '--json', ...words));
    return { servers: [server], machine: { disks: [], adapter: { socket, queues: SCSI_QUEUES } } };
  },
  nodes: (guest) => Promise.all(DISKS.map((_, target) => nameOfUnit(guest, `0:0:${target}:0`))),
};

/** Two on each disk at once, each on a processor, and so on a queue, of its own. */
async function randomOperations(guest: LinuxGuest): Promise<void> {
  const runs = FOLDERS.flatMap((folder, i) =>
    [0, 1].map((n) => {
      const words = `${folder}/fsx${n} ${SEED + 2 * i + n} ${OPERATIONS} 3000000`;
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

for (const way of [BLK, SCSI]) {
  test(`file systems live on disks of ${way.device} in QEMU`, (t) => liveOn(t, way));
}

async function liveOn(t: TestContext, way: Way): Promise<void> {
  if (!requirePeer(t, ...PEERS)) return;
  await using scratch = new Scratch();
  t.diagnostic(`seed ${SEED}`);
  const images = DISKS.map(({ kind, sizeMib }) => {
    return createDiskFile(scratch.path(kind), sizeMib * MIB);
  });
  const { servers, machine } = await way.serve(scratch, images);
  const guest = scratch.own(
    launchDiskGuest({
      ...machine,
      cpus: 4,
      programs: PROGRAMS,
      files: [buildGuestTool('fsx', scratch.folder)],
    }),
  );
  await guest.waitReady();
  let nodes = await way.nodes(guest);

  await t.test('made and mounted, over several queues', async () => {
    for (const [i, { make, mount }] of DISKS.entries()) {
      const node = nodes[i]!;
      const queues = (await guest.check(`ls /sys/block/${node}/mq`)).trim().split(/\s+/).length;
      equal(queues, way.queues[i]);
      await guest.check(`${make(node)} && { ${mount(node)}; }`);
    }
  });

  await t.test('random operations read what they wrote', () => randomOperations(guest));

  await t.test('what is deleted is given back: mount -o discard, fstrim', async () => {
    for (const [i, { kind }] of DISKS.entries()) await givenBack(guest, kind, images[i]!);
  });

  await t.test('both grow while they are mounted', async () => {
    for (const [i, disk] of DISKS.entries()) {
      truncateSync(images[i]!, disk.grownMib * MIB);
      servers[i % servers.length]!.signal('SIGUSR2');
      await grown(guest, disk, nodes[i]!);
    }
    // Linux 6.1's xfs does not replay a log that still holds a growth and what was written beyond
    // the old size: mount fails with EUCLEAN, also on QEMU's own virtio-blk. So the log is emptied.
    await guest.check(`umount /mnt/xfs; ${DISKS[1]!.mount(nodes[1]!)}`);
  });

  if (way === BLK) {
    await t.test(
      `both servers are killed ${KILLS} times under random operations`,
      async (kills) => {
        const plan = { times: KILLS, random: Math.random };
        kills.diagnostic(await killUnderFsx(guest, servers, FOLDERS, plan, SEED + 10));
      },
    );
  }

  await t.test('the guest reboots and finds everything', async () => {
    const sums = 'sha256sum /mnt/*/*[01]';
    const before = await guest.check(`sync; ${sums}`);
    deepEqual(await kernelComplaints(guest), []);
    await guest.reboot(); // at once: both journals are replayed
    nodes = await way.nodes(guest);
    for (const [i, { mount }] of DISKS.entries()) await guest.check(mount(nodes[i]!));
    equal(await guest.check(sums), before);
    match(before, /xfs\/fsx1/);
    deepEqual(await kernelComplaints(guest), []);
    await guest.check(`umount ${FOLDERS.join(' ')}`);
  });

  await guest.close();
  for (const server of servers) {
    const { counters } = (await server.close()) as { counters: Record<string, number> };
    t.diagnostic(`since the last start: ${JSON.stringify(counters)}`);
    deepEqual([counters['errors'], counters['faults']], [0, 0]);
  }
  match(checkExt4(images[0]!), /files/);
  checkXfs(images[1]!);
}

async function givenBack(guest: LinuxGuest, kind: Disk['kind'], image: string): Promise<void> {
  const path = `/mnt/${kind}/gone`;
  await guest.check(`dd if=/dev/urandom of=${path} bs=64k count=192 2>/dev/null; sync`);
  const before = allocated(image);
  await guest.check(`rm ${path}; sync`);
  if (kind === 'xfs') await guest.check(`busybox fstrim /mnt/${kind}`);
  await waitFor(`${kind} to give back 8 MiB of ${before} bytes`, 5000, () => {
    return before - allocated(image) > 8 * MIB;
  });
}

/** The guest sees the new size, gives it to the file system, and writes there. */
async function grown(guest: LinuxGuest, disk: Disk, node: string): Promise<void> {
  const { kind, sizeMib, grownMib, grow } = disk;
  await waitFor('the new size', 5000, async () => {
    const sectors = (await guest.check(`cat /sys/block/${node}/size`)).trim();
    return sectors === String((grownMib * MIB) / 512);
  });
  await guest.check(grow(node));
  const [, mib] = /\s(\d+)\s/.exec(await guest.check(`df -m /mnt/${kind} | tail -1`)) ?? [];
  ok(Number(mib) > sizeMib, `${node} has ${mib} MiB`);
  // Written further than the old size reached.
  const space = `busybox fallocate -l ${sizeMib - 24}M /mnt/${kind}/space`;
  const data = `dd if=/dev/zero of=/mnt/${kind}/data bs=1M count=16 conv=fsync 2>/dev/null`;
  await guest.check(`${space} && ${data}; rm /mnt/${kind}/space /mnt/${kind}/data`);
}
