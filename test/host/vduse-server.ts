/** `vring serve net --vduse` inside the test host, as a process that can be killed. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import type { Readiness } from '../../src/cli/serve-run.ts';
import { waitFor } from '../peers/scratch.ts';

const MAIN = join(import.meta.dirname, '..', '..', 'src', 'cli', 'main.ts');
/** Measured 3 to 5 s on an interpreted processor. */
const READY_TIMEOUT_MS = 240_000;

export class VduseServer {
  readonly readiness: Readiness;
  readonly #child: ChildProcess;
  readonly #output: { text: string };

  /** @throws Error with what the command said, where it ends instead. */
  static async start(...args: string[]): Promise<VduseServer> {
    const child = spawn(process.execPath, [MAIN, 'serve', 'net', ...args, '--json'], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const output = { text: '' };
    let stdout = '';
    child.stdout!.on('data', (data: Buffer) => (stdout += data.toString()));
    child.stderr!.on('data', (data: Buffer) => (output.text += data.toString()));
    const isOver = () => child.exitCode !== null || child.signalCode !== null;
    try {
      await waitFor('the ready line', READY_TIMEOUT_MS, () => stdout.includes('\n') || isOver());
      if (!stdout.startsWith('{"device"')) throw new Error('no ready line');
    } catch (cause) {
      child.kill('SIGKILL');
      throw new Error(`${(cause as Error).message}: ${stdout}${output.text}`, { cause });
    }
    const line = stdout.slice(0, stdout.indexOf('\n'));
    return new VduseServer(child, JSON.parse(line) as Readiness, output);
  }

  private constructor(child: ChildProcess, readiness: Readiness, output: { text: string }) {
    this.#child = child;
    this.readiness = readiness;
    this.#output = output;
  }

  /** What it wrote to standard error so far. */
  get log(): string {
    return this.#output.text;
  }

  /** kill -9. */
  async kill(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const exited = once(this.#child, 'exit');
    this.#child.kill('SIGKILL');
    await exited;
  }

  /** SIGTERM; its exit status. */
  async end(): Promise<number | null> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return null;
    const exited = once(this.#child, 'exit');
    this.#child.kill('SIGTERM');
    return (await exited)[0] as number | null;
  }
}
