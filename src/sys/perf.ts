/** What the kernel counts of one thread: how often it passed a tracepoint. */
import { readFileSync } from 'node:fs';
import { PERF_ATTR_INHERIT, PERF_TYPE_TRACEPOINT, PerfEventAttr } from '../wire/linux.ts';
import { check } from './errors.ts';
import { Fd } from './fd.ts';
import { native } from './native.ts';

/** Where tracefs is mounted: by itself, or below debugfs. */
const TRACEFS = ['/sys/kernel/tracing', '/sys/kernel/debug/tracing'];

/** The number of a tracepoint, `raw_syscalls/sys_enter`; null where the kernel shows none. */
export function tracepointId(name: string): number | null {
  for (const folder of TRACEFS) {
    try {
      return Number(readFileSync(`${folder}/events/${name}/id`, 'utf8'));
    } catch {
      continue; // not mounted here, or not ours to read
    }
  }
  return null;
}

export class PerfCounter {
  readonly #fd: Fd;
  readonly #value = new Uint8Array(8);

  /**
   * Counts from now on, for a thread and those that it makes.
   * @throws SysError EACCES (CAP_PERFMON), ESRCH.
   * @syscalls perf_event_open
   */
  static tracepoint(id: number, tid: number): PerfCounter {
    const attributes = PerfEventAttr.encode({
      type: PERF_TYPE_TRACEPOINT,
      size: PerfEventAttr.size,
      config: BigInt(id),
      samplePeriod: 0n,
      sampleType: 0n,
      readFormat: 0n,
      flags: PERF_ATTR_INHERIT,
      wakeupEvents: 0,
      bpType: 0,
      bpAddr: 0n,
    });
    const fd = native.perfOpen(attributes, tid);
    check('perf_event_open', fd, () => `tracepoint ${id} of thread ${tid}`);
    return new PerfCounter(new Fd(fd, `counter of thread ${tid}`));
  }

  private constructor(fd: Fd) {
    this.#fd = fd;
  }

  /** @syscalls read */
  read(): number {
    check('read', native.readBytes(this.#fd.number, this.#value), () => this.#fd.what);
    return Number(new DataView(this.#value.buffer).getBigUint64(0, true));
  }

  /** Idempotent. */
  close(): void {
    this.#fd.close();
  }
}
