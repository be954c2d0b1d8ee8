/** Our software guest on a port of a switch: in this process, or as a user starts it. */
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { VringError } from '../../src/base/errors.ts';
import {
  NetStack,
  connectNetGuest,
  parseFeatureChoice,
  parseIp,
  parsePrefix,
  type ConnectOptions,
  type NetGuest,
} from '../../src/guest/index.ts';
import { endChild, OutputTail, startChild, type ExitStatus } from '../../src/vmm/index.ts';
import { waitFor } from './scratch.ts';

const MAIN = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url));

export const ip4 = (n: number): string => `10.0.0.${n}`;
export const ip6 = (n: number): string => `fd00::${n}`;
export const macOf = (n: number): string => `02:00:00:00:00:${n.toString(16).padStart(2, '0')}`;

export type HostOptions = Omit<ConnectOptions, 'socket' | 'features'> & {
  /** As `--features`: `+in_order,-mrg`. */
  readonly features?: string;
  /** Sends and takes frames with this tag. */
  readonly vlan?: number;
};

/** Host `n`: 10.0.0.n, fd00::n, 02:00:00:00:00:n. */
export class Host {
  readonly number: number;
  readonly guest: NetGuest;
  readonly stack: NetStack;

  private constructor(number: number, guest: NetGuest, stack: NetStack) {
    this.number = number;
    this.guest = guest;
    this.stack = stack;
  }

  static async join(socket: string, number: number, options: HostOptions = {}): Promise<Host> {
    const { features, vlan, ...rest } = options;
    const choice = features === undefined ? {} : featuresOf(features);
    const guest = await connectNetGuest({ socket, mac: macOf(number), ...rest, ...choice });
    const stack = new NetStack({
      link: guest,
      ip: parsePrefix(`${ip4(number)}/24`, 4, 'ip'),
      ip6: parsePrefix(`${ip6(number)}/64`, 6, 'ip6'),
      vlan: vlan ?? null,
      resolveRetryMs: 150,
    });
    return new Host(number, guest, stack);
  }

  /** Whether `address` answers; it does not when nobody tells its MAC address either. */
  async hears(address: string, payloadBytes = 56, timeoutMs = 3000): Promise<boolean> {
    const to = parseIp(address);
    if (to === null) throw new Error(`${address} is no address`);
    try {
      const request = { identifier: this.number, sequence: 1, timeoutMs, payloadBytes };
      const answer = await this.stack.ping(to, request);
      return answer !== null && answer.intact;
    } catch (error) {
      if (error instanceof VringError && error.code === 'ERR_VRING_GUEST_UNREACHABLE') return false;
      throw error;
    }
  }

  async close(): Promise<void> {
    this.stack.close();
    await this.guest.close();
  }
}

export function featuresOf(text: string): Pick<ConnectOptions, 'features'> {
  return { features: parseFeatureChoice(text, '--features') };
}

/** `vring ...` as a process of its own. */
export class VringProcess {
  readonly #child: ChildProcess;
  readonly #out = new OutputTail(1 << 20);
  readonly #err = new OutputTail(65_536);
  readonly #end: Promise<ExitStatus>;

  /** With `netns` in front it runs in that network namespace. */
  constructor(...words: readonly (string | { readonly netns: string })[]) {
    const args = words.filter((word) => typeof word === 'string');
    const within = words.find((word) => typeof word !== 'string');
    const command = [process.execPath, MAIN, ...args];
    if (within !== undefined) command.unshift('ip', 'netns', 'exec', within.netns);
    this.#child = startChild(command[0], command.slice(1), { stdio: ['ignore', 'pipe', 'pipe'] });
    this.#child.stdout?.setEncoding('utf8').on('data', (text: string) => this.#out.append(text));
    this.#child.stderr?.setEncoding('utf8').on('data', (text: string) => this.#err.append(text));
    // 'close' comes after 'exit': everything that it said has been read by then.
    this.#end = once(this.#child, 'close').then(([code, signal]) => ({ code, signal }));
  }

  /** `vring guest net --socket SOCKET --mac MAC --json ...`, once it says that it is ready. */
  static async guest(socket: string, number: number, ...args: string[]): Promise<VringProcess> {
    const own = ['--socket', socket, '--mac', macOf(number), '--ip', `${ip4(number)}/24`, '--json'];
    const started = new VringProcess('guest', 'net', ...own, ...args);
    await started.says(/"event":"ready"/);
    return started;
  }

  get out(): string {
    return this.#out.text;
  }

  get err(): string {
    return this.#err.text;
  }

  /** Waits for a text on either output. */
  async says(pattern: RegExp): Promise<void> {
    const said = (): boolean => pattern.test(this.out) || pattern.test(this.err);
    await waitFor(String(pattern), 15_000, () => {
      if (said()) return true;
      if (this.#child.exitCode === null && this.#child.signalCode === null) return false;
      throw new Error(`it ended before it said ${pattern}: ${this.out}${this.err}`);
    });
  }

  /** CPU time that it used so far. */
  cpuSeconds(): number {
    const stat = readFileSync(`/proc/${this.#child.pid}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return (Number(fields[11]) + Number(fields[12])) / 100; // USER_HZ is 100 on every Linux
  }

  signal(name: NodeJS.Signals): void {
    this.#child.kill(name);
  }

  ended(): Promise<ExitStatus> {
    return this.#end;
  }

  /** SIGTERM, and SIGKILL to one that does not end. Idempotent. */
  async close(): Promise<ExitStatus> {
    return endChild(this.#child);
  }
}

/** A command to its end, however it ends. */
export async function runVring(
  ...args: string[]
): Promise<{ status: number | null; out: string; err: string }> {
  const process = new VringProcess(...args);
  const { code } = await process.ended();
  return { status: code, out: process.out, err: process.err };
}
