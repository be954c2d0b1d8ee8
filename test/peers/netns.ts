/** A network namespace of one test: what happens in it cannot touch the host's network. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { requireProgram } from '../../src/vmm/programs.ts';

const run = promisify(execFile);
let count = 0;

export class NetNamespace {
  readonly name: string;

  private constructor(name: string) {
    this.name = name;
  }

  static async create(): Promise<NetNamespace> {
    const name = `vring-${process.pid}-${count++}`;
    await run(requireProgram('ip'), ['netns', 'add', name]);
    const created = new NetNamespace(name);
    await created.ip('link', 'set', 'lo', 'up');
    return created;
  }

  /** `ip` inside it. */
  async ip(...args: string[]): Promise<string> {
    return (await run(requireProgram('ip'), ['-n', this.name, ...args])).stdout;
  }

  /** A shell command inside it; resolves with its standard output. */
  async shell(command: string, timeoutMs = 60_000): Promise<string> {
    const args = ['netns', 'exec', this.name, 'sh', '-c', command];
    return (await run(requireProgram('ip'), args, { timeout: timeoutMs })).stdout;
  }

  async close(): Promise<void> {
    await run(requireProgram('ip'), ['netns', 'delete', this.name]);
  }
}
