/**
 * Was a run disturbed? Our processes have the machine's cores for themselves; what anybody else
 * used of them meanwhile, or the host took away, makes a run useless. From /proc/stat and
 * /proc/PID/stat, in ticks of 10 ms.
 */
import { readFileSync } from 'node:fs';

const TICK_MS = 10; // USER_HZ is 100 on every architecture that Node runs on

export type CoreTimes = {
  readonly atMs: number;
  /** Busy time of all cores, and of our processes with their ended children. */
  readonly busyMs: number;
  readonly oursMs: number;
};

export function coreTimes(pids: readonly number[]): CoreTimes {
  const [, user, nice, system, , , irq, softirq, steal] = readFileSync('/proc/stat', 'utf8')
    .split('\n', 1)[0]!
    .split(/ +/)
    .map(Number) as number[];
  const busy = user! + nice! + system! + irq! + softirq! + steal!;
  let ours = 0;
  for (const pid of pids) {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    // utime, stime, and those of children that ended and were waited for (proc(5))
    for (const at of [11, 12, 13, 14]) ours += Number(fields[at]);
  }
  return { atMs: performance.now(), busyMs: busy * TICK_MS, oursMs: ours * TICK_MS };
}

/** How much of one core others had, 0 .. number of cores. */
export function foreignShare(before: CoreTimes, after: CoreTimes): number {
  const foreign = after.busyMs - before.busyMs - (after.oursMs - before.oursMs);
  return Math.max(0, foreign) / (after.atMs - before.atMs);
}
