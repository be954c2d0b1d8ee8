/**
 * Was a run disturbed? Both polling threads have a core each; whatever else runs there makes them
 * wait, and a virtual switch whose thread waits 10 % of the time loses far more than 10 % of its
 * frames. The kernel counts the waiting: second field of /proc/PID/task/TID/schedstat.
 */
import { readFileSync, readdirSync } from 'node:fs';

type ThreadTimes = { readonly runNs: number; readonly waitNs: number };

export type Snapshot = {
  readonly atMs: number;
  readonly threads: ReadonlyMap<string, ThreadTimes>;
};

export function snapshot(pids: readonly number[]): Snapshot {
  const threads = new Map<string, ThreadTimes>();
  for (const pid of pids) {
    const folder = `/proc/${pid}/task`;
    for (const id of readdirSync(folder)) {
      try {
        const [run, wait] = readFileSync(`${folder}/${id}/schedstat`, 'utf8').split(' ');
        threads.set(`${pid}/${id}`, { runNs: Number(run), waitNs: Number(wait) });
      } catch {
        continue; // the thread ended, or the kernel has no schedstats
      }
    }
  }
  return { atMs: performance.now(), threads };
}

/** The largest share of the time, 0 .. 1, that a busy thread waited for its core. */
export function waitingShare(before: Snapshot, after: Snapshot): number {
  const elapsedNs = (after.atMs - before.atMs) * 1e6;
  let worst = 0;
  for (const [id, now] of after.threads) {
    const then = before.threads.get(id);
    if (then === undefined || now.runNs - then.runNs < elapsedNs / 4) continue;
    worst = Math.max(worst, (now.waitNs - then.waitNs) / elapsedNs);
  }
  return worst;
}

/** Processor time of all threads in between, threads that began since included, as a share. */
export function runShare(before: Snapshot, after: Snapshot): number {
  let runNs = 0;
  for (const [id, now] of after.threads) runNs += now.runNs - (before.threads.get(id)?.runNs ?? 0);
  return runNs / ((after.atMs - before.atMs) * 1e6);
}

/**
 * Time that all threads waited for their cores, idle ones too, as a share. For processes that sleep
 * and wake often: /proc/stat counts ticks, and takes them for busier than their own counts say.
 */
export function totalWaitingShare(before: Snapshot, after: Snapshot): number {
  let waitNs = 0;
  for (const [id, now] of after.threads) {
    waitNs += now.waitNs - (before.threads.get(id)?.waitNs ?? 0);
  }
  return waitNs / ((after.atMs - before.atMs) * 1e6);
}

/** Processor time that the busiest thread had in between. */
export function busiestRunNs(before: Snapshot, after: Snapshot): number {
  let most = 0;
  for (const [id, now] of after.threads) {
    most = Math.max(most, now.runNs - (before.threads.get(id)?.runNs ?? 0));
  }
  return most;
}
