/**
 * Processes that we started, ended by their id whatever happens: a test that throws, a signal,
 * or the end of our own process.
 */
import { spawn, type ChildProcess, type SpawnOptions } from 'node:child_process';

const running = new Set<ChildProcess>();
let hooked = false;

function endAll(): void {
  for (const child of running) child.kill('SIGKILL');
}

/** Starts a program; it is killed when this process exits and still runs. */
export function startChild(
  command: string,
  args: readonly string[],
  options: SpawnOptions = {},
): ChildProcess {
  if (!hooked) {
    hooked = true;
    process.once('exit', endAll);
  }
  const child = spawn(command, [...args], options);
  running.add(child);
  child.once('exit', () => running.delete(child));
  child.once('error', () => running.delete(child));
  return child;
}

export type ExitStatus = { readonly code: number | null; readonly signal: NodeJS.Signals | null };

/** Resolves when the process is gone; at once when it already is. */
export function childExit(child: ChildProcess): Promise<ExitStatus> {
  if (child.exitCode !== null || child.signalCode !== null) {
    return Promise.resolve({ code: child.exitCode, signal: child.signalCode });
  }
  return new Promise((resolve) => {
    child.once('exit', (code, signal) => resolve({ code, signal }));
    child.once('error', () => resolve({ code: null, signal: null }));
  });
}

/** SIGTERM, and SIGKILL after `graceMs`. Idempotent; resolves when the process is gone. */
export async function endChild(child: ChildProcess, graceMs = 3000): Promise<ExitStatus> {
  if (child.pid === undefined) return { code: null, signal: null };
  const exit = childExit(child);
  if (child.exitCode !== null || child.signalCode !== null) return exit;
  child.kill('SIGTERM');
  const timer = setTimeout(() => child.kill('SIGKILL'), graceMs);
  try {
    return await exit;
  } finally {
    clearTimeout(timer);
  }
}

/** The last `limit` characters of what a stream said, for the text of an error. */
export class OutputTail {
  text = '';
  readonly limit: number;

  constructor(limit = 16_384) {
    this.limit = limit;
  }

  append(chunk: string): void {
    this.text = (this.text + chunk).slice(-this.limit);
  }
}
