/** `qemu-storage-daemon` with one vhost-user-blk export, as a process of a test. */
import { type ChildProcess } from 'node:child_process';
import { existsSync, rmSync } from 'node:fs';
import { childExit, endChild, OutputTail, startChild } from '../../src/vmm/index.ts';
import { waitFor } from './scratch.ts';

export type StorageDaemonOptions = {
  readonly socket: string;
  /** A raw image; null: `null-co`, which keeps nothing, of this many bytes. */
  readonly file: string | null;
  readonly sizeBytes?: number;
  readonly queues?: number;
  readonly writable?: boolean;
  /** The image past the page cache, by io_uring. */
  readonly direct?: boolean;
  /** Runs only there. */
  readonly core?: number;
};

export class StorageDaemon {
  readonly #child: ChildProcess;
  readonly #log = new OutputTail(16_384);

  /** Starts it and waits until its socket is there. */
  static async start(options: StorageDaemonOptions): Promise<StorageDaemon> {
    const { socket } = options;
    rmSync(socket, { force: true }); // of one that was killed
    const daemon = new StorageDaemon(options);
    try {
      await waitFor('qemu-storage-daemon', 15_000, () => {
        if (daemon.#child.exitCode !== null) throw new Error(`it ended: ${daemon.#log.text}`);
        return existsSync(socket);
      });
      return daemon;
    } catch (error) {
      await daemon.close();
      throw error;
    }
  }

  private constructor(options: StorageDaemonOptions) {
    const { socket, file, sizeBytes = 2 ** 30, queues = 1, writable = true, core } = options;
    const way = options.direct === true ? ',cache.direct=on,aio=io_uring' : '';
    const how = `discard=unmap,node-name=disk,read-only=${onOff(!writable)}${way}`;
    const image =
      file === null
        ? `driver=null-co,size=${sizeBytes},node-name=disk`
        : `driver=file,filename=${file},${how}`;
    const args = [
      '--blockdev',
      image,
      '--export',
      `type=vhost-user-blk,id=e,node-name=disk,num-queues=${queues},` +
        `writable=${onOff(writable)},addr.type=unix,addr.path=${socket}`,
    ];
    const pinned = core === undefined ? [] : ['taskset', '-c', String(core)];
    const [command, ...rest] = [...pinned, 'qemu-storage-daemon', ...args];
    this.#child = startChild(command!, rest, { stdio: ['ignore', 'ignore', 'pipe'] });
    this.#child.stderr?.setEncoding('utf8').on('data', (text: string) => this.#log.append(text));
  }

  get pid(): number {
    return this.#child.pid!;
  }

  /** SIGKILL, as a crash would. */
  async kill(): Promise<void> {
    this.#child.kill('SIGKILL');
    await childExit(this.#child);
  }

  async close(): Promise<void> {
    await endChild(this.#child);
  }
}

function onOff(value: boolean): string {
  return value ? 'on' : 'off';
}
