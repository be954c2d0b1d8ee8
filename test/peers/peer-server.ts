/** A server of somebody else on a Unix socket, which can be killed and started again. */
import { existsSync, rmSync } from 'node:fs';
import { childExit, endChild, OutputTail, startChild } from '../../src/vmm/index.ts';
import { waitFor } from './scratch.ts';

export class PeerServer {
  readonly #command: readonly string[];
  readonly #socket: string;
  #child: ReturnType<typeof startChild> | null = null;

  constructor(command: readonly string[], socket: string) {
    this.#command = command;
    this.#socket = socket;
  }

  async start(): Promise<void> {
    const [program, ...args] = this.#command;
    rmSync(this.#socket, { force: true }); // of one that was killed
    const child = startChild(program!, args, { stdio: ['ignore', 'ignore', 'pipe'] });
    this.#child = child;
    const log = new OutputTail(4096);
    child.stderr?.setEncoding('utf8').on('data', (text: string) => log.append(text));
    await waitFor(program!, 10_000, () => {
      if (child.exitCode !== null) throw new Error(`${program} ended: ${log.text}`);
      return existsSync(this.#socket);
    });
  }

  async kill(): Promise<void> {
    this.#child!.kill('SIGKILL');
    await childExit(this.#child!);
  }

  async close(): Promise<void> {
    if (this.#child !== null) await endChild(this.#child);
  }
}
