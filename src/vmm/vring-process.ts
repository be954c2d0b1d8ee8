/** Commands of vring as processes of our own: started, read, ended. For demos and comparisons. */
import type { ChildProcess } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { VringError } from '../base/errors.ts';
import { OutputTail, childExit, endChild, startChild } from './child-processes.ts';

const MAIN = fileURLToPath(
  new URL(import.meta.url.endsWith('.ts') ? '../cli/main.ts' : '../cli/main.js', import.meta.url),
);
/** An emulated machine under load takes half a minute to start Node. */
const START_TIMEOUT_MS = 60_000;

/** A command that runs until it is ended; its first line of JSON says that it is ready. */
export class VringService {
  readonly #name: string;
  readonly #child: ChildProcess;
  readonly #messages = new OutputTail(8192);
  #output = '';

  constructor(name: string, args: readonly string[]) {
    this.#name = name;
    this.#child = startChild(process.execPath, [MAIN, ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.#child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.#messages.append(text);
    });
    this.#child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      this.#output += text;
    });
  }

  get pid(): number {
    return this.#child.pid ?? -1;
  }

  /** Waits for the first line of output, and returns its JSON. */
  async ready(): Promise<unknown> {
    const end = performance.now() + START_TIMEOUT_MS;
    while (!this.#output.includes('\n')) {
      if (this.#child.exitCode !== null || performance.now() > end) {
        throw new VringError(
          'ERR_VRING_COMMAND',
          `${this.#name} did not start; it said: ${this.#messages.text.trim() || 'nothing'}`,
        );
      }
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    return JSON.parse(this.#output.slice(0, this.#output.indexOf('\n')));
  }

  /** SIGTERM, and what it printed last: the last line of JSON. */
  async end(): Promise<unknown> {
    await endChild(this.#child);
    const lines = this.#output.trim().split('\n');
    return JSON.parse(lines.at(-1) || 'null');
  }

  /** Leaves the process running when this one ends, for `--keep`. */
  async exit(): Promise<void> {
    await childExit(this.#child);
  }

  /** Processor time so far, seconds. proc(5): utime and stime of stat, in hundredths. */
  cpuSeconds(): number {
    const stat = readFileSync(`/proc/${this.pid}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return (Number(fields[11]) + Number(fields[12])) / 100;
  }
}

/** Runs a command to its end and returns the JSON that it printed last. */
export async function vringCommand<T>(args: readonly string[]): Promise<T> {
  const child = startChild(process.execPath, [MAIN, ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let output = '';
  let messages = '';
  child.stdout?.setEncoding('utf8').on('data', (text: string) => (output += text));
  child.stderr?.setEncoding('utf8').on('data', (text: string) => (messages += text));
  const closed = new Promise<void>((resolve) => child.once('close', () => resolve()));
  const { code } = await childExit(child);
  await closed;
  if (code !== 0) {
    throw new VringError(
      'ERR_VRING_COMMAND',
      `vring ${args.join(' ')}: ${messages.trim() || output}`,
    );
  }
  return JSON.parse(output) as T;
}
