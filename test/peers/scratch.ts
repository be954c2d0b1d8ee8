/** Things of one test that must be gone when it ends, ended in reverse order. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export type Closable = { close(): unknown } | { [Symbol.asyncDispose](): unknown };

/**
 *   await using scratch = new Scratch();
 *   const guest = scratch.own(await LinuxGuest.start(...));
 */
export class Scratch {
  /** A folder of this test alone; short, because socket paths hold 107 bytes. */
  readonly folder = mkdtempSync(join(tmpdir(), 'vring-'));
  readonly #owned: Closable[] = [];

  path(name: string): string {
    return join(this.folder, name);
  }

  own<T extends Closable>(thing: T): T {
    this.#owned.push(thing);
    return thing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const failures: unknown[] = [];
    for (const thing of this.#owned.toReversed()) {
      try {
        await ('close' in thing ? thing.close() : thing[Symbol.asyncDispose]());
      } catch (error) {
        failures.push(error);
      }
    }
    rmSync(this.folder, { recursive: true, force: true });
    if (failures.length > 0) throw new AggregateError(failures, 'a peer did not end cleanly');
  }
}

export function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

/** Polls until `probe` gives something else than null, false or undefined. */
export async function waitFor<T>(
  what: string,
  timeoutMs: number,
  probe: () => Promise<T | null | undefined | false> | T | null | undefined | false,
): Promise<T> {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    const value = await probe();
    if (value !== null && value !== undefined && value !== false) return value;
    if (performance.now() > deadline) throw new Error(`${what}: not within ${timeoutMs} ms`);
    await sleep(50);
  }
}
