/**
 * Finds, builds if it must, and loads the C addon. The only importer of `native/`.
 *
 * A checkout builds `build/vring.node` whenever a C source changed; an installed package loads
 * its prebuild, else compiles once into the user's cache. A worker loads the very file that its
 * process has loaded: two copies would mean two arenas.
 */
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { isMainThread } from 'node:worker_threads';
import { VringError, messageOf } from '../base/errors.ts';

/** Between a file at `at` and ranges of the arena; `flags` are RWF_*. */
export type ArenaTransfer = (
  fd: number,
  offsets: Float64Array,
  lengths: Int32Array,
  first: number,
  count: number,
  at: number,
  flags: number,
) => number;

/** The addon's functions: they return a value, or -errno. See native/*.c. */
export type Native = {
  arenaWrap(): ArrayBuffer | number;
  arenaAddress(): number;
  faultsWrap(): ArrayBuffer | number;
  regionMap(offset: number, size: number, fd: number, fdOffset: number, page: number): number;
  regionRetain(handle: number): number;
  regionRelease(handle: number): number;
  regionGeneration(handle: number): number;

  copyRanges(columns: ArrayBuffer, capacity: number, count: number): number;
  writevArena(
    fd: number,
    offsets: Float64Array,
    lengths: Int32Array,
    first: number,
    count: number,
  ): number;
  readArena(fd: number, offset: number, size: number): number;

  preadvArena: ArenaTransfer;
  pwritevArena: ArenaTransfer;
  fallocate(fd: number, mode: number, at: number, size: number): number;
  seekFile(fd: number, at: number, whence: number): number;
  fdatasync(fd: number): number;
  zeroArenaPages(offset: number, size: number): number;

  uringSetup(entries: number, params: Uint8Array): number;
  uringMap(fd: number, bytes: number, at: number): ArrayBuffer | number;
  uringUnmap(memory: ArrayBuffer): number;
  uringEnter(fd: number, toSubmit: number, minComplete: number, flags: number): number;
  uringRegister(
    fd: number,
    opcode: number,
    argument: Uint8Array | Int32Array,
    count: number,
  ): number;
  directAlignment(fd: number, out: Uint32Array): number;
  lockByte(fd: number, at: number, type: number, test: number): number;

  open(path: string, flags: number): number;
  close(fd: number): number;
  closeAside(fd: number): number;
  dup(fd: number): number;
  setNonblocking(fd: number, on: number): number;
  fdStat(fd: number, out: Float64Array): number;
  memfdCreate(name: string, flags: number): number;
  truncate(fd: number, size: number): number;
  addSeals(fd: number, seals: number): number;
  userfaultfd(flags: number): number;
  /** Never wait, whatever the flags of the open file. */
  readNow(fd: number, into: Uint8Array): number;
  writeNow(fd: number, from: Uint8Array): number;
  readBytes(fd: number, into: Uint8Array): number;
  writeBytes(fd: number, from: Uint8Array): number;
  ioctlBytes(fd: number, request: number, argument: Uint8Array | Uint32Array): number;
  ioctlValue(fd: number, request: number, argument: number): number;

  eventfdCreate(): number;
  eventfdSignal(fd: number): number;
  eventfdDrain(fd: number): number;
  timerfdCreate(): number;
  timerfdSet(fd: number, nanoseconds: number): number;
  epollCreate(): number;
  epollAdd(epoll: number, fd: number, token: number, events: number): number;
  epollRemove(epoll: number, fd: number): number;
  epollWait(epoll: number, tokens: Int32Array, timeoutMs: number): number;

  socket(domain: number, type: number, protocol: number): number;
  setSocketOption(fd: number, level: number, name: number, value: number): number;
  unixBind(fd: number, path: string): number;
  unixConnect(fd: number, path: string): number;
  listen(fd: number, backlog: number): number;
  accept(fd: number): number;
  socketPair(out: Int32Array): number;
  peerCredentials(socket: number, out: Int32Array): number;
  sendFds(socket: number, bytes: Uint8Array, fds: Int32Array): number;
  receiveFds(socket: number, into: Uint8Array, out: Int32Array): number;

  setSocketBytes(fd: number, level: number, name: number, value: Uint8Array): number;
  getSocketBytes(fd: number, level: number, name: number, into: Uint8Array): number;
  bindBytes(fd: number, address: Uint8Array): number;
  ringSend(fd: number): number;
  ringReceive(fd: number): number;
  bpf(command: number, attributes: Uint8Array): number;

  pollStart(fd: number, events: number, callback: (events: number) => void): object | number;
  pollUpdate(poll: object, events: number): number;
  pollStop(poll: object): void;

  notifyMap(fd: number, page: number): object | number;
  notifyRing(doorbell: object, value: number, bytes: number): number;
  notifyUnmap(doorbell: object): number;

  setThreadName(name: string): number;
  yieldThread(): number;
  watchThread(intervalMs: number): number;
  pauseWatch(): number;
  cpuSeconds(ofProcess: number): number;
  pinThread(cpu: number): number;
  setns(fd: number, type: number): number;

  perfOpen(attributes: Uint8Array, tid: number): number;
};

type Builder = {
  LOCAL: string;
  PREBUILD: string;
  ensureLocal(): string;
  ensureCached(): string;
  isCheckout(): boolean;
};

/** The folder with package.json: this file is in src/sys or in dist/sys. */
function packageRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'package.json'))) {
    const parent = dirname(folder);
    if (parent === folder) throw new Error('package.json of vring not found');
    folder = parent;
  }
  return folder;
}

function load(): Native {
  const require = createRequire(import.meta.url);
  const reasons: string[] = [];
  const attempt = (what: string, path: () => string): Native | null => {
    try {
      return require(path()) as Native;
    } catch (error) {
      reasons.push(`${what}: ${messageOf(error)}`);
      return null;
    }
  };
  let builder: Builder;
  try {
    builder = require(join(packageRoot(), 'native', 'build.cjs')) as Builder;
  } catch (error) {
    throw missing(`native/build.cjs: ${messageOf(error)}`, error);
  }
  if (process.platform !== 'linux') throw missing(`this is ${process.platform}, not Linux`);
  const build = builder.isCheckout() && (isMainThread || !existsSync(builder.LOCAL));
  const local = build
    ? attempt('local build', () => builder.ensureLocal())
    : existsSync(builder.LOCAL) && attempt('local build', () => builder.LOCAL);
  if (local) return local;
  const prebuilt = existsSync(builder.PREBUILD) && attempt('prebuild', () => builder.PREBUILD);
  if (prebuilt) return prebuilt;
  const cached = attempt('build into the cache', () => builder.ensureCached());
  if (cached) return cached;
  throw missing(reasons.join('; '));
}

function missing(reason: string, cause?: unknown): VringError {
  const help =
    `the native addon for linux-${process.arch} could not be loaded (${reason}). ` +
    'Install a C compiler (apt-get install build-essential) and run vring again, ' +
    'or, in a checkout, run: node native/build.cjs --force. ' +
    'Under --permission, Node needs --allow-addons.';
  return new VringError('ERR_VRING_NATIVE', help, { cause });
}

export const native: Native = load();
