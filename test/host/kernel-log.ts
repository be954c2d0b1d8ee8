/**
 * What the kernel inside says on its console, line by line: kept for the tail that an error
 * shows, and searched for reports of its own trouble.
 */
import { OutputTail } from '../../src/vmm/child-processes.ts';

/** `broken`: the kernel cannot be trusted any more. `warned`: somebody should look. */
export type KernelReport = { readonly kind: 'broken' | 'warned'; readonly line: string };

/** Linux: lib/bug.c, kernel/panic.c, arch/x86/kernel/dumpstack.c, mm/kasan, kernel/hung_task.c. */
const BROKEN =
  /\bBUG: |kernel BUG at |\bOops: |general protection fault|Kernel panic|KASAN: |soft lockup/;
const WARNED =
  /\bWARNING: CPU: |rcu.*detected.*stall|blocked for more than|refcount_t: |nobody cared|UBSAN: /;

/** A kernel that warns in a loop must not fill our memory. */
const MAX_REPORTS = 50;

export class KernelLog {
  readonly #tail = new OutputTail(32_768);
  #reports: KernelReport[] = [];
  #line = '';

  append(text: string): void {
    this.#tail.append(text);
    const lines = (this.#line + text).split('\n');
    this.#line = (lines.pop() as string).slice(-4096);
    for (const line of lines) this.#judge(line.trimEnd());
  }

  get tail(): string {
    return this.#tail.text.replaceAll('\r', '').trimEnd();
  }

  /** Reports since the last call. */
  takeReports(): KernelReport[] {
    const taken = this.#reports;
    this.#reports = [];
    return taken;
  }

  #judge(line: string): void {
    if (this.#reports.length >= MAX_REPORTS) return;
    if (BROKEN.test(line)) this.#reports.push({ kind: 'broken', line });
    else if (WARNED.test(line)) this.#reports.push({ kind: 'warned', line });
  }
}
