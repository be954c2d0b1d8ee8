/**
 * Runs `dpdk-testpmd`, driven through its prompt, and reads its counters. As a front-end it is
 * a `net_virtio_user` device (DPDK's virtio driver over vhost-user), as a back-end `net_vhost`.
 */
import type { ChildProcess } from 'node:child_process';
import { findProgram, requireProgram } from '../../src/vmm/programs.ts';
import { childExit, endChild, OutputTail, startChild } from '../../src/vmm/child-processes.ts';
import { reserveHugePages } from './hugepages.ts';

export type VirtioUserOptions = {
  readonly path: string;
  /** The front-end listens and the back-end connects. */
  readonly server?: boolean;
  readonly queues?: number;
  readonly queueSize?: number;
  readonly packed?: boolean;
  readonly inOrder?: boolean;
  readonly mrgRxbuf?: boolean;
  readonly vectorized?: boolean;
  readonly mac?: string;
};

/** Value of `--vdev` for a front-end; `index` tells several apart. */
export function virtioUserVdev(index: number, options: VirtioUserOptions): string {
  const parts = [`net_virtio_user${index}`, `path=${options.path}`];
  parts.push(`queues=${options.queues ?? 1}`, `queue_size=${options.queueSize ?? 256}`);
  if (options.server === true) parts.push('server=1');
  if (options.packed === true) parts.push('packed_vq=1');
  if (options.inOrder !== undefined) parts.push(`in_order=${Number(options.inOrder)}`);
  if (options.mrgRxbuf !== undefined) parts.push(`mrg_rxbuf=${Number(options.mrgRxbuf)}`);
  if (options.vectorized === true) parts.push('vectorized=1');
  if (options.mac !== undefined) parts.push(`mac=${options.mac}`);
  return parts.join(',');
}

/** Value of `--vdev` for a back-end; `client` connects to a listening front-end. */
export function vhostVdev(index: number, path: string, queues = 1, client = false): string {
  return `net_vhost${index},iface=${path},queues=${queues}${client ? ',client=1' : ''}`;
}

export type TestpmdOptions = {
  readonly vdevs: readonly string[];
  /** Core of the prompt, which sleeps. */
  readonly mainCore?: number;
  /** Core of each forwarding thread. */
  readonly workerCores?: readonly number[];
  readonly memoryMib?: number;
  /** Queue pairs of every port. */
  readonly queues?: number;
  /** Descriptors per ring that testpmd uses. */
  readonly descriptors?: number;
  /** Buffers of 2 KiB in the pool; all rings and caches live from them. */
  readonly mbufs?: number;
  readonly forwardMode?: string;
  /** Further arguments of DPDK's environment, before the `--`. */
  readonly ealArgs?: readonly string[];
  /** Further arguments of testpmd proper. */
  readonly args?: readonly string[];
  readonly environment?: Readonly<Record<string, string>>;
  /** Name of a network namespace that it runs in. */
  readonly netns?: string;
};

export type PortStats = {
  readonly rxPackets: number;
  readonly rxMissed: number;
  readonly rxErrors: number;
  readonly rxBytes: number;
  readonly txPackets: number;
  readonly txErrors: number;
  readonly txBytes: number;
  /** Packets per second since the last time the counters were shown. */
  readonly rxPps: number;
  readonly txPps: number;
};

const PROMPT = 'testpmd> ';

export class Testpmd {
  readonly #child: ChildProcess;
  readonly #log = new OutputTail(65_536);
  #received = '';
  #waiting: { resolve: (text: string) => void; reject: (error: Error) => void } | null = null;
  #gone: Error | null = null;

  private constructor(child: ChildProcess) {
    this.#child = child;
    child.stdout?.setEncoding('utf8').on('data', (text: string) => this.#receive(text));
    child.stderr?.setEncoding('utf8').on('data', (text: string) => this.#log.append(text));
    child.stdin?.on('error', () => {});
    child.once('close', (code, signal) => {
      this.#gone = this.#error(`ended with ${signal ?? `status ${code}`}`);
      this.#waiting?.reject(this.#gone);
      this.#waiting = null;
    });
  }

  /** Starts testpmd and waits for its prompt; forwarding is not started. */
  static async start(options: TestpmdOptions): Promise<Testpmd> {
    const child = startChild(...testpmdCommand(options));
    const testpmd = new Testpmd(child);
    try {
      await testpmd.#prompt(30_000);
      return testpmd;
    } catch (error) {
      await testpmd.close();
      throw error;
    }
  }

  get pid(): number {
    return this.#child.pid ?? -1;
  }

  get log(): string {
    return this.#log.text;
  }

  /** One command; resolves with what it printed. */
  async command(text: string, timeoutMs = 20_000): Promise<string> {
    const answer = this.#prompt(timeoutMs);
    this.#child.stdin?.write(`${text}\n`);
    return answer;
  }

  /** Starts forwarding; `bursts` of 32 packets per queue are sent first when not zero. */
  start(bursts = 0): Promise<string> {
    return this.command(bursts === 0 ? 'start' : `start tx_first ${bursts}`);
  }

  /** Stops forwarding; the answer holds the forward statistics. */
  stop(): Promise<string> {
    return this.command('stop');
  }

  async stats(): Promise<PortStats[]> {
    return parseStats(await this.command('show port stats all'));
  }

  clearStats(): Promise<string> {
    return this.command('clear port stats all');
  }

  async kill(): Promise<void> {
    this.#child.kill('SIGKILL');
    await childExit(this.#child);
  }

  /** Quits at the prompt, so that the driver stops its rings as it should. Idempotent. */
  async close(): Promise<void> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) {
      this.#child.stdin?.end('stop\nquit\n');
      const timer = setTimeout(() => this.#child.kill('SIGKILL'), 8000);
      await childExit(this.#child);
      clearTimeout(timer);
    }
    await endChild(this.#child);
  }

  #receive(text: string): void {
    this.#log.append(text);
    this.#received += text;
    const at = this.#received.indexOf(PROMPT);
    if (at < 0 || this.#waiting === null) return;
    const answer = this.#received.slice(0, at).replaceAll('\r', '');
    this.#received = this.#received.slice(at + PROMPT.length);
    this.#waiting.resolve(answer);
    this.#waiting = null;
  }

  #prompt(timeoutMs: number): Promise<string> {
    if (this.#gone !== null) return Promise.reject(this.#gone);
    if (this.#waiting !== null) throw new Error('testpmd answers one command at a time');
    const { promise, resolve, reject } = Promise.withResolvers<string>();
    this.#waiting = { resolve, reject };
    const timer = setTimeout(() => {
      this.#waiting = null;
      reject(this.#error(`gave no prompt within ${timeoutMs} ms`));
    }, timeoutMs);
    this.#receive('');
    return promise.finally(() => clearTimeout(timer));
  }

  #error(problem: string): Error {
    const tail = this.#log.text.trimEnd().split('\n').slice(-30).join('\n  | ');
    return new Error(`testpmd ${problem}:\n  | ${tail}`);
  }
}

function testpmdCommand(options: TestpmdOptions): Parameters<typeof startChild> {
  const { workerCores = [1], queues = 1, descriptors = 256 } = options;
  // mainCore: only the prompt runs there.
  const lcores = [
    `0@${options.mainCore ?? 0}`,
    ...workerCores.map((core, i) => `${i + 1}@${core}`),
  ];
  const memoryMib = options.memoryMib ?? 256;
  reserveHugePages(memoryMib);
  const args = ['-oL', requireProgram('dpdk-testpmd')];
  // One memfd for all memory: vhost-user in DPDK passes at most eight regions.
  args.push('--lcores', lcores.join(','), '--in-memory', '--single-file-segments', '--no-pci');
  args.push('-m', String(memoryMib), '--no-telemetry');
  args.push(...(options.ealArgs ?? []));
  for (const vdev of options.vdevs) args.push('--vdev', vdev);
  args.push('--', '-i', `--nb-cores=${workerCores.length}`);
  args.push(`--rxq=${queues}`, `--txq=${queues}`, `--rxd=${descriptors}`, `--txd=${descriptors}`);
  args.push(`--total-num-mbufs=${options.mbufs ?? 8192}`);
  args.push(`--forward-mode=${options.forwardMode ?? 'io'}`, ...(options.args ?? []));
  // stdbuf: into a pipe testpmd would hold its answers back until a block is full.
  const stdbuf = findProgram('stdbuf') ?? 'stdbuf';
  const env = { ...process.env, ...options.environment };
  const stdio = ['pipe', 'pipe', 'pipe'] as const;
  if (options.netns === undefined) return [stdbuf, args, { stdio: [...stdio], env }];
  const within = ['netns', 'exec', options.netns, stdbuf, ...args];
  return [requireProgram('ip'), within, { stdio: [...stdio], env }];
}

/** Reads the answer of `show port stats all`. */
export function parseStats(text: string): PortStats[] {
  const ports = text.split(/NIC statistics for port \d+/).slice(1);
  return ports.map((part) => {
    const field = (name: string): number => {
      return Number(new RegExp(`${name}:\\s*(\\d+)`).exec(part)?.[1] ?? NaN);
    };
    return {
      rxPackets: field('RX-packets'),
      rxMissed: field('RX-missed'),
      rxErrors: field('RX-errors'),
      rxBytes: field('RX-bytes'),
      txPackets: field('TX-packets'),
      txErrors: field('TX-errors'),
      txBytes: field('TX-bytes'),
      rxPps: field('Rx-pps'),
      txPps: field('Tx-pps'),
    };
  });
}

/** Core cycles per packet from the answer of `stop` after `set record-core-cycles on`. */
export function parseCycles(text: string): number | null {
  const match = /CPU cycles\/packet=([\d.]+)/.exec(text);
  return match === null ? null : Number(match[1]);
}

/** The clock that those cycles count: "... at 2600 MHz Clock". */
export function parseMegahertz(text: string): number | null {
  const match = /at (\d+) MHz Clock/.exec(text);
  return match === null ? null : Number(match[1]);
}
