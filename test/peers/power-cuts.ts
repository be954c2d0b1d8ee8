/**
 * Power cuts under a guest of QEMU: programs in it write files on ext4 and on xfs, with fsync, and
 * say of each step when it is durable; at a random moment both disks lose what was not flushed,
 * some of it, in any order, torn between sectors, and QEMU and the server are gone. Then e2fsck
 * looks at a copy of the ext4 disk, the next guest mounts both, replays their journals and looks
 * for everything that was acknowledged, and both are checked from outside before it goes on.
 */
import { equal, ok } from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { copyFileSync, constants, readFileSync, rmSync } from 'node:fs';
import type { GuestFile, LinuxGuest } from '../../src/vmm/index.ts';
import { DISK_GUEST_PEERS, kernelComplaints, launchDiskGuest } from './blk-guest.ts';
import { checkExt4, checkXfs, createDiskFile, formatExt4 } from './blk-server.ts';
import { buildGuestTool } from './guest-tools.ts';
import { type Cut, type PowerDisk, PowerDisks } from './power-disks.ts';
import { Scratch, sleep, waitFor } from './scratch.ts';

export const POWER_CUT_PEERS: readonly string[] = [
  ...DISK_GUEST_PEERS,
  'mkfs.ext4',
  'fsck.ext4',
  'mkfs.xfs',
  'xfs_repair',
  'gcc',
];

export type PowerCutPlan = {
  readonly times: number;
  readonly seed: number;
  readonly onCut?: (cut: PowerCut) => void;
};

export type PowerCut = {
  readonly number: number;
  /** How long the programs had written. */
  readonly writingMs: number;
  /** Steps that were acknowledged so far, of all programs on a disk. */
  readonly acknowledged: Readonly<Record<Kind, number>>;
  readonly cuts: Readonly<Record<Kind, Cut>>;
};

type Kind = 'ext4' | 'xfs';
type Disk = PowerDisk & { readonly kind: Kind; readonly node: string };

/** A program in the guest, and where it says what is durable. */
type Writer = {
  readonly kind: Kind;
  readonly folder: string;
  readonly seed: number;
  readonly ioPort: number;
  readonly said: string;
};

const MIB = 2 ** 20;
const SHORTEST_MS = 300;
const LONGEST_MS = 3000;
/** I/O ports that no device of a q35 has; its fw_cfg ends at 0x51b, PM begins at 0x600. */
const FIRST_IO_PORT = 0x5a0;
/** mulberry32's increment is odd, so that rounds draw different fates. */
const SEED_STEP = 0x6d2b79f5;

/** @throws when anything that was acknowledged is not there, or a file system is not whole. */
export async function cutPower(plan: PowerCutPlan): Promise<void> {
  await using scratch = new Scratch();
  const files = [buildGuestTool('durable', scratch.folder)];
  const disks = makeDisks(scratch);
  const writers = disks.flatMap(({ kind, node }, i) =>
    [0, 1].map((n) => ({
      kind,
      folder: `/mnt/${node}/w${n}`,
      seed: plan.seed + 2 * i + n,
      ioPort: FIRST_IO_PORT + 2 * i + n,
      said: scratch.path(`said-${2 * i + n}`),
    })),
  );
  const acknowledged = new Map<Writer, number>(writers.map((writer) => [writer, 0]));
  const random = sequence(plan.seed);

  for (let number = 1; number <= plan.times + 1; number++) {
    checkCopy(disks[0]!, scratch.path('copy'));
    const server = scratch.own(await PowerDisks.start(disks));
    const guest = scratch.own(boot(disks, writers, files));
    await guest.waitReady();
    await lookForAll(guest, disks, acknowledged);
    if (number > plan.times) return;
    const writingMs = Math.round(SHORTEST_MS + random() * (LONGEST_MS - SHORTEST_MS));
    await write(guest, acknowledged);
    await makeNoise(guest, disks);
    await sleep(writingMs);
    const [ext4, xfs] = (await server.cut((plan.seed + number * SEED_STEP) >>> 0)) as [Cut, Cut];
    await guest.kill();
    await server.close();
    for (const writer of writers) acknowledged.set(writer, lastSaid(writer, acknowledged));
    const sum = (kind: Kind): number =>
      [...acknowledged].reduce((all, [w, steps]) => all + (w.kind === kind ? steps : 0), 0);
    const steps = { ext4: sum('ext4'), xfs: sum('xfs') };
    plan.onCut?.({ number, writingMs, acknowledged: steps, cuts: { ext4, xfs } });
  }
}

function makeDisks(scratch: Scratch): Disk[] {
  const ext4 = createDiskFile(scratch.path('ext4.img'), 64 * MIB);
  formatExt4(ext4);
  const xfs = createDiskFile(scratch.path('xfs.img'), 320 * MIB);
  execFileSync('mkfs.xfs', ['-q', '-f', xfs], { stdio: 'pipe' });
  return [
    { kind: 'ext4', node: 'vda', file: ext4, socket: scratch.path('e'), queues: 2 },
    { kind: 'xfs', node: 'vdb', file: xfs, socket: scratch.path('x'), queues: 2 },
  ];
}

function boot(
  disks: readonly Disk[],
  writers: readonly Writer[],
  files: readonly GuestFile[],
): LinuxGuest {
  const debugcons = writers.flatMap(({ said, ioPort }, i) => [
    '-chardev',
    `file,id=said${i},path=${said}`,
    '-device',
    `isa-debugcon,chardev=said${i},iobase=${ioPort}`,
  ]);
  const cards = disks.map(({ socket, queues }, i) => ({ socket, queues, packed: i === 0 }));
  return launchDiskGuest({ name: 'power-guest', disks: cards, files, extra: debugcons });
}

/** Between 0 and 1, from a seed. */
function sequence(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0; // Numerical Recipes
    return state / 2 ** 32;
  };
}

/**
 * e2fsck with a journal to replay: whole afterwards without a question (1: it was changed, by the
 * journal at least), and whole when it looks again. xfs_repair does not replay; the guest does.
 */
function checkCopy({ file }: Disk, copy: string): void {
  copyFileSync(file, copy, constants.COPYFILE_FICLONE);
  const { status, stdout, stderr } = spawnSync('fsck.ext4', ['-f', '-p', copy], {
    encoding: 'utf8',
  });
  ok(status === 0 || status === 1, `fsck.ext4 -p ended with ${status}: ${stdout}${stderr}`);
  checkExt4(copy);
  rmSync(copy);
}

/** Mounts, which replays, checks every writer's folder, and the file systems from outside. */
async function lookForAll(
  guest: LinuxGuest,
  disks: readonly Disk[],
  acknowledged: ReadonlyMap<Writer, number>,
): Promise<void> {
  for (const { kind, node } of disks) {
    await guest.check(`mkdir -p /mnt/${node}; mount -t ${kind} /dev/${node} /mnt/${node}`);
  }
  for (const [{ folder, seed }, steps] of acknowledged) {
    await guest.check(`mkdir -p ${folder}; durable check ${folder} ${seed} ${steps}`);
  }
  for (const { node, kind, file } of disks) {
    // conv=fsync of nothing: the disk's own cache is flushed.
    const flush = `dd if=/dev/null of=/dev/${node} conv=fsync 2>/dev/null`;
    await guest.check(`umount /mnt/${node}; ${flush}`);
    if (kind === 'ext4') checkExt4(file);
    else checkXfs(file);
    await guest.check(`mount -t ${kind} /dev/${node} /mnt/${node}`);
  }
  equal((await kernelComplaints(guest)).join('\n'), '');
}

async function write(guest: LinuxGuest, acknowledged: ReadonlyMap<Writer, number>): Promise<void> {
  for (const [{ folder, seed, ioPort, said }, steps] of acknowledged) {
    const words = `${folder} ${seed} ${steps} ${ioPort}`;
    await guest.check(`sync; durable write ${words} > /tmp/durable-${ioPort} 2>&1 & true`);
    await waitFor(`the first step in ${folder}`, 20_000, async () => {
      if (readFileSync(said, 'utf8').includes('\n')) return true;
      const text = await guest.check(`cat /tmp/durable-${ioPort}`);
      if (text !== '') throw new Error(text);
      return false;
    });
  }
}

/** Data and names that nobody flushes: what a disk's cache holds when the power goes. */
async function makeNoise(guest: LinuxGuest, disks: readonly Disk[]): Promise<void> {
  for (const { node } of disks) {
    const at = `/mnt/${node}`;
    const data = `dd if=/dev/urandom of=${at}/noise bs=4k count=64 oflag=direct conv=notrunc`;
    const names = `mkdir ${at}/n$i; cp /etc/modules ${at}/n$i/; rm -rf ${at}/n$((i-9))`;
    const loop = `i=0; while :; do ${data} 2>/dev/null; ${names}; i=$((i+1)); done`;
    await guest.check(`rm -rf ${at}/n*; (${loop}) > /dev/null 2>&1 & true`);
  }
}

/** The last whole line; QEMU begins the file anew at each start. */
function lastSaid(writer: Writer, acknowledged: ReadonlyMap<Writer, number>): number {
  const line = readFileSync(writer.said, 'utf8').split('\n').at(-2);
  return line === undefined ? acknowledged.get(writer)! : Number(line);
}
