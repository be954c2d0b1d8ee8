/** The command that starts the peer, run again whenever the peer has ended. */
import { type ChildProcess, spawn } from 'node:child_process';

export type PeerEnd = { readonly code: number | null; readonly signal: NodeJS.Signals | null };

const GRACE_MS = 2000;
const OUTPUT_BYTES = 4096;

export class Respawner {
  readonly command: string;
  #child: ChildProcess | null = null;
  #end: PeerEnd | null = null;
  #output = '';

  constructor(command: string) {
    this.command = command;
  }

  get running(): boolean {
    return this.#child !== null && this.#end === null;
  }

  /** How the last one ended; null while it runs. */
  get end(): PeerEnd | null {
    return this.#end;
  }

  /** The last lines that it said. */
  get output(): string {
    return this.#output.trimEnd();
  }

  /** Starts it unless it runs. */
  ensure(): void {
    if (this.running) return;
    this.#end = null;
    this.#output = '';
    // `exec`: what we end is the peer and not a shell in front of it.
    const child = spawn('/bin/sh', ['-c', `exec ${this.command}`], {
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    this.#child = child;
    const keep = (text: Buffer): void => {
      this.#output = (this.#output + text.toString()).slice(-OUTPUT_BYTES);
    };
    child.stdout?.on('data', keep);
    child.stderr?.on('data', keep);
    child.stdin?.on('error', () => {});
    child.once('exit', (code, signal) => {
      if (this.#child === child) this.#end = { code, signal };
    });
    child.once('error', () => {
      if (this.#child === child) this.#end = { code: 127, signal: null };
    });
  }

  /** Ends it; resolves when it is gone. Idempotent. */
  async stop(): Promise<void> {
    const child = this.#child;
    if (child === null || !this.running) return;
    const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()));
    child.kill('SIGTERM');
    const timer = setTimeout(() => child.kill('SIGKILL'), GRACE_MS);
    await gone;
    clearTimeout(timer);
  }
}

export function describeEnd({ code, signal }: PeerEnd): string {
  return signal === null ? `ended with status ${code}` : `was killed by ${signal}`;
}
