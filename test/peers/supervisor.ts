/** A service that is started again whenever it ends, as systemd does with `Restart=always`. */
import type { ChildProcess } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { childExit, endChild, OutputTail, startChild } from '../../src/vmm/index.ts';
import { ApiClient } from '../../src/cli/client.ts';
import type { DiskStatus } from '../../src/daemon/disks/disk-types.ts';
import { waitFor } from './scratch.ts';

const MAIN = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url));
const START_TIMEOUT_MS = 60_000;

/** `vring WORDS...`, whose standard output is lines of JSON with an `event` in each. */
export class Supervisor {
  /** How many times it was started. */
  starts = 0;
  /** Ends that nobody asked for by `kill` or `close`; the last words of each. */
  readonly surprises: string[] = [];
  readonly #words: readonly string[];
  #child!: ChildProcess;
  #events = new Set<string>();
  #last: Record<string, unknown> = {};
  #isExpected = false;
  #isClosing = false;

  static async start(...words: string[]): Promise<Supervisor> {
    const supervisor = new Supervisor(words);
    await supervisor.said('ready');
    return supervisor;
  }

  protected constructor(words: readonly string[]) {
    this.#words = words;
    this.#start();
  }

  /** The process that runs now has said so. */
  has(event: string): boolean {
    return this.#events.has(event);
  }

  /** A front-end has come to the process that runs now. */
  isServing(): boolean | Promise<boolean> {
    return this.has('connected');
  }

  async said(event: string, timeoutMs = START_TIMEOUT_MS): Promise<void> {
    try {
      await waitFor(`event ${event} of vring ${this.#words[0]}`, timeoutMs, () => this.has(event));
    } catch (error) {
      const surprise = this.surprises.at(-1) ?? 'no surprises';
      throw new Error(`${(error as Error).message}; ${surprise}`, { cause: error });
    }
  }

  /** SIGKILL, as a crash would. The next one is being started when this resolves. */
  async kill(): Promise<void> {
    const child = this.#child;
    this.#isExpected = true;
    this.#events = new Set(); // nothing that the dead one said counts
    child.kill('SIGKILL');
    await childExit(child);
  }

  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  /** SIGTERM; resolves to what it said last. */
  async close(): Promise<Record<string, unknown>> {
    this.#isClosing = true;
    await endChild(this.#child);
    return this.#last;
  }

  #start(): void {
    const command = [MAIN, ...this.#words];
    const child = startChild(process.execPath, command, { stdio: ['ignore', 'pipe', 'pipe'] });
    const log = new OutputTail(4096);
    const events = new Set<string>();
    let partial = '';
    child.stderr?.setEncoding('utf8').on('data', (text: string) => log.append(text));
    child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      log.append(text);
      const lines = (partial + text).split('\n');
      partial = lines.pop() as string;
      for (const line of lines) {
        this.#last = JSON.parse(line) as Record<string, unknown>;
        events.add(this.#last['ready'] === true ? 'ready' : String(this.#last['event']));
      }
    });
    child.once('exit', (code, signal) => {
      if (this.#isClosing) return;
      if (!this.#isExpected) this.surprises.push(`it ended with ${signal ?? code}: ${log.text}`);
      this.#start();
    });
    this.#isExpected = false;
    this.#events = events;
    this.#child = child;
    this.starts++;
  }
}

/** The daemon with a configuration that has disks. */
export class DaemonSupervisor extends Supervisor {
  readonly #client: ApiClient;

  static async startWith(config: string, control: string): Promise<DaemonSupervisor> {
    const words = ['switch', '--json', '--config', config, '--control', control];
    const supervisor = new DaemonSupervisor(words, control);
    await supervisor.said('ready');
    return supervisor;
  }

  private constructor(words: readonly string[], control: string) {
    super(words);
    this.#client = new ApiClient(control);
  }

  /** All disks' rings run. */
  override async isServing(): Promise<boolean> {
    try {
      const disks = await this.#client.json<DiskStatus[]>('/v1/disks');
      return disks.every(({ state }) => state === 'up');
    } catch {
      return false; // the one that ran is dead, the next one does not listen yet
    }
  }
}
