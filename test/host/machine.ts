/**
 * A running test host: a QEMU machine with Debian's cloud kernel, our vDPA modules, and the tree
 * of the machine outside (`Share`), that runs commands one after another:
 *
 *   await using machine = await TestMachine.boot(DEFAULT_MACHINE);
 *   const result = await machine.run("node test/host/smoke.host.ts", { timeLimitMs, onOutput });
 *
 * A command that does not end within its limit ends the machine: what the kernel says about its
 * blocked tasks is asked for first, and stands in the error.
 */
import { spawnSync, type ChildProcess } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { assert } from '../../src/base/assert.ts';
import { VringError } from '../../src/base/errors.ts';
import { childExit, endChild, OutputTail, startChild } from '../../src/vmm/child-processes.ts';
import { findKernel } from '../../src/vmm/kernel-modules.ts';
import { detectAccelerator, requireProgram } from '../../src/vmm/programs.ts';
import { QmpClient } from '../../src/vmm/qmp.ts';
import { sleep, waitFor } from '../peers/scratch.ts';
import { guestEnvironment } from './environment.ts';
import type { MachineOptions } from './host-file.ts';
import { testHostInitramfs } from './image.ts';
import { END_RECORD, READY_RECORD, RECORD_SEPARATOR, type SecondInitOptions } from './init.ts';
import { KernelLog, type KernelReport } from './kernel-log.ts';
import { machineCommand, type MachinePaths } from './machine-command.ts';
import { testHostModules } from './modules.ts';
import { Share } from './share.ts';

const ROOT = join(import.meta.dirname, '..', '..');

/** Measured 5 to 7 s under TCG with both cores free; three busy neighbours multiply that. */
const BOOT_TIMEOUT_MS = 120_000;
/** Longer than any of ours: a test that prints a separator must not fill our memory. */
const MAX_RECORD_LENGTH = 256;
const CONSOLE_LAG_MS = 50;
/** From the question for blocked tasks to the beginning of the kernel's answer, and to its end. */
const BLOCKED_TASKS_BEGIN_MS = 10_000;
const BLOCKED_TASKS_END_MS = 1000;

export type RunOptions = {
  readonly timeLimitMs: number;
  readonly onOutput?: (text: string) => void;
};

export type RunResult = {
  readonly status: number;
  readonly kernelReports: readonly KernelReport[];
};

export type BootOptions = {
  /** Called with everything on the kernel's console. */
  readonly onConsole?: (text: string) => void;
};

export class TestMachine {
  /** The command line that was started, for messages and for people to paste. */
  readonly command: readonly string[];
  readonly #child: ChildProcess;
  readonly #share: Share;
  readonly #folder: string;
  readonly #servers: Server[];
  readonly #kernelLog = new KernelLog();
  readonly #qemuLog = new OutputTail();
  #console: Socket | null = null;
  #control: Socket | null = null;
  #nextId = 1;
  #onRecord: ((record: string) => void) | null = null;
  #onOutput: (text: string) => void = () => {};
  #record: string | null = null; // of a record that has not ended yet
  #gone: VringError | null = null;
  #onGone: ((error: VringError) => void) | null = null;

  private constructor(parts: {
    command: readonly string[];
    child: ChildProcess;
    share: Share;
    folder: string;
    servers: Server[];
  }) {
    this.command = parts.command;
    this.#child = parts.child;
    this.#share = parts.share;
    this.#folder = parts.folder;
    this.#servers = parts.servers;
  }

  /**
   * Builds what is not cached, starts the machine, and waits until it takes commands.
   * @throws VringError `ERR_VRING_MISSING_PROGRAM` with the apt line; `ERR_VRING_TEST_HOST` with
   *   the console's end when it does not come up.
   */
  static async boot(options: MachineOptions, more: BootOptions = {}): Promise<TestMachine> {
    const prepared = await prepareMachine({ interactive: null });
    const { folder, share } = prepared;
    const servers: Server[] = [];
    try {
      const [consoleServer, controlServer] = [createServer(), createServer()];
      servers.push(consoleServer, controlServer);
      const console = join(folder, 'console.sock');
      const control = join(folder, 'control.sock');
      await listen(consoleServer, console);
      await listen(controlServer, control);
      const paths = { ...prepared.paths, console, control };
      const command = machineCommand(options, paths, detectAccelerator());
      const child = startQemu(command, ['ignore', 'pipe', 'pipe']);
      const machine = new TestMachine({ command, child, share, folder, servers });
      await machine.#waitReady(consoleServer, controlServer, more);
      return machine;
    } catch (error) {
      for (const server of servers) server.close();
      await share.close();
      removeFolder(folder);
      throw error;
    }
  }

  /** The end of what the kernel said. */
  get consoleTail(): string {
    return this.#kernelLog.tail;
  }

  /**
   * Runs a shell command in the repository's folder; `onOutput` gets what it writes.
   * @throws VringError `ERR_VRING_TEST_HOST` when it does not end in time, or the machine ends:
   *   this machine is of no further use.
   */
  async run(command: string, options: RunOptions): Promise<RunResult> {
    assert(!command.includes('\n'), 'a command is one line');
    assert(this.#onRecord === null, 'the machine runs one command at a time');
    const id = this.#nextId++;
    this.#onOutput = options.onOutput ?? (() => {});
    try {
      const ended = this.#waitRecord(
        new RegExp(`^${END_RECORD} ${id} (\\d+)$`),
        options.timeLimitMs,
      );
      this.#control?.write(`${id} ${command}\n`);
      const [, status] = await ended;
      // The console is another socket: what the kernel said before the record may arrive after it.
      await sleep(CONSOLE_LAG_MS);
      return { status: Number(status), kernelReports: this.#kernelLog.takeReports() };
    } catch (error) {
      const isHanging = error instanceof VringError && error.code === 'ERR_VRING_TIMEOUT';
      if (isHanging) await this.#askBlockedTasks();
      await this.close();
      throw this.#error(isHanging ? `'${command}' hangs` : `'${command}' did not end`, error);
    } finally {
      this.#onOutput = () => {};
    }
  }

  /** Ends QEMU and the daemon, and removes their files. Idempotent. */
  async close(): Promise<void> {
    await endChild(this.#child);
    await this.#share.close();
    this.#console?.destroy();
    this.#control?.destroy();
    for (const server of this.#servers) server.close();
    removeFolder(this.#folder);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #waitReady(onConsole: Server, onControl: Server, more: BootOptions): Promise<void> {
    const child = this.#child;
    for (const stream of [child.stdout, child.stderr]) {
      stream?.setEncoding('utf8').on('data', (text: string) => this.#qemuLog.append(text));
    }
    child.once('error', (cause) => this.#leave(`cannot be started: ${cause.message}`));
    // 'close' and not 'exit': the streams are read to their end, the log is complete.
    child.once('close', (code, signal) => this.#leave(`ended with ${signal ?? `status ${code}`}`));
    onConsole.once('connection', (socket: Socket) => {
      this.#console = socket.setEncoding('utf8');
      socket.on('error', () => {}); // the end of QEMU is reported by itself
      socket.on('data', (text: string) => {
        this.#kernelLog.append(text);
        more.onConsole?.(text);
      });
    });
    onControl.once('connection', (socket: Socket) => {
      this.#control = socket.setEncoding('utf8');
      socket.on('error', () => {});
      socket.on('data', (text: string) => this.#receive(text));
    });
    try {
      await this.#waitRecord(new RegExp(`^${READY_RECORD}$`), BOOT_TIMEOUT_MS);
    } catch (error) {
      await this.close();
      throw this.#error('did not come up', error);
    }
  }

  /** Splits what arrives into output, and records between RS and the end of its line. */
  #receive(text: string): void {
    let rest = text;
    while (rest !== '') {
      if (this.#record === null) {
        const at = rest.indexOf(RECORD_SEPARATOR);
        const output = at < 0 ? rest : rest.slice(0, at);
        if (output !== '') this.#onOutput(output);
        if (at < 0) return;
        this.#record = '';
        rest = rest.slice(at + 1);
      }
      const end = rest.indexOf('\n');
      const more = end < 0 ? rest : rest.slice(0, end);
      this.#record = (this.#record + more).slice(0, MAX_RECORD_LENGTH);
      if (end < 0) return;
      const record = this.#record;
      this.#record = null;
      rest = rest.slice(end + 1);
      this.#onRecord?.(record);
    }
  }

  #waitRecord(pattern: RegExp, timeoutMs: number): Promise<RegExpExecArray> {
    if (this.#gone !== null) return Promise.reject(this.#gone);
    const { promise, resolve, reject } = Promise.withResolvers<RegExpExecArray>();
    const timer = setTimeout(() => {
      reject(new VringError('ERR_VRING_TIMEOUT', `not within ${timeoutMs / 1000} s`));
    }, timeoutMs);
    this.#onGone = reject;
    this.#onRecord = (record) => {
      const match = pattern.exec(record);
      if (match !== null) resolve(match);
    };
    return promise.finally(() => {
      clearTimeout(timer);
      this.#onRecord = null;
      this.#onGone = null;
    });
  }

  #leave(how: string): void {
    this.#gone ??= new VringError('ERR_VRING_TEST_HOST', `QEMU ${how}`);
    this.#onGone?.(this.#gone);
  }

  /** Break and `w` on the serial line: Linux, Documentation/admin-guide/sysrq.rst. */
  async #askBlockedTasks(): Promise<void> {
    try {
      const qmp = await QmpClient.connect(join(this.#folder, 'qmp.sock'));
      await qmp.execute('chardev-send-break', { id: 'console' });
      this.#console?.write('w');
      const answered = (): boolean => this.consoleTail.includes('Show Blocked State');
      await waitFor('the blocked tasks', BLOCKED_TASKS_BEGIN_MS, answered);
      await sleep(BLOCKED_TASKS_END_MS);
      qmp.close();
    } catch {
      // QEMU itself is stuck or gone: the console's end has to do.
    }
  }

  #error(problem: string, cause: unknown): VringError {
    const reason = cause instanceof Error ? ` (${cause.message})` : '';
    const said = [this.#qemuLog.text, this.#share.log, this.consoleTail].join('\n').trim();
    const tail = said.split('\n').slice(-60).join('\n  | ');
    const text = `the test host: ${problem}${reason}; its console:\n  | ${tail}`;
    return new VringError('ERR_VRING_TEST_HOST', text, { cause });
  }
}

/**
 * A machine on this terminal: `commands` run, then people have a shell until they leave it.
 * Resolves when the machine has ended.
 */
export async function runInteractively(
  options: MachineOptions,
  commands: readonly string[],
): Promise<void> {
  const { folder, share, paths } = await prepareMachine({ interactive: commands });
  try {
    const silent = { ...paths, console: null, control: null };
    const command = machineCommand(options, silent, detectAccelerator());
    const child = startQemu(command, ['inherit', 'inherit', 'inherit']);
    await childExit(child);
  } finally {
    await share.close();
    removeFolder(folder);
  }
}

type PreparedMachine = {
  readonly folder: string;
  readonly share: Share;
  readonly paths: Omit<MachinePaths, 'console' | 'control'>;
};

/** What every machine needs before its QEMU starts; the caller ends the share and the folder. */
async function prepareMachine({
  interactive,
}: Pick<SecondInitOptions, 'interactive'>): Promise<PreparedMachine> {
  buildAddon();
  const qemu = requireProgram('qemu-system-x86_64');
  const kernel = findKernel();
  const modulesPath = testHostModules(kernel);
  const folder = makeFolder();
  try {
    const environment = guestEnvironment();
    const image = { folder: ROOT, environment, interactive };
    const initramfs = join(folder, 'initramfs.cpio');
    writeFileSync(initramfs, testHostInitramfs(kernel, modulesPath, image));
    const share = await Share.start(folder);
    const qmp = join(folder, 'qmp.sock');
    const shareSocket = share.socketPath;
    const paths = { qemu, kernel: kernel.image, initramfs, shareSocket, qmp };
    return { folder, share, paths };
  } catch (error) {
    removeFolder(folder);
    throw error;
  }
}

/** Of machines that have not been closed: a signal, or an error of their owner. */
const folders = new Set<string>();

function makeFolder(): string {
  if (folders.size === 0) process.once('exit', removeFolders);
  const folder = mkdtempSync(join(tmpdir(), 'vring-test-host-'));
  folders.add(folder);
  return folder;
}

function removeFolder(folder: string): void {
  rmSync(folder, { recursive: true, force: true });
  folders.delete(folder);
  if (folders.size === 0) process.off('exit', removeFolders);
}

function removeFolders(): void {
  for (const folder of folders) removeFolder(folder);
}

/** Outside, where a C compiler takes a second; inside it would take half a minute. */
function buildAddon(): void {
  const { status, stderr } = spawnSync(process.execPath, [join(ROOT, 'native', 'build.cjs')], {
    encoding: 'utf8',
  });
  if (status === 0) return;
  throw new VringError('ERR_VRING_TEST_HOST', `the native addon cannot be built: ${stderr}`);
}

function startQemu(command: readonly string[], stdio: ('ignore' | 'pipe' | 'inherit')[]) {
  const [program, ...args] = command as [string, ...string[]];
  return startChild(program, args, { stdio });
}

function listen(server: Server, path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(path, resolve);
  });
}
