/** What a figure needs beside it: which machine, and whether it is one. */
import { readFileSync } from 'node:fs';
import { cpus, release, totalmem } from 'node:os';

export type Machine = {
  readonly cpu: string;
  readonly cores: number;
  readonly memoryGib: number;
  readonly kernel: string;
  readonly node: string;
  /** The processor is interpreted (QEMU's TCG): figures say how paths relate, no more. */
  readonly emulated: boolean;
  /** A virtual machine, with the processor's own speed. */
  readonly virtual: boolean;
};

export function describeMachine(): Machine {
  const cpuinfo = readFileSync('/proc/cpuinfo', 'utf8');
  const cpu = cpus()[0]?.model.trim() ?? 'unknown';
  return {
    cpu,
    cores: cpus().length,
    memoryGib: Math.round(totalmem() / 2 ** 30),
    kernel: release(),
    node: process.version,
    emulated: /\bTCG\b/.test(cpu),
    virtual: /^flags\b.*\bhypervisor\b/m.test(cpuinfo),
  };
}
