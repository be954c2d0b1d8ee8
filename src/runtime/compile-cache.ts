import { mkdirSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';

/**
 * The environment of a data-plane worker. Where TypeScript runs unbuilt it names a folder for
 * Node's compile cache, because a worker that finds its modules there strips no types. Stripping
 * is done by WebAssembly whose memory grows, which detaches an ArrayBuffer, and from then on V8
 * looks for detachment at every typed-array access of that thread: 15 % of a frame's time.
 *
 * A cache that cannot be written is no error; the worker is slower then.
 */
export function workerEnvironment(isUnbuilt: boolean): NodeJS.ProcessEnv {
  const { env } = process;
  if (!isUnbuilt || env['NODE_COMPILE_CACHE'] !== undefined) return env;
  let folder = env['XDG_CACHE_HOME'] || join(homedir(), '.cache');
  // Step by step: mkdir with `recursive`, as Node would do it, never returns below /proc.
  for (const name of ['.', 'vring', 'compile']) {
    folder = join(folder, name);
    try {
      mkdirSync(folder, { mode: 0o700 });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') return env;
    }
  }
  return { ...env, NODE_COMPILE_CACHE: folder };
}
