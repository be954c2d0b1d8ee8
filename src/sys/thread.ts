/** Name, CPU time, affinity and network namespace of the calling thread. */
import { readFileSync } from 'node:fs';
import { getPriority, setPriority } from 'node:os';
import { CLONE_NEWNET } from '../wire/linux.ts';
import { check } from './errors.ts';
import { openFd } from './fd.ts';
import { native } from './native.ts';

/**
 * Name as `top -H` shows it; cut to 15 bytes. In the main thread it renames the process.
 * @syscalls prctl
 */
export function setThreadName(name: string): void {
  let cut = name.replaceAll('\0', '');
  while (Buffer.byteLength(cut) > 15) cut = cut.slice(0, -1);
  check('prctl(PR_SET_NAME)', native.setThreadName(cut), () => name);
}

/**
 * CPU seconds that this thread has used.
 * @syscalls clock_gettime
 */
export function threadCpuSeconds(): number {
  return native.cpuSeconds(0);
}

/**
 * CPU seconds that all threads of the process have used.
 * @syscalls clock_gettime
 */
export function processCpuSeconds(): number {
  return native.cpuSeconds(1);
}

/**
 * Lets this thread run on one CPU only.
 * @throws SysError EINVAL when there is no such CPU, or it is not allowed here.
 * @syscalls sched_setaffinity
 */
export function pinThread(cpu: number): void {
  check('sched_setaffinity', native.pinThread(cpu), () => `cpu ${cpu}`);
}

/** Cores that the host has running, whoever may use them; cpu-list format of sysfs: `0-3,6`. */
export function onlineCores(): ReadonlySet<number> {
  const cores = new Set<number>();
  const list = readFileSync('/sys/devices/system/cpu/online', 'latin1').trim();
  for (const range of list.split(',')) {
    const [from, to = from] = range.split('-').map(Number) as [number, number?];
    for (let core = from; core <= to; core++) cores.add(core);
  }
  return cores;
}

/**
 * Moves this thread into a network namespace: `/run/netns/NAME`. For tests.
 * @throws SysError EPERM without CAP_SYS_ADMIN, ENOENT.
 * @syscalls open setns close
 */
export function enterNetns(path: string): void {
  using fd = openFd(path, 0);
  check('setns', native.setns(fd.number, CLONE_NEWNET), () => path);
}

/**
 * Lets another thread run that waits for this processor. For loops that poll while what they wait
 * for may need the very core that they burn. Hot: returns 0 always.
 * @syscalls sched_yield
 */
export const yieldThread: () => number = native.yieldThread;

/**
 * From now on no blocking call holds this thread longer than `intervalMs`: a signal interrupts it
 * (EINTR). 0 ends that. For threads that touch descriptors which they share with strangers.
 * @syscalls timer_create timer_settime timer_delete rt_sigaction
 */
export function watchThread(intervalMs: number): void {
  check('timer_create', native.watchThread(intervalMs), () => `every ${intervalMs} ms`);
}

/**
 * The watch does not tick until `watchThread` is called again: before the thread sleeps. Hot.
 * @syscalls timer_settime
 */
export const pauseWatch: () => number = native.pauseWatch;

/** nice(2) of the calling thread while it must not wait for others: the most that there is. */
const URGENT = -20;

/**
 * Puts the calling thread before all ordinary ones, where the process may do so (CAP_SYS_NICE).
 * Returns what undoes it; to be called by the same thread, soon.
 * @syscalls getpriority setpriority
 */
export function hurryThread(): () => void {
  const usual = getPriority(0);
  try {
    setPriority(0, URGENT);
  } catch {
    return () => undefined;
  }
  return () => setPriority(0, usual);
}
