/** Facts about the machine that a figure needs beside it. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { cpus, release, totalmem } from 'node:os';

export type Machine = Readonly<Record<string, string>>;

export function machineFacts(): Machine {
  return {
    cpu: `${cpus()[0]?.model ?? 'unknown'}, ${cpus().length} cores`,
    virtual: /^flags.* hypervisor/m.test(readFileSync('/proc/cpuinfo', 'utf8')) ? 'yes' : 'no',
    memory: `${Math.round(totalmem() / 2 ** 30)} GiB`,
    kernel: release(),
    load: readFileSync('/proc/loadavg', 'utf8').split(' ').slice(0, 3).join(' '),
    node: process.version,
    dpdk: debianVersion('dpdk'),
    openvswitch: debianVersion('openvswitch-switch-dpdk'),
    commit: output('git', ['rev-parse', '--short', 'HEAD']),
  };
}

function debianVersion(name: string): string {
  return output('dpkg-query', ['-W', '-f', '${Version}', name]);
}

function output(command: string, args: readonly string[]): string {
  try {
    const text = execFileSync(command, args, { stdio: ['ignore', 'pipe', 'ignore'] });
    return text.toString().trim() || 'unknown';
  } catch {
    return 'unknown';
  }
}
