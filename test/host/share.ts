/**
 * What the test host sees of the machine outside: Debian's programs, the repository and its
 * dependencies, by virtiofs, and nothing else. The tree is put together in a mount namespace of
 * the daemon's own from read-only bind mounts, because QEMU 7.2's virtiofsd knows no read-only
 * mode and runs as root: whatever happens inside, no file outside changes.
 *
 * But for one folder: Node's compile cache of the machines inside. An interpreted processor takes
 * seconds to strip the types of a program of ours, and the cache outside is of no use to it,
 * because V8 marks it with the features of the processor. It holds nothing else.
 */
import type { ChildProcess } from 'node:child_process';
import { existsSync, lstatSync, mkdirSync, readlinkSync, realpathSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { VringError } from '../../src/base/errors.ts';
import { endChild, OutputTail, startChild } from '../../src/vmm/child-processes.ts';
import { cachePath } from '../../src/vmm/linux-guest.ts';
import { requireProgram } from '../../src/vmm/programs.ts';
import { COMPILE_CACHE } from './init.ts';

const ROOT = join(import.meta.dirname, '..', '..');

export class Share {
  readonly socketPath: string;
  readonly #child: ChildProcess;
  readonly #log = new OutputTail();

  private constructor(child: ChildProcess, socketPath: string) {
    this.#child = child;
    this.socketPath = socketPath;
    child.stderr?.setEncoding('utf8').on('data', (text: string) => this.#log.append(text));
    child.once('error', (cause) => this.#log.append(cause.message));
  }

  /**
   * Starts the daemon; `folder` is an empty folder for its tree and its socket.
   * @throws VringError `ERR_VRING_TEST_HOST` with what the daemon said when it does not start.
   */
  static async start(folder: string): Promise<Share> {
    const daemon = requireProgram('virtiofsd');
    const socketPath = join(folder, 'fs.sock');
    const tree = join(folder, 'tree');
    mkdirSync(tree);
    const words = ['--mount', '--propagation', 'private', 'sh', '-eu', '-c', SCRIPT, 'share'];
    words.push(tree, socketPath, daemon, compileCache(), COMPILE_CACHE);
    words.push(...sharedLinks(), '--', ...sharedPaths());
    const child = startChild(requireProgram('unshare'), words, {
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    const share = new Share(child, socketPath);
    for (let tries = 0; tries < 500; tries++) {
      if (existsSync(socketPath)) return share;
      if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) break;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    await share.close();
    const text = `the shared tree of the test host cannot be served; it said:\n${share.log}`;
    throw new VringError('ERR_VRING_TEST_HOST', text);
  }

  get log(): string {
    return this.#log.text;
  }

  /** Idempotent. The mounts end with the daemon, whose namespace they are in. */
  async close(): Promise<void> {
    await endChild(this.#child);
  }
}

function compileCache(): string {
  const path = join(cachePath(), 'test-host-compile');
  mkdirSync(path, { recursive: true, mode: 0o700 });
  return path;
}

/** /bin, /lib and their like are links into /usr, given as pairs of path and target. */
function sharedLinks(): string[] {
  const words: string[] = [];
  for (const name of ['bin', 'sbin', 'lib', 'lib32', 'lib64', 'libx32']) {
    if (!existsSync(`/${name}`) || !lstatSync(`/${name}`).isSymbolicLink()) continue;
    words.push(name, readlinkSync(`/${name}`));
  }
  return words;
}

/** Folders that are seen inside, those that hold others first. */
function sharedPaths(): string[] {
  const paths = ['/usr', '/etc', '/boot', ROOT];
  for (const path of ['bin', 'sbin', 'lib', 'lib64'].map((name) => `/${name}`)) {
    if (existsSync(path) && !lstatSync(path).isSymbolicLink()) paths.push(path);
  }
  // Both may lie elsewhere: node_modules as a link or as a mount, node wherever it was installed.
  paths.push(realpathSync(join(ROOT, 'node_modules')), dirname(realpathSync(process.execPath)));
  return [...new Set(paths)].filter((path) => existsSync(path)).toSorted();
}

const SCRIPT = `
tree=$1 socket=$2 daemon=$3 cache=$4 cache_inside=$5; shift 5
mount -t tmpfs -o mode=755 vring-test-host "$tree"
while [ "$1" != -- ]; do ln -s "$2" "$tree/$1"; shift 2; done
shift
for path; do
  mkdir -p "$tree$path"
  mount --bind "$path" "$tree$path"
  mount -o remount,bind,ro "$tree$path"
done
mkdir "$tree$cache_inside"
mount --bind "$cache" "$tree$cache_inside"
mount -o remount,ro "$tree"
exec "$daemon" --socket-path="$socket" -o source="$tree" \\
  -o cache=always -o sandbox=namespace -o log_level=warn
`;
