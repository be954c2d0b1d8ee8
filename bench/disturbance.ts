/**
 * Was a run disturbed? Both polling threads have a core each; whatever else runs there makes them
 * wait, and a virtual switch whose thread waits 10 % of the time loses far more than 10 % of its
 * frames. The kernel counts the waiting: second field of /proc/PID/task/TID/schedstat.
 */
import { readFileSync, readdirSync } from 'node:fs';

type ThreadTimes = {
  readonly name: string;
  readonly runNs: number;
  readonly waitNs: number;
  /** Times that it gave its core away because it had nothing to do: it slept. */
  readonly sleeps: number;
};

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
        const status = readFileSync(`${folder}/${id}/status`, 'utf8');
        threads.set(`${pid}/${id}`, {
          name: /^Name:\s+(.*)$/m.exec(status)?.[1] ?? '',
          runNs: Number(run),
          waitNs: Number(wait),
          sleeps: Number(/^voluntary_ctxt_switches:\s+(\d+)$/m.exec(status)?.[1]),
        });
      } catch {
        continue; // the thread ended, or the kernel has no schedstats
      }
    }
  }
  return { atMs: performance.now(), threads };
}

/**
 * The largest share of the time, 0 .. 1, that a busy thread waited for its core: one that ran for
 * more than `busyShare` of the time.
 */
export function waitingShare(before: Snapshot, after: Snapshot, busyShare = 0.25): number {
  const elapsedNs = (after.atMs - before.atMs) * 1e6;
  let worst = 0;
  for (const [id, now] of after.threads) {
    const then = before.threads.get(id);
    if (then === undefined || now.runNs - then.runNs < elapsedNs * busyShare) continue;
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

/** How often all threads slept in between. */
export function sleepsBetween(before: Snapshot, after: Snapshot): number {
  let sleeps = 0;
  for (const [id, now] of after.threads)
    sleeps += now.sleeps - (before.threads.get(id)?.sleeps ?? 0);
  return sleeps;
}

/** "node-MainThread 0.2 ms in 1 turn": each thread that ran in between. */
export function threadsText(before: Snapshot, after: Snapshot): string {
  const lines: string[] = [];
  for (const [id, { name, runNs, sleeps }] of after.threads) {
    const then = before.threads.get(id) ?? { runNs: 0, sleeps: 0 };
    if (runNs === then.runNs) continue;
    lines.push(
      `${name} ${((runNs - then.runNs) / 1e6).toFixed(1)} ms, ${sleeps - then.sleeps} sleeps`,
    );
  }
  return lines.join('; ');
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
