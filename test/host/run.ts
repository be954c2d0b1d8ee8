/**
 * Runs host files, each as a process of its own inside a machine that fits: the one that is up,
 * if it is what the file asks for, else a new one. A machine in which a file hung, or whose
 * kernel broke, is not used again.
 */
import { messageOf } from '../../src/base/errors.ts';
import type { HostFile } from './host-file.ts';
import { machineKey } from './host-file.ts';
import { quote } from './init.ts';
import { TestMachine, type BootOptions } from './machine.ts';

export type HostOutcome = {
  readonly path: string;
  /** With the boot, if it needed one. */
  readonly seconds: number;
  /** Null when every test of the file passed and the kernel is whole. */
  readonly problem: string | null;
};

export type HostRunnerOptions = Required<BootOptions> & {
  /** Called with what the files print, and with lines of the runner's own, which begin with #. */
  readonly onOutput: (text: string) => void;
};

/** What runs inside. */
export function hostCommand(file: HostFile): string {
  return `node --test-reporter=spec ${quote(file.path)}`;
}

export class HostRunner {
  readonly #options: HostRunnerOptions;
  #machine: TestMachine | null = null;
  #machineKey = '';

  constructor(options: HostRunnerOptions) {
    this.#options = options;
  }

  /** Never throws: whatever goes wrong is the outcome's problem. */
  async run(file: HostFile): Promise<HostOutcome> {
    const began = performance.now();
    let problem: string | null;
    try {
      problem = await this.#runIn(await this.#machineFor(file), file);
    } catch (error) {
      problem = messageOf(error);
      this.#machine = null; // it has ended itself
    }
    return { path: file.path, seconds: secondsSince(began), problem };
  }

  async close(): Promise<void> {
    const machine = this.#machine;
    this.#machine = null;
    await machine?.close();
  }

  async #machineFor(file: HostFile): Promise<TestMachine> {
    const key = machineKey(file);
    if (this.#machine !== null && key === this.#machineKey) return this.#machine;
    await this.close();
    const began = performance.now();
    const { memoryMib, cpus, cards } = file.machine;
    this.#say(`booting: ${cpus} processors, ${memoryMib} MiB, cards ${cards}`);
    this.#machine = await TestMachine.boot(file.machine, this.#options);
    this.#machineKey = key;
    this.#say(`up after ${secondsSince(began)} s`);
    return this.#machine;
  }

  async #runIn(machine: TestMachine, file: HostFile): Promise<string | null> {
    this.#say(file.path);
    const { onOutput } = this.#options;
    const { timeLimitMs } = file;
    const { status, kernelReports } = await machine.run(hostCommand(file), {
      timeLimitMs,
      onOutput,
    });
    for (const { kind, line } of kernelReports) this.#say(`kernel ${kind}: ${line}`);
    if (kernelReports.some(({ kind }) => kind === 'broken')) {
      await this.close();
      return `the kernel inside broke; its console:\n${machine.consoleTail}`;
    }
    return status === 0 ? null : `ended with status ${status}`;
  }

  #say(line: string): void {
    this.#options.onOutput(`# ${line}\n`);
  }
}

function secondsSince(began: number): number {
  return Math.round((performance.now() - began) / 100) / 10;
}
