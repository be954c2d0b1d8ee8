/**
 * What serves disks is killed with SIGKILL at random moments, under load that knows every byte, and
 * started again by a supervisor.
 */
import { deepEqual, equal, ok } from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type BlkReport, connectBlkGuest, runBlkWorkload } from '../../src/guest/index.ts';
import type { LinuxGuest } from '../../src/vmm/index.ts';
import { DISK_GUEST_PEERS, kernelComplaints, launchDiskGuest } from './blk-guest.ts';
import { checkExt4, createDiskFile, formatExt4 } from './blk-server.ts';
import { buildGuestTool } from './guest-tools.ts';
import { Scratch, sleep, waitFor } from './scratch.ts';
import { DaemonSupervisor, Supervisor } from './supervisor.ts';

export const KILL_PEERS: readonly string[] = [...DISK_GUEST_PEERS, 'mkfs.ext4', 'fsck.ext4', 'gcc'];

export type Kill = {
  readonly number: number;
  /** From the kill before until the guest was back; null: it was killed again before that. */
  readonly backMs: number | null;
};

export type KillPlan = {
  readonly times: number;
  /**
   * Share of kills that do not wait until the guest is back; a quarter when left out. None with
   * QEMU: 7.2 forgets a back-end that dies after GET_FEATURES and before the end of its handshake.
   * Its chardev connects to the next one, its device never says a word again. Seen with a listener
   * of ten lines in place of ours, too.
   */
  readonly early?: number;
  /** Longest time between the guest's return and the next kill. */
  readonly loadMs?: number;
  /** Draws the moments: 0 to below 1. */
  readonly random: () => number;
  readonly onKill?: (kill: Kill) => void;
};

const MIB = 2 ** 20;
/** An early kill comes so soon after the one before. */
const EARLY_MS = 600;
/** Longest load between the guest's return and the next kill. */
const LOAD_MS = 300;
/** The same with QEMU's guest, whose processors are interpreted. */
const QEMU_LOAD_MS = 1000;
/** Of one run of fsx, which compares all of its file in the end: 2 s. */
const ROUND_OPERATIONS = 150;
/** Status of the guest's probe where fsx ended before it should. */
const FSX_ENDED = 9;
/** QEMU looks once a second; on a busy machine a process needs seconds to start. */
const BACK_MS = 60_000;

/** Our own guest over two queues: every block that it reads must be what it wrote. */
export async function killUnderOurGuest(
  plan: KillPlan,
  seed: number | null,
  packed: boolean,
): Promise<BlkReport> {
  await using scratch = new Scratch();
  const folder = mkdtempSync('/dev/shm/vring-'); // the machine's disk is not what is looked at
  scratch.own({ close: () => rmSync(folder, { recursive: true }) });
  const file = createDiskFile(join(folder, 'disk.img'), 16 * MIB);
  const socket = scratch.path('s');
  const target = scratch.own(await serve(socket, file));
  const guest = scratch.own(await connectBlkGuest({ socket, packed, queues: 2, reconnect: true }));
  const stop = new AbortController();
  const running = runBlkWorkload({
    guest,
    readPercent: 30,
    discardPercent: 2,
    zeroPercent: 2,
    flushEvery: 50,
    minBytes: 4096,
    maxBytes: 16384,
    verify: true,
    ...(seed === null ? {} : { seed }),
    signal: stop.signal,
  });
  const isBack = (): boolean => target.has('connected') && !guest.searching;
  await Promise.race([killAgainAndAgain([target], isBack, plan), running]);
  ok(!stop.signal.aborted && guest.running, 'the load ended by itself');
  stop.abort();
  const report = await running;
  equal(report.errors, 0, 'the guest saw errors');
  equal(report.wrongLengths, 0);
  ok(report.verify !== null && report.verify.checked > 0, 'nothing was compared');
  deepEqual(report.verify.examples, []);
  equal(report.repeated, 0, 'the inflight region knows what was under way');
  return report;
}

/** `serve`: `vring serve blk`. `daemon`: a disk of `vring switch`, in its configuration. */
export type KillVictim = 'serve' | 'daemon';

/** A guest of QEMU with ext4, two fsx on it. Returns what they did. */
export async function killUnderQemu(
  plan: KillPlan,
  seed: number,
  victim: KillVictim = 'serve',
): Promise<string> {
  await using scratch = new Scratch();
  const file = createDiskFile(scratch.path('disk.img'), 64 * MIB);
  formatExt4(file);
  const socket = scratch.path('s');
  const start = victim === 'serve' ? serve(socket, file) : serveByDaemon(scratch, socket, file);
  const target = scratch.own(await start);
  const files = [buildGuestTool('fsx', scratch.folder)];
  const disks = [{ socket, queues: 2, packed: true }];
  const guest = scratch.own(launchDiskGuest({ name: 'kill-guest', disks, files }));
  await guest.waitReady();
  await guest.check('mkdir -p /mnt/vda; mount -t ext4 -o discard /dev/vda /mnt/vda');
  const said = await killUnderFsx(guest, [target], ['/mnt/vda'], plan, seed);
  await guest.check('umount /mnt/vda');
  await guest.close();
  await target.close();
  checkExt4(file);
  return said;
}

/**
 * On file systems that are mounted: two fsx on each, one run after another, none of which may see a
 * difference. The first that does ends the kills.
 */
export async function killUnderFsx(
  guest: LinuxGuest,
  targets: readonly Supervisor[],
  folders: readonly string[],
  plan: KillPlan,
  seed: number,
): Promise<string> {
  const loops = folders.flatMap((folder, i) =>
    [0, 1].map((n) => {
      const run = `fsx ${folder}/killed${n} $s ${ROUND_OPERATIONS} 3000000`;
      const loop = `while [ ! -e /tmp/stop ] && ${run}; do s=$((s+1000)); done`;
      return `(s=${seed + 2 * i + n}; ${loop} > /tmp/killed-${i}-${n} 2>&1; echo >> /tmp/ended) &`;
    }),
  );
  await guest.check(`rm -f /tmp/stop /tmp/ended /tmp/killed-*; ${loops.join(' ')} true`);
  // A read past the page cache that ends: rings run.
  const read = 'dd if=/dev/${d##*/} bs=4k count=1 iflag=direct > /dev/null 2>&1 || exit 1';
  const reads = `for d in /sys/block/vd*; do ${read}; done`;
  const probe = `[ ! -e /tmp/ended ] || exit ${FSX_ENDED}; ${reads}`;
  const isBack = async (): Promise<boolean> => {
    for (const target of targets) if (!(await target.isServing())) return false;
    const { status } = await guest.run(probe);
    if (status === FSX_ENDED) throw new Error(await guest.check('tail -n 40 /tmp/killed-*'));
    return status === 0;
  };
  await killAgainAndAgain(targets, isBack, { loadMs: QEMU_LOAD_MS, ...plan, early: 0 });
  await guest.check('touch /tmp/stop');
  await waitFor('the end of fsx', BACK_MS, async () => {
    const { output } = await guest.run('wc -l < /tmp/ended 2>/dev/null');
    return Number(output) === loops.length;
  });
  const said = await guest.check('cat /tmp/killed-*');
  deepEqual(await kernelComplaints(guest), []);
  return fsxSummary(said, loops.length);
}

/** One line of what the runs of fsx said; all of it where one of them saw a difference. */
function fsxSummary(said: string, files: number): string {
  const lines = said.trim().split('\n');
  const rounds = lines.map((line) => /^fsx: (\d+) operations, .*: nothing differs$/.exec(line));
  ok(rounds.every((found) => found !== null) && rounds.length >= files, said);
  const operations = rounds.reduce((sum, found) => sum + Number(found![1]), 0);
  return (
    `fsx: ${rounds.length} rounds on ${files} files, ${operations} operations, ` +
    'each file compared at the end of its round: nothing differs'
  );
}

function serve(socket: string, file: string): Promise<Supervisor> {
  const words = ['--socket', socket, '--file', file, '--queues', '2'];
  return Supervisor.start('serve', 'blk', '--json', ...words);
}

function serveByDaemon(scratch: Scratch, socket: string, file: string): Promise<Supervisor> {
  const config = scratch.path('config.yaml');
  writeFileSync(
    config,
    JSON.stringify({ disks: [{ name: 'a', socket, queues: 2, layers: [file] }] }),
  );
  return DaemonSupervisor.startWith(config, scratch.path('control'));
}

/** `isBack`: the guest is served by the processes that run now. */
export async function killAgainAndAgain(
  targets: readonly Supervisor[],
  isBack: () => boolean | Promise<boolean>,
  { times, random, onKill, early = 0.25, loadMs = LOAD_MS }: KillPlan,
): Promise<void> {
  let killedAt = performance.now();
  for (let number = 1; number <= times; number++) {
    let backMs: number | null = null;
    if (number > 1 && random() < early) {
      await sleep(random() * EARLY_MS);
    } else {
      await waitFor('the guest to be back', BACK_MS, isBack);
      backMs = Math.round(performance.now() - killedAt);
      await sleep(random() * loadMs);
    }
    killedAt = performance.now();
    await Promise.all(targets.map((target) => target.kill()));
    onKill?.({ number, backMs });
  }
  await waitFor('the guest to be back', BACK_MS, isBack);
  await sleep(loadMs);
  const surprises = targets.flatMap((target) => target.surprises);
  deepEqual(surprises, [], 'a target ended by itself');
}
