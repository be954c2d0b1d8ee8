/** Disks whose power can be cut: `power-server.ts` as a process of its own. */
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { childExit, OutputTail, startChild } from '../../src/vmm/index.ts';

const SERVER = fileURLToPath(new URL('./power-server.ts', import.meta.url));

export type PowerDisk = { readonly socket: string; readonly file: string; readonly queues: number };

/** What became of the requests that were not flushed: fault/power-cut-layer.ts. */
export type Cut = {
  readonly requests: number;
  readonly kept: number;
  readonly lost: number;
  readonly torn: number;
};

export class PowerDisks {
  readonly #child: ChildProcess;
  readonly #log = new OutputTail(8192);

  static async start(disks: readonly PowerDisk[]): Promise<PowerDisks> {
    const server = new PowerDisks(disks);
    await server.#message();
    return server;
  }

  private constructor(disks: readonly PowerDisk[]) {
    this.#child = startChild(process.execPath, [SERVER, JSON.stringify(disks)], {
      stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
    });
    for (const stream of [this.#child.stdout, this.#child.stderr]) {
      stream?.setEncoding('utf8').on('data', (text: string) => this.#log.append(text));
    }
  }

  /** From now on nothing is written any more, and every request fails; one result per disk. */
  async cut(seed: number): Promise<Cut[]> {
    const answer = this.#message();
    this.#child.send({ cutSeed: seed });
    return (await answer) as Cut[];
  }

  async close(): Promise<void> {
    this.#child.kill('SIGKILL');
    await childExit(this.#child);
  }

  async #message(): Promise<unknown> {
    const gone = childExit(this.#child).then(({ code, signal }) => {
      throw new Error(`power-server ended (${signal ?? code}); it said:\n${this.#log.text}`);
    });
    const [message] = (await Promise.race([once(this.#child, 'message'), gone])) as [unknown];
    gone.catch(() => undefined); // it ends later, when it is closed
    return message;
  }
}
