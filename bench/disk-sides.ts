/** The back-ends of bench/blk.ts as processes, and the cost of raw io_uring beside them. */
import { execFileSync, type ChildProcess } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { endChild, OutputTail, startChild } from '../src/vmm/index.ts';
import { waitFor } from '../test/peers/scratch.ts';
import { StorageDaemon } from '../test/peers/storage-daemon.ts';
import { compiledProgram } from './compile.ts';
import { BACKEND_CORE } from './scenario.ts';

export const DISK_BYTES = 64 * 2 ** 20;

/** What is below the disk; see the head of bench/blk.ts. */
export type Below = 'null' | 'memory' | 'file' | 'direct';

export type DiskScenario = {
  readonly below: Below;
  readonly op: 'read' | 'write';
  readonly depth: number;
  readonly queues: number;
};

export type Side = { readonly pid: number; close(): Promise<void> };

export type SideKind = {
  readonly name: 'vring' | 'qemu';
  start(scenario: DiskScenario, socket: string, file: string): Promise<Side>;
};

const SERVER = fileURLToPath(new URL('./disk-server.ts', import.meta.url));

export const VRING: SideKind = {
  name: 'vring',
  async start({ below, queues }, socket, file) {
    const image =
      below === 'null' || below === 'memory'
        ? [below, String(DISK_BYTES)]
        : ['file', file, 'auto', below === 'direct' ? 'on' : 'off'];
    const args = [SERVER, socket, String(queues), String(BACKEND_CORE), ...image];
    const child: ChildProcess = startChild(process.execPath, args, {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const log = new OutputTail(16_384);
    for (const stream of [child.stdout, child.stderr]) {
      stream?.setEncoding('utf8').on('data', (text: string) => log.append(text));
    }
    await waitFor('bench/disk-server.ts', 20_000, () => {
      if (child.exitCode !== null) throw new Error(`it ended: ${log.text}`);
      return log.text.includes('ready');
    });
    return { pid: child.pid!, close: async () => void (await endChild(child)) };
  },
};

export const QEMU: SideKind = {
  name: 'qemu',
  start({ below, queues }, socket, file) {
    const place = { file: below === 'null' ? null : file, sizeBytes: DISK_BYTES };
    const direct = below === 'direct';
    return StorageDaemon.start({ socket, ...place, direct, queues, core: BACKEND_CORE });
  },
};

/** Requests per second of the same I/O on the same file, with nobody around it. */
export function uringCost(
  { below, op, depth }: DiskScenario,
  file: string,
  seconds: number,
): number {
  const way = below === 'direct' ? 'direct' : 'buffered';
  const args = [
    '-c',
    String(BACKEND_CORE),
    compiledProgram('uring-cost'),
    file,
    String(depth),
    String(seconds),
  ];
  return Number(execFileSync('taskset', [...args, op, way, 'uring'], { encoding: 'utf8' }));
}
