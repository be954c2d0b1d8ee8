/**
 * Fuzzes the front-end: every call there is, against a back-end that answers by the table and now
 * and then not (testing/hostile-backend.ts), and that uses the backend channel. Calls may fail, with
 * an error of ours; the session ends when it is closed, and nothing is left.
 *
 *   npm run fuzz -- --minutes 60 frontend
 */
import { VringError } from '../base/errors.ts';
import { Fd, socketPair } from '../sys/index.ts';
import { BackendSession } from './backend-session.ts';
import type { FrontendEvents } from './frontend-events.ts';
import { VhostUserFrontend } from './frontend.ts';
import { SharedObjectRegistry } from './shared-objects.ts';
import { region, ringAddr } from './testing/conversation.ts';
import { FakeTarget } from './testing/fake-target.ts';
import { FuzzFds } from './testing/fuzz-fds.ts';
import { type Counts, count, type FuzzOptions, runFuzzer, within } from './testing/fuzz-loop.ts';
import { HostileBackend } from './testing/hostile-backend.ts';
import type { Random } from './testing/random.ts';

export type FuzzResult = {
  readonly iterations: number;
  /** Calls that succeeded, by name, and codes of those that failed. */
  readonly succeeded: Readonly<Record<string, number>>;
  readonly failed: Readonly<Record<string, number>>;
};

/** How long a call may take: back-ends that say nothing are many. */
const TIMEOUT_MS = 50;

type Call = (frontend: VhostUserFrontend, random: Random, zoo: FuzzFds) => Promise<unknown>;

const ring = (random: Random): number => random.next(3);
const memory = (zoo: FuzzFds, n: number): { fd: number } & ReturnType<typeof region> => ({
  ...region(n),
  fd: zoo.memory[n]!.number,
});

const CALLS: Readonly<Record<string, Call>> = {
  getFeatures: (f) => f.getFeatures(),
  setFeatures: (f, r) => f.setFeatures((1n << 32n) | (r.once(2) ? 3n << 33n : 0n)),
  setOwner: (f) => f.setOwner(),
  getQueueNum: (f) => f.getQueueNum(),
  setMemTable: (f, _r, zoo) => f.setMemTable([memory(zoo, 0), memory(zoo, 1)]),
  addRegion: (f, r, zoo) => f.memory.addRegion(memory(zoo, r.next(4))),
  removeRegion: (f, r, zoo) => f.memory.removeRegion(memory(zoo, r.next(4))),
  maxSlots: (f) => f.memory.maxSlots(),
  setVringNum: (f, r) => f.setVringNum(ring(r), 256),
  setVringBase: (f, r) => f.setVringBase(ring(r), 0),
  setVringAddr: (f, r) => f.setVringAddr(ring(r), ringAddr(ring(r))),
  setVringKick: (f, r, zoo) => f.setVringKick(ring(r), r.once(3) ? null : zoo.event(r)),
  setVringCall: (f, r, zoo) => f.setVringCall(ring(r), r.once(3) ? null : zoo.event(r)),
  setVringErr: (f, r, zoo) => f.setVringErr(ring(r), r.once(3) ? null : zoo.event(r)),
  setVringEnable: (f, r) => f.setVringEnable(ring(r), r.once(2)),
  setVringEndian: (f, r) => f.setVringEndian(ring(r), r.once(2)),
  getVringBase: (f, r) => f.getVringBase(ring(r)),
  kickVring: (f, r) => f.kickVring(ring(r)),
  getConfig: (f, r) => f.getConfig(r.next(8), 1 + r.next(32)),
  setConfig: (f, r) => f.setConfig(r.next(8), r.bytes(4)),
  getStatus: (f) => f.getStatus(),
  setStatus: (f) => f.setStatus(15),
  setMtu: (f) => f.setMtu(1500),
  resetDevice: (f) => f.resetDevice(),
  resetOwner: (f) => f.resetOwner(),
  createCryptoSession: (f, r) => f.device.createCryptoSession(r.bytes(16)),
  closeCryptoSession: (f) => f.device.closeCryptoSession(1n),
  getSharedObject: (f, r) => f.device.getSharedObject(r.bytes(16)),
  getShmemConfig: (f) => f.device.getShmemConfig(),
  setGpuSocket: (f, r, zoo) => f.device.setGpuSocket(zoo.any(r)),
  createInflight: (f) => f.inflight.create(4, 256),
  iotlbInvalidate: (f) => f.iotlb.invalidate(0n, 4096n),
  setLogBase: (f, _r, zoo) => f.migration.setLogBase(zoo.memory[0]!.number, 4096),
  setLogFd: (f, r, zoo) => f.migration.setLogFd(zoo.event(r)),
  sendRarp: (f, r) => f.migration.sendRarp(r.bytes(6)),
  loadState: (f, r) => f.migration.loadState(r.bytes(64)),
  advisePostcopy: (f) => f.migration.advisePostcopy(),
  listenPostcopy: (f) => f.migration.listenPostcopy(),
  endPostcopy: (f) => f.migration.endPostcopy(),
};

/** Fds that a call returns are the caller's. */
function release(result: unknown): void {
  if (result instanceof Fd) result.close();
  const region = result as { readonly fd?: unknown } | null | undefined;
  if (region?.fd instanceof Fd) region.fd.close();
}

class FrontendFuzzer {
  readonly zoo = new FuzzFds();
  readonly succeeded: Counts = {};
  readonly failed: Counts = {};

  async attack(random: Random): Promise<void> {
    const [ours, theirs] = socketPair();
    const backend = new HostileBackend(theirs, random.fork(), this.zoo);
    const events: FrontendEvents = {
      iotlbMiss: () => {},
      iotlbAccessFailed: () => {},
      configChanged: () => {},
      hostNotifier: () => random.once(2),
      vringCall: () => {},
      vringErr: () => {},
      sharedObjects: new SharedObjectRegistry(),
      shmem: { map: () => true, unmap: () => {} },
    };
    const options = { timeoutMs: TIMEOUT_MS, ...(random.once(4) ? {} : { events }) };
    let frontend: VhostUserFrontend | null = null;
    await this.#call('attach', async () => {
      frontend = await VhostUserFrontend.attach(ours, 'fuzz', options);
    });
    if (frontend !== null) await this.#calls(frontend, random);
    await backend.close();
    if (frontend === null) return;
    const attached: VhostUserFrontend = frontend;
    await attached.close();
    const reason = await within(attached.closed, 'the front-end did not end');
    if (reason !== null) this.#fail(reason);
  }

  /** The front-end with a back-end of ours must work. */
  async probe(): Promise<void> {
    const [ours, theirs] = socketPair();
    const session = new BackendSession(theirs, new FakeTarget());
    const frontend = await VhostUserFrontend.attach(ours);
    await frontend.setOwner();
    await frontend.setFeatures(1n << 32n);
    await frontend.setMemTable([memory(this.zoo, 0)]);
    await frontend.close();
    await within(session.closed, 'the back-end did not end');
  }

  close(): void {
    this.zoo[Symbol.dispose]();
  }

  async #calls(frontend: VhostUserFrontend, random: Random): Promise<void> {
    if (!random.once(8)) {
      await this.#call('setFeatures', () => frontend.setFeatures((1n << 32n) | (1n << 33n)));
    }
    const names = Object.keys(CALLS);
    const calls: Promise<void>[] = [];
    for (let left = random.next(24); left > 0; left--) {
      const name = random.pick(names);
      const call = this.#call(name, () => CALLS[name]!(frontend, random.fork(), this.zoo));
      calls.push(call);
      if (random.once(64)) void frontend.close();
      if (!random.once(4)) await call;
    }
    await Promise.all(calls);
  }

  async #call(name: string, work: () => Promise<unknown>): Promise<void> {
    try {
      release(await within(work(), name));
      count(this.succeeded, name);
    } catch (error) {
      this.#fail(error);
    }
  }

  /** Every failure is one of ours that says what to do; anything else is a finding. */
  #fail(error: unknown): void {
    if (!(error instanceof VringError) || error.code === 'ERR_VRING_ASSERTION') throw error;
    count(this.failed, error.code);
  }
}

/** @throws Error naming seed and iteration when an invariant does not hold. */
export async function fuzz(options: FuzzOptions): Promise<FuzzResult> {
  const fuzzer = new FrontendFuzzer();
  try {
    const iterations = await runFuzzer(
      options,
      (random) => fuzzer.attack(random),
      () => fuzzer.probe(),
    );
    return { iterations, succeeded: fuzzer.succeeded, failed: fuzzer.failed };
  } finally {
    fuzzer.close();
  }
}
