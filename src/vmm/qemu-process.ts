/**
 * A running QEMU with our small Linux guest in it, driven over the guest's serial console:
 *
 *   const guest = await LinuxGuest.start({ name: 'vm0', ip: '10.0.0.2/24', nics: [nic] });
 *   const { status, output } = await guest.run('ping -c 3 10.0.0.1');
 *
 * Commands run one after another, in the order of the calls. The protocol of the console stands
 * in guest-init.ts.
 */
import type { ChildProcess } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { assert } from '../base/assert.ts';
import { VringError } from '../base/errors.ts';
import { childExit, endChild, OutputTail, startChild, type ExitStatus } from './child-processes.ts';
import { BEGIN_MARKER, END_MARKER, MAX_COMMAND_BYTES, READY_MARKER } from './guest-init.ts';
import { linuxGuestKernel, type GuestFile } from './linux-guest.ts';
import { detectAccelerator, requireProgram, type Accelerator } from './programs.ts';
import { qemuCommand, shellCommand, type GuestNic, type MemoryHotplug } from './qemu.ts';
import { QmpClient, type QmpEvent } from './qmp.ts';

export type LinuxGuestConfig = {
  readonly name: string;
  readonly nics: readonly GuestNic[];
  /** Static addresses of eth0, `10.0.0.2/24[,fd00::2/64]`. */
  readonly ip: string | null;
  readonly gateway?: string | null;
  readonly mtu?: number | null;
  /** By default one per queue pair: Linux uses as many pairs as it has processors. */
  readonly cpus?: number;
  readonly memoryMib?: number;
  readonly accelerator?: Accelerator;
  readonly modules?: readonly string[];
  readonly kernelWords?: readonly string[];
  /** In the guest beside busybox, for instance `guestProgram('mkfs.xfs')`. */
  readonly files?: readonly GuestFile[];
  /** An Intel IOMMU; cards with `iommuPlatform` are behind it. */
  readonly iommu?: boolean;
  readonly hotplug?: MemoryHotplug | null;
  /** Boots nothing: a migration brings the guest (`migrateGuest`). */
  readonly incoming?: boolean;
  /** No kernel is handed over: the firmware boots from a disk of `extra`, whose init is ours. */
  readonly bootFromDisk?: boolean;
  /** Seconds between attempts of cards whose port went away. */
  readonly reconnectSeconds?: number;
  /** From the start of QEMU to the guest's shell. */
  readonly bootTimeoutMs?: number;
  readonly extra?: readonly string[];
  readonly onEvent?: (event: QmpEvent) => void;
};

export type CommandResult = { readonly status: number; readonly output: string };

/** Measured boots take 3 to 6 s under TCG; a busy machine triples that. */
const BOOT_TIMEOUT_MS = 60_000;
const COMMAND_TIMEOUT_MS = 60_000;

type Expectation = {
  readonly pattern: RegExp;
  readonly resolve: (match: RegExpExecArray) => void;
  readonly reject: (error: Error) => void;
};

export class LinuxGuest {
  readonly name: string;
  /** The command line that was started, for messages and for people to paste. */
  readonly commandLine: string;
  readonly #child: ChildProcess;
  readonly #folder: string;
  readonly #console = new OutputTail();
  readonly #bootTimeoutMs: number;
  readonly #onEvent: (event: QmpEvent) => void;
  #received = '';
  #expectation: Expectation | null = null;
  #last: Promise<unknown> = Promise.resolve();
  #nextId = 1;
  #qmp: Promise<QmpClient> | null = null;
  #gone: VringError | null = null;

  private constructor(config: LinuxGuestConfig, folder: string) {
    const pairs = Math.max(1, ...config.nics.map((nic) => nic.queuePairs));
    const shell = 'script';
    const { ip, gateway = null, mtu = null, modules = [], kernelWords = [] } = config;
    const { name: hostName, files = [] } = config;
    const options = { ip, gateway, mtu, hostName, modules, shell, kernelWords, files } as const;
    const kernel = config.bootFromDisk === true ? null : linuxGuestKernel(options);
    const binary = requireProgram('qemu-system-x86_64');
    const machine = {
      name: config.name,
      accelerator: config.accelerator ?? detectAccelerator(),
      cpus: config.cpus ?? pairs,
      memoryMib: config.memoryMib ?? 192,
      hugePages: false,
      nics: config.nics,
      kernel,
      disk: null,
      iommu: config.iommu ?? false,
      hotplug: config.hotplug ?? null,
    };
    const argv = qemuCommand(machine, {
      binary,
      serial: 'stdio',
      qmpPath: join(folder, 'qmp.sock'),
      incoming: config.incoming ?? false,
      reconnectSeconds: config.reconnectSeconds ?? 1,
      extra: config.extra ?? [],
    });
    this.name = config.name;
    this.commandLine = shellCommand(argv);
    this.#folder = folder;
    process.once('exit', this.#removeFolder);
    this.#bootTimeoutMs = config.bootTimeoutMs ?? BOOT_TIMEOUT_MS;
    this.#onEvent = config.onEvent ?? (() => {});
    this.#child = startChild(binary, argv.slice(1), { stdio: ['pipe', 'pipe', 'pipe'] });
    this.#watch();
  }

  /**
   * Starts QEMU and waits for the guest's shell.
   * @throws VringError `ERR_VRING_MISSING_PROGRAM`; `ERR_VRING_GUEST_BOOT` with the console log.
   */
  static async start(config: LinuxGuestConfig): Promise<LinuxGuest> {
    const guest = LinuxGuest.launch(config);
    try {
      await guest.waitReady();
      return guest;
    } catch (error) {
      await guest.close();
      throw error;
    }
  }

  /** Starts QEMU and returns at once; `waitReady` waits for the shell. */
  static launch(config: LinuxGuestConfig): LinuxGuest {
    const folder = mkdtempSync(join(tmpdir(), 'vring-guest-'));
    try {
      return new LinuxGuest(config, folder);
    } catch (error) {
      rmSync(folder, { recursive: true, force: true });
      throw error;
    }
  }

  get pid(): number {
    return this.#child.pid ?? -1;
  }

  /** The end of what the console and QEMU itself said. */
  get consoleLog(): string {
    return this.#console.text;
  }

  async waitReady(): Promise<void> {
    const pattern = new RegExp(`^${READY_MARKER}\\r?$`, 'm');
    try {
      await this.#expect(pattern, this.#bootTimeoutMs);
    } catch (cause) {
      throw this.#error('ERR_VRING_GUEST_BOOT', 'the guest did not boot', cause);
    }
  }

  /**
   * Runs one shell command in the guest, one line. `output` is what it wrote to both streams.
   * A status other than 0 is no error; use `check` for that.
   */
  run(command: string, options: { timeoutMs?: number } = {}): Promise<CommandResult> {
    assert(!command.includes('\n'), 'a guest command is one line');
    assert(Buffer.byteLength(command) <= MAX_COMMAND_BYTES, 'a guest command fits the terminal');
    return this.#inOrder(async () => {
      const id = this.#nextId++;
      // With its line end: `$` would be content with the first digit of a status, if the console
      // brings no more for now.
      const text = `^${BEGIN_MARKER} ${id}\\r?\\n([^]*?)${END_MARKER} ${id} (\\d+)\\r?\\n`;
      const found = this.#expect(new RegExp(text, 'm'), options.timeoutMs ?? COMMAND_TIMEOUT_MS);
      this.#child.stdin?.write(`${id} ${command}\n`);
      try {
        const match = await found;
        const output = (match[1] as string).replaceAll('\r', '');
        return { status: Number(match[2]), output };
      } catch (cause) {
        throw this.#error('ERR_VRING_GUEST_COMMAND', `'${command}' did not end`, cause);
      }
    });
  }

  /** Like `run`, and a status other than 0 is an error. Returns the output. */
  async check(command: string, options: { timeoutMs?: number } = {}): Promise<string> {
    const { status, output } = await this.run(command, options);
    if (status === 0) return output;
    const text = `${this.name}: '${command}' ended with status ${status}:\n${output}`;
    throw new VringError('ERR_VRING_GUEST_COMMAND', text);
  }

  /** Reboots the guest's kernel at once and waits for its shell. QEMU goes on running. */
  reboot(): Promise<void> {
    return this.#inOrder(async () => {
      const ready = this.waitReady();
      this.#child.stdin?.write(`0 reboot -f\n`);
      await ready;
    });
  }

  /** QEMU's machine protocol. */
  async qmp(command: string, args: Readonly<Record<string, unknown>> = {}): Promise<unknown> {
    return (await this.#monitor()).execute(command, args);
  }

  /** QEMU's human monitor: `info network`, `set_link nic0 off`. */
  async hmp(command: string): Promise<string> {
    return (await this.#monitor()).human(command);
  }

  /** SIGKILL, as a crash would; resolves when the process is gone. */
  async kill(): Promise<ExitStatus> {
    this.#child.kill('SIGKILL');
    return this.#ended();
  }

  /** Ends QEMU and removes its files. Idempotent. */
  async close(): Promise<ExitStatus> {
    await endChild(this.#child);
    return this.#ended();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  readonly #removeFolder = (): void => {
    rmSync(this.#folder, { recursive: true, force: true });
  };

  async #ended(): Promise<ExitStatus> {
    const status = await childExit(this.#child);
    const qmp = this.#qmp;
    this.#qmp = null;
    await qmp?.then((client) => client.close()).catch(() => {});
    process.off('exit', this.#removeFolder);
    this.#removeFolder();
    return status;
  }

  #inOrder<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#last.then(work, work);
    this.#last = result.catch(() => {});
    return result;
  }

  #monitor(): Promise<QmpClient> {
    this.#qmp ??= (async () => {
      const path = join(this.#folder, 'qmp.sock');
      for (let tries = 0; tries < 50 && !existsSync(path); tries++) {
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
      return QmpClient.connect(path, this.#onEvent);
    })();
    return this.#qmp;
  }

  #watch(): void {
    const child = this.#child;
    child.stdout?.setEncoding('utf8').on('data', (text: string) => this.#receive(text));
    child.stderr?.setEncoding('utf8').on('data', (text: string) => this.#console.append(text));
    child.stdin?.on('error', () => {}); // EPIPE: the exit is reported below
    child.once('error', (cause) => this.#leave(`cannot be started: ${cause.message}`));
    // 'close' and not 'exit': the streams are read to their end, the log is complete.
    child.once('close', (code, signal) => this.#leave(`ended with ${signal ?? `status ${code}`}`));
  }

  #leave(how: string): void {
    this.#gone = this.#error('ERR_VRING_GUEST_GONE', `QEMU ${how}`);
    this.#expectation?.reject(this.#gone);
    this.#expectation = null;
  }

  #receive(text: string): void {
    this.#console.append(text);
    this.#received += text;
    const expectation = this.#expectation;
    if (expectation === null) {
      this.#received = this.#received.slice(-4096);
      return;
    }
    const match = expectation.pattern.exec(this.#received);
    if (match === null) return;
    this.#expectation = null;
    this.#received = this.#received.slice(match.index + match[0].length);
    expectation.resolve(match);
  }

  #expect(pattern: RegExp, timeoutMs: number): Promise<RegExpExecArray> {
    assert(this.#expectation === null, 'the console answers one command at a time');
    if (this.#gone !== null) return Promise.reject(this.#gone);
    const { promise, resolve, reject } = Promise.withResolvers<RegExpExecArray>();
    this.#expectation = { pattern, resolve, reject };
    const timer = setTimeout(() => {
      this.#expectation = null;
      reject(new VringError('ERR_VRING_TIMEOUT', `no answer within ${timeoutMs} ms`));
    }, timeoutMs);
    this.#receive('');
    return promise.finally(() => clearTimeout(timer));
  }

  #error(code: string, problem: string, cause?: unknown): VringError {
    const log = this.#console.text.trimEnd().split('\n').slice(-40).join('\n  | ');
    const reason = cause instanceof Error ? ` (${cause.message.split('\n')[0]})` : '';
    const text = `${this.name}: ${problem}${reason}; console:\n  | ${log}`;
    return new VringError(code, text, { cause });
  }
}
