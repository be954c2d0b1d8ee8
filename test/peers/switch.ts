/** `vring switch` as a process of its own, started through the command line as a user would. */
import { execFile, type ChildProcess } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { request } from 'node:http';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import type {
  PortState,
  PortStatus,
  SwitchEvent,
  WorkerStatus,
} from '../../src/daemon/switch-types.ts';
import {
  childExit,
  endChild,
  OutputTail,
  startChild,
  type ExitStatus,
} from '../../src/vmm/index.ts';
import { waitFor, type Scratch } from './scratch.ts';

const run = promisify(execFile);
const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const MAIN = join(ROOT, 'src/cli/main.ts');

export type SwitchOptions = {
  /** Words of `--port`. */
  readonly ports: readonly string[];
  /** Path of its control socket. */
  readonly control: string;
  /** The one core that it may use; null for all. */
  readonly core?: number | null;
  /** Name of a network namespace that it runs in. */
  readonly netns?: string | null;
  /** What runs it, for instance `setpriv` with fewer rights. */
  readonly launcher?: readonly string[];
  readonly args?: readonly string[];
  /** Arguments of node itself, for instance `--cpu-prof`. */
  readonly nodeArgs?: readonly string[];
  readonly environment?: Readonly<Record<string, string>>;
  /** Folder of the tree that it runs from; default: this one. */
  readonly root?: string;
};

/** Runs a command of `vring` to its end and returns its standard output. */
export async function vring(...args: string[]): Promise<string> {
  const options = { maxBuffer: 1 << 26, timeout: 60_000 };
  return (await run(process.execPath, [MAIN, ...args], options)).stdout;
}

export class SwitchProcess {
  readonly control: string;
  readonly #child: ChildProcess;
  readonly #log = new OutputTail(65_536);

  private constructor(child: ChildProcess, control: string) {
    this.#child = child;
    this.control = control;
    child.stdout?.setEncoding('utf8').on('data', (text: string) => this.#log.append(text));
    child.stderr?.setEncoding('utf8').on('data', (text: string) => this.#log.append(text));
  }

  /** Starts the switch and waits until its control API answers. */
  static async start(options: SwitchOptions): Promise<SwitchProcess> {
    const node = [process.execPath, ...(options.nodeArgs ?? [])];
    const main = join(options.root ?? ROOT, 'src/cli/main.ts');
    const command = [...node, main, 'switch', '--control', options.control];
    for (const port of options.ports) command.push('--port', port);
    command.push(...(options.args ?? []));
    if (options.core != null) command.unshift('taskset', '-c', String(options.core));
    command.unshift(...(options.launcher ?? []));
    if (options.netns != null) command.unshift('ip', 'netns', 'exec', options.netns);
    const [program, ...args] = command as [string, ...string[]];
    const env = { ...process.env, ...options.environment };
    const child = startChild(program, args, { stdio: ['ignore', 'pipe', 'pipe'], env });
    const started = new SwitchProcess(child, options.control);
    try {
      await waitFor('the control API of the switch', 20_000, async () => {
        if (child.exitCode !== null || child.signalCode !== null) throw new Error('it ended');
        return started.api('/v1/ports').catch(() => null);
      });
      return started;
    } catch (cause) {
      await started.close();
      throw new Error(`vring switch did not start; it said:\n${started.log}`, { cause });
    }
  }

  get pid(): number {
    return this.#child.pid ?? -1;
  }

  get isRunning(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  get log(): string {
    return this.#log.text;
  }

  /** One request of the control API. */
  async api<T>(path: string, method = 'GET', body?: unknown): Promise<T> {
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    const headers = { 'content-type': 'application/json' };
    // No connection is kept: its end, seconds later, would be work of a switch that has none.
    const target = { socketPath: this.control, path, method, headers, agent: false };
    const outgoing = request(target, (answer) => {
      let text = '';
      answer.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
      answer.on('end', () => {
        const failed = (answer.statusCode ?? 500) >= 400;
        if (failed) reject(new Error(`${method} ${path}: ${answer.statusCode} ${text}`));
        else resolve((text === '' ? null : JSON.parse(text)) as T);
      });
    });
    outgoing.once('error', reject);
    outgoing.end(body === undefined ? undefined : JSON.stringify(body));
    return promise;
  }

  /** What `vring ports --json` prints: the way of a user, slower than `port`. */
  async portsByCommand(): Promise<PortStatus[]> {
    return JSON.parse(await vring('ports', '--json', '--control', this.control)) as PortStatus[];
  }

  async port(name: string): Promise<PortStatus> {
    return this.api(`/v1/ports/${name}`);
  }

  async ports(): Promise<PortStatus[]> {
    return this.api('/v1/ports');
  }

  async workers(): Promise<WorkerStatus[]> {
    return this.api('/v1/workers');
  }

  async events(): Promise<SwitchEvent[]> {
    return this.api('/v1/events');
  }

  /** Waits until the port is in `state`; the error shows its status and the log. */
  async waitState(name: string, state: PortState, timeoutMs = 30_000): Promise<PortStatus> {
    try {
      return await waitFor(`port ${name} ${state}`, timeoutMs, async () => {
        const status = await this.port(name);
        return status.state === state ? status : null;
      });
    } catch (cause) {
      const status = JSON.stringify(await this.port(name).catch(String), null, 1);
      throw new Error(`port ${name} is not ${state}: ${status}\nlog:\n${this.log}`, { cause });
    }
  }

  /** Processor time that it has used, in seconds. proc(5): fields 14 and 15 of stat. */
  cpuSeconds(): number {
    const stat = readFileSync(`/proc/${this.pid}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return (Number(fields[11]) + Number(fields[12])) / 100; // USER_HZ is 100 on every Linux
  }

  /** Times that its threads went to sleep so far: all wake-ups but those still to come. */
  sleeps(): { readonly main: number; readonly all: number } {
    const tasks = readdirSync(`/proc/${this.pid}/task`).map((id) => {
      const status = readFileSync(`/proc/${this.pid}/task/${id}/status`, 'utf8');
      return { id, sleeps: Number(/^voluntary_ctxt_switches:\s+(\d+)$/m.exec(status)?.[1]) };
    });
    const sum = (of: typeof tasks): number => of.reduce((all, { sleeps }) => all + sleeps, 0);
    return { main: sum(tasks.filter(({ id }) => Number(id) === this.pid)), all: sum(tasks) };
  }

  /** Resident memory without the guests' shared memory, in bytes. */
  residentBytes(): number {
    const status = readFileSync(`/proc/${this.pid}/status`, 'utf8');
    return Number(/^RssAnon:\s+(\d+) kB/m.exec(status)?.[1] ?? 0) * 1024;
  }

  /** SIGTERM; resolves with how it ended. Idempotent. */
  async close(): Promise<ExitStatus> {
    return endChild(this.#child, 10_000);
  }

  ended(): Promise<ExitStatus> {
    return childExit(this.#child);
  }
}

/** A switch with these ports: options behind `NAME=vhost-user:` and the socket `scratch/NAME`. */
export async function startSwitch(
  scratch: Scratch,
  ports: Readonly<Record<string, string>>,
  args: readonly string[] = [],
): Promise<SwitchProcess> {
  const words = Object.entries(ports).map(
    ([name, options]) => `${name}=vhost-user:${scratch.path(name)}${options}`,
  );
  const control = scratch.path('control');
  return scratch.own(await SwitchProcess.start({ ports: words, control, args }));
}
