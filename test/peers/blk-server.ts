/**
 * `vring serve blk` or `scsi` as a process of its own, started through the command line as a user
 * would.
 */
import { execFileSync, type ChildProcess } from 'node:child_process';
import { closeSync, openSync, truncateSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { childExit, endChild, OutputTail, startChild } from '../../src/vmm/index.ts';
import { waitFor } from './scratch.ts';

const MAIN = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url));
const START_TIMEOUT_MS = 180_000; // inside the test host, whose processors are interpreted

export class BlkServer {
  readonly #child: ChildProcess;
  readonly #log = new OutputTail(65_536);
  #lines: string[] = [];
  #partial = '';

  /** Starts it and waits until it says that it is ready. */
  static start(...args: string[]): Promise<BlkServer> {
    return BlkServer.#start('blk', args);
  }

  /** The same for `vring serve scsi`. */
  static startScsi(...args: string[]): Promise<BlkServer> {
    return BlkServer.#start('scsi', args);
  }

  static async #start(device: string, args: readonly string[]): Promise<BlkServer> {
    const server = new BlkServer(device, args);
    try {
      await server.waitEvent('ready', START_TIMEOUT_MS);
      return server;
    } catch (cause) {
      await server.close();
      throw new Error(`vring serve ${device} did not start; it said:\n${server.log}`, { cause });
    }
  }

  private constructor(device: string, args: readonly string[]) {
    const command = [MAIN, 'serve', device, '--json', ...args];
    this.#child = startChild(process.execPath, command, { stdio: ['pipe', 'pipe', 'pipe'] });
    this.#child.stderr?.setEncoding('utf8').on('data', (text: string) => this.#log.append(text));
    this.#child.stdout?.setEncoding('utf8').on('data', (text: string) => this.#receive(text));
  }

  get pid(): number {
    return this.#child.pid!;
  }

  get log(): string {
    return this.#log.text;
  }

  get isRunning(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  /** What it has said, one object per line of standard output. */
  get events(): Record<string, unknown>[] {
    return this.#lines.map((line) => JSON.parse(line) as Record<string, unknown>);
  }

  /** The last event of a kind, which may have happened already. */
  waitEvent(kind: string, timeoutMs = 10_000): Promise<Record<string, unknown>> {
    return waitFor(`event ${kind} of vring serve blk`, timeoutMs, () => {
      const found = this.events.findLast(({ event }) => event === kind);
      if (found === undefined && !this.isRunning) throw new Error(`it ended:\n${this.log}`);
      return found;
    });
  }

  /** A line of standard input. */
  say(line: string): void {
    this.#child.stdin?.write(`${line}\n`);
  }

  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  /** SIGKILL, as a crash would. */
  async kill(): Promise<void> {
    this.#child.kill('SIGKILL');
    await childExit(this.#child);
  }

  /** SIGTERM; resolves to what it said last, with its counters. SIGKILL after `graceMs`. */
  async end(graceMs?: number): Promise<Record<string, unknown>> {
    await endChild(this.#child, graceMs);
    return this.events.at(-1) ?? {};
  }

  async close(): Promise<void> {
    await endChild(this.#child);
  }

  #receive(text: string): void {
    this.#log.append(text);
    const lines = (this.#partial + text).split('\n');
    this.#partial = lines.pop() as string;
    this.#lines.push(...lines.filter((line) => line !== ''));
  }
}

/** A file of zeros, sparse. */
export function createDiskFile(path: string, sizeBytes: number): string {
  closeSync(openSync(path, 'w'));
  truncateSync(path, sizeBytes);
  return path;
}

/** Makes an ext4 file system in a file. */
export function formatExt4(path: string, ...options: string[]): void {
  execFileSync('mkfs.ext4', ['-q', '-F', ...options, path], { stdio: 'pipe' });
}

/** `fsck.ext4 -f -n`, and an error with what it found where it found something. */
export function checkExt4(path: string): string {
  return execFileSync('fsck.ext4', ['-f', '-n', path], { encoding: 'utf8', stdio: 'pipe' });
}

/** `xfs_repair -n` on what was unmounted; an error with what it found where it found something. */
export function checkXfs(path: string): void {
  execFileSync('xfs_repair', ['-n', path], { encoding: 'utf8', stdio: 'pipe' });
}

/** A file out of an ext4 image, without mounting it. */
export function readExt4(path: string, name: string): Buffer {
  return execFileSync('debugfs', ['-R', `cat ${name}`, path], {
    stdio: 'pipe',
    maxBuffer: 1 << 28,
  });
}
