/**
 * What the threads of a data path cost: processor time, wake-ups and system calls, as the kernel
 * counts them. For threads of any process and for kernel threads.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { PerfCounter, tracepointId } from '../sys/index.ts';

const NS_PER_S = 1e9;

export type Usage = {
  readonly cpuSeconds: number;
  /** Times that a thread slept and was woken: voluntary context switches. */
  readonly wakeups: number;
  /** Null where the kernel does not let them be counted. */
  readonly systemCalls: number | null;
};

/** Thread ids of a process; its vhost workers (Linux 6.4 makes them threads of it) apart. */
export function processTasks(pid: number): { readonly own: number[]; readonly vhost: number[] } {
  const all = readdirSync(`/proc/${pid}/task`).map(Number);
  const isVhost = (tid: number): boolean => commandOf(tid).startsWith('vhost-');
  return { own: all.filter((tid) => !isVhost(tid)), vhost: all.filter(isVhost) };
}

/** The kernel threads that vhost made for a process, before Linux 6.4: `vhost-PID`. */
export function vhostKernelThreads(pid: number): number[] {
  const pids = readdirSync('/proc').filter((name) => /^\d+$/.test(name));
  return pids.map(Number).filter((tid) => commandOf(tid) === `vhost-${pid}`);
}

export class TaskMeter {
  readonly #tids: readonly number[];
  readonly #counters: PerfCounter[] = [];
  readonly #before: Usage;

  /** Counts from now on. Threads that the tasks make later cost system calls only. */
  constructor(tids: readonly number[]) {
    this.#tids = tids;
    const id = tracepointId('raw_syscalls/sys_enter');
    try {
      if (id !== null) for (const tid of tids) this.#counters.push(PerfCounter.tracepoint(id, tid));
    } catch {
      this.#closeCounters(); // not ours to count: CAP_PERFMON
    }
    this.#before = this.#sum();
  }

  /** What was used since the beginning; the counting ends. */
  stop(): Usage {
    const after = this.#sum();
    this.#closeCounters();
    const { cpuSeconds, wakeups, systemCalls } = this.#before;
    return {
      cpuSeconds: after.cpuSeconds - cpuSeconds,
      wakeups: after.wakeups - wakeups,
      systemCalls:
        after.systemCalls === null || systemCalls === null ? null : after.systemCalls - systemCalls,
    };
  }

  #sum(): Usage {
    let cpuSeconds = 0;
    let wakeups = 0;
    for (const tid of this.#tids) {
      cpuSeconds += cpuSecondsOf(tid);
      wakeups += voluntarySwitches(tid);
    }
    const counted = this.#counters.length > 0 || this.#tids.length === 0;
    const systemCalls = counted
      ? this.#counters.reduce((sum, counter) => sum + counter.read(), 0)
      : null;
    return { cpuSeconds, wakeups, systemCalls };
  }

  #closeCounters(): void {
    for (const counter of this.#counters.splice(0)) counter.close();
  }
}

export function addUsage(a: Usage, b: Usage): Usage {
  return {
    cpuSeconds: a.cpuSeconds + b.cpuSeconds,
    wakeups: a.wakeups + b.wakeups,
    systemCalls:
      a.systemCalls === null || b.systemCalls === null ? null : a.systemCalls + b.systemCalls,
  };
}

/** schedstat counts nanoseconds; stat, which every kernel has, ticks of 10 ms. */
function cpuSecondsOf(tid: number): number {
  const exact = read(tid, 'schedstat').split(' ')[0];
  if (exact !== undefined && exact !== '' && exact !== '0') return Number(exact) / NS_PER_S;
  const fields = read(tid, 'stat').split(') ')[1]?.split(' ') ?? [];
  return (Number(fields[11] ?? 0) + Number(fields[12] ?? 0)) / 100;
}

function voluntarySwitches(tid: number): number {
  const match = /^voluntary_ctxt_switches:\s*(\d+)/m.exec(read(tid, 'status'));
  return Number(match?.[1] ?? 0);
}

function commandOf(tid: number): string {
  return read(tid, 'comm').trim();
}

/** Empty for a thread that is gone. */
function read(tid: number, file: string): string {
  try {
    return readFileSync(`/proc/${tid}/${file}`, 'utf8');
  } catch {
    return '';
  }
}
