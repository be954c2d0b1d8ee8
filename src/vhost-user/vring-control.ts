/**
 * The vrings of one back-end session.
 *
 * Theory of operation. The states of a ring and the ways between them are in ring-states.ts. A
 * ring is *complete* with a size, addresses, a kick message, acked features and memory that
 * covers it; the base is that of a new ring unless said. Whatever message completes it starts
 * it, whatever changes it halts and restarts it with the base where it was, and GET_VRING_BASE
 * stops it for good: its next start needs a new kick message. When the worker begins (first
 * kick, or a ring found non-empty) is the target's affair.
 *
 * A complete ring may have to wait: for translations of its areas (IOTLB), or for the front-end
 * to be ready for page faults (postcopy). It starts when they come, without another message of
 * its own.
 */
import { ProtocolError } from '../base/errors.ts';
import type { Fd } from '../sys/index.ts';
import { VHOST_VRING_F_LOG, type VringAddr } from '../wire/vhost-user.ts';
import type { InbandNotifier } from './inband.ts';
import type { IotlbControl } from './iotlb-control.ts';
import {
  composeStart,
  freshBase,
  leadsTo,
  missAreas,
  missingOf,
  type RingSetup,
  type RingSurroundings,
  ringTouches,
  usesIotlb,
} from './ring-start.ts';
import { nextRunState, type RunEvent, type RunState } from './ring-states.ts';
import type { VringSetup } from './state-rules.ts';
import type { BackendTarget, StartVring } from './target.ts';

/** One vring, as status displays see it. */
export type VringSnapshot = {
  readonly index: number;
  readonly size: number;
  readonly base: number;
  readonly enabled: boolean;
  /** The target has it. */
  readonly running: boolean;
  readonly state: RunState;
  readonly hasKickFd: boolean;
  readonly hasCallFd: boolean;
  readonly hasErrFd: boolean;
  /**
   * What it still lacks: `size`, `addresses`, `kick`, `features`, `memory`, and of a ring that
   * waits `translations`, `contiguous translations` or what holds all rings back.
   */
  readonly missing: readonly string[];
};

export type NotifierName = 'call' | 'err';

type Vring = {
  -readonly [K in keyof RingSetup]: RingSetup[K];
} & {
  /** As SET_VRING_BASE had it; `base` is where the ring was stopped since. */
  saidBase: number | null;
  state: RunState;
  /** Which of its fds the session made itself: in-band notifications. */
  readonly own: Set<'kick' | NotifierName>;
  /** What the target was given last. */
  started: StartVring | null;
  /** What a waiting ring waits for. */
  waitsFor: string | null;
  readonly fds: { kick: Fd | null; call: Fd | null; err: Fd | null };
};

export class VringControl {
  readonly around: RingSurroundings = {
    features: null,
    maps: null,
    gpaAddresses: false,
    logging: false,
    log: null,
    inflight: null,
    held: null,
  };
  readonly #target: BackendTarget;
  readonly #iotlb: IotlbControl;
  readonly #inband: InbandNotifier;
  readonly #vrings: Vring[];
  /** fds that the target may still use. */
  readonly #replaced: Fd[] = [];
  /** A ring was started: the device is not suspended. */
  onStarted: () => void = () => undefined;

  constructor(target: BackendTarget, iotlb: IotlbControl, inband: InbandNotifier) {
    this.#target = target;
    this.#iotlb = iotlb;
    this.#inband = inband;
    this.#vrings = Array.from({ length: target.queueCount }, (_, index) => ({
      index,
      size: 0,
      base: null,
      saidBase: null,
      addr: null,
      kicked: false,
      bigEndian: false,
      enabled: false,
      state: 'stopped',
      own: new Set(),
      started: null,
      waitsFor: null,
      fds: { kick: null, call: null, err: null },
    }));
  }

  /** @throws ProtocolError ERR_VRING_RING_INDEX, field `index`. */
  at(request: string, index: number): Vring {
    const vring = this.#vrings[index];
    if (vring !== undefined) return vring;
    const count = this.#vrings.length;
    const problem = `${index}, this device has ${count} vrings (0 to ${count - 1})`;
    throw new ProtocolError('ERR_VRING_RING_INDEX', request, 'index', problem);
  }

  get all(): readonly Vring[] {
    return this.#vrings;
  }

  isRunning(index: number): boolean {
    return this.#vrings[index]?.state === 'started';
  }

  setup(index: number): VringSetup | null {
    const vring = this.#vrings[index];
    if (vring === undefined) return null;
    return { size: vring.size, base: vring.saidBase, bigEndian: vring.bigEndian };
  }

  /** No ring runs, or will when its translations come. */
  get areAllStopped(): boolean {
    return this.#vrings.every(({ state }) => state !== 'started' && state !== 'waiting');
  }

  get runningCount(): number {
    return this.#vrings.filter((vring) => vring.state === 'started').length;
  }

  snapshots(): VringSnapshot[] {
    return this.#vrings.map((vring) => ({
      index: vring.index,
      size: vring.size,
      base: vring.base ?? freshBase(this.around.features),
      enabled: vring.enabled,
      running: vring.state === 'started',
      state: vring.state,
      hasKickFd: vring.fds.kick !== null,
      hasCallFd: vring.fds.call !== null,
      hasErrFd: vring.fds.err !== null,
      missing: [
        ...missingOf(vring, this.around),
        ...(vring.waitsFor === null ? [] : [vring.waitsFor]),
      ],
    }));
  }

  /**
   * Changes a ring's configuration; a running one is halted first, and started again if it is
   * still complete.
   * @throws ProtocolError when the change makes the ring impossible; it stays stopped then.
   */
  async change(vring: Vring, apply: (vring: Vring) => void): Promise<void> {
    await this.#halt(vring);
    apply(vring);
    await this.#start(vring);
  }

  /** SET_VRING_BASE. */
  async setBase(vring: Vring, base: number): Promise<void> {
    if (vring.state === 'started') return; // the base that it began with, said once more
    await this.change(vring, (v) => (v.base = v.saidBase = base));
  }

  /** SET_VRING_ADDR: front-ends repeat it; only news disturb a running ring. */
  async setAddr(vring: Vring, addr: VringAddr): Promise<void> {
    const known = vring.addr;
    if (known !== null && vring.state === 'started' && sameAddr(known, addr)) return;
    await this.change(vring, (v) => (v.addr = addr));
  }

  /**
   * SET_VRING_KICK. The ring owns `fd` from here on, null is the no-fd bit: polling, or with
   * in-band notifications an eventfd of ours.
   */
  async setKick(vring: Vring, fd: Fd | null): Promise<void> {
    this.adoptKick(vring, fd, fd === null);
    await this.change(vring, () => this.#closeReplaced());
  }

  /** The ring has it, and is not started by it: for a session that is restored. */
  adoptKick(vring: Vring, given: Fd | null, inband: boolean): void {
    const fd = inband ? this.#inband.makeKick(vring.index) : given;
    this.#keep(vring, 'kick', fd, inband && fd !== null);
    vring.kicked = true;
  }

  /** SET_VRING_CALL and SET_VRING_ERR: replaced while the ring runs, without stopping it. */
  async setNotifier(vring: Vring, which: NotifierName, given: Fd | null): Promise<void> {
    this.adoptNotifier(vring, which, given, given === null);
    const fd = vring.fds[which];
    const running = vring.state === 'started';
    if (running && which === 'call') await this.#target.setVringCall(vring.index, fd);
    if (running && which === 'err') await this.#target.setVringErr(vring.index, fd);
    this.#closeReplaced();
  }

  /** The ring has it, and the target is not told: for a session that is restored. */
  adoptNotifier(vring: Vring, which: NotifierName, given: Fd | null, inband: boolean): void {
    this.#inband.unwatch(vring.index, which);
    const fd = inband ? this.#inband.watch(vring.index, which) : given;
    this.#keep(vring, which, fd, inband && fd !== null);
  }

  /** The ring owns the new fd at once; the old one waits until the target has let go of it. */
  #keep(vring: Vring, which: 'kick' | NotifierName, fd: Fd | null, own: boolean): void {
    const old = vring.fds[which];
    if (old !== null) this.#replaced.push(old);
    vring.fds[which] = fd;
    if (own) vring.own.add(which);
    else vring.own.delete(which);
  }

  #closeReplaced(): void {
    for (const fd of this.#replaced.splice(0)) fd.close();
  }

  async setEnabled(vring: Vring, enabled: boolean): Promise<void> {
    if (vring.enabled === enabled) return;
    vring.enabled = enabled;
    await this.#target.setVringEnabled(vring.index, enabled);
  }

  async setAllEnabled(enabled: boolean): Promise<void> {
    for (const vring of this.#vrings) await this.setEnabled(vring, enabled);
  }

  /** GET_VRING_BASE. Size, addresses, call and err fds are kept, the kick is not. */
  async stop(vring: Vring): Promise<number> {
    await this.#halt(vring, 'get-base');
    vring.kicked = false;
    vring.fds.kick?.close();
    vring.fds.kick = null;
    vring.own.delete('kick');
    await this.#forgetTranslations();
    return vring.base ?? freshBase(this.around.features);
  }

  /**
   * Behind the last ring. QEMU 7.2 says nothing when the machine is reset and its IOMMU with it;
   * the next kernel has other pages at the same I/O addresses, its rings first of all.
   */
  async #forgetTranslations(): Promise<void> {
    if (!usesIotlb(this.around.features)) return;
    if (this.#vrings.some((vring) => vring.state !== 'stopped')) return;
    const { iova, sizeBytes } = this.#iotlb.clear();
    await this.#target.invalidateIotlb?.(iova, sizeBytes);
  }

  /** RESET_DEVICE: every ring is stopped and disabled, and begins anew. */
  async reset(): Promise<void> {
    for (const vring of this.#vrings) {
      await this.stop(vring);
      await this.setEnabled(vring, false);
      vring.base = vring.saidBase = null;
    }
  }

  /**
   * Runs `body` while no ring runs, then starts every complete ring.
   * @param patient a ring whose memory is not there stays stopped instead of being an error:
   *   regions come and go one by one.
   */
  async withAllStopped(patient: boolean, body: () => void | Promise<void>): Promise<void> {
    await this.haltAll();
    await body();
    await this.startAll(patient);
  }

  /** Every ring is the session's again; bases are kept. */
  async haltAll(): Promise<void> {
    await Promise.all(this.#vrings.map((vring) => this.#halt(vring)));
  }

  /** Starts what is complete. @throws ProtocolError of the first ring that is impossible. */
  async startAll(patient: boolean): Promise<void> {
    // All at once: each is a question to another thread. One that fails holds nobody back.
    const stopped = this.#vrings.filter((vring) => vring.state !== 'started');
    const outcomes = await Promise.allSettled(stopped.map((vring) => this.#start(vring)));
    const errors = outcomes.flatMap((each) => (each.status === 'rejected' ? [each.reason] : []));
    const other = errors.find((error) => !(error instanceof ProtocolError));
    if (other !== undefined) throw other;
    const isFailure = ({ code }: ProtocolError): boolean => !patient || !PATIENT_CODES.has(code);
    const failure = (errors as ProtocolError[]).find(isFailure);
    if (failure !== undefined) throw failure;
  }

  /** Resolves when the target has answered; with no ring started it is not asked. */
  async probe(): Promise<void> {
    const vring = this.#vrings.find(({ state }) => state === 'started');
    if (vring !== undefined) await this.#target.setVringErr(vring.index, vring.fds.err);
  }

  /** Something came that rings may wait for. */
  async retryWaiting(): Promise<void> {
    for (const vring of this.#vrings) {
      if (vring.state === 'waiting') await this.#startAgain(vring);
    }
  }

  /**
   * Translations of a range are gone or new: rings that lie in it, and are not where they were,
   * stop, and ask for what is missing.
   */
  async retranslated(iova: number, sizeBytes: number): Promise<void> {
    const { features } = this.around;
    if (features === null || !usesIotlb(features)) return;
    for (const vring of this.#vrings) {
      if (vring.state !== 'started' || !ringTouches(vring, features, iova, sizeBytes)) continue;
      if (leadsTo(vring, features, this.#iotlb, vring.started!)) continue;
      await this.#halt(vring);
      await this.#startAgain(vring);
    }
  }

  /** The message at hand is not to blame for a ring that another one described wrongly. */
  async #startAgain(vring: Vring): Promise<void> {
    try {
      await this.#start(vring);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.#move(vring, 'halt');
    }
  }

  /** Rings that wait for translations miss them once more. */
  missAgain(): void {
    for (const vring of this.#vrings) {
      if (vring.state === 'waiting' && vring.waitsFor === TRANSLATIONS) {
        missAreas(vring, this.around.features!, this.#iotlb);
      }
    }
  }

  /** The session is over and the target has let go of everything. */
  close(): void {
    this.#inband.close();
    for (const vring of this.#vrings) {
      vring.state = 'stopped';
      for (const which of ['kick', 'call', 'err'] as const) {
        vring.fds[which]?.close();
        vring.fds[which] = null;
      }
    }
    this.#closeReplaced();
  }

  #move(vring: Vring, event: RunEvent, waitsFor: string | null = null): void {
    vring.state = nextRunState(vring.state, event);
    vring.waitsFor = waitsFor;
  }

  async #halt(vring: Vring, event: 'halt' | 'get-base' = 'halt'): Promise<void> {
    if (vring.state === 'started') vring.base = await this.#target.stopVring(vring.index);
    this.#move(vring, event);
  }

  async #start(vring: Vring): Promise<void> {
    const { around } = this;
    if (missingOf(vring, around).length > 0) return;
    if (around.held !== null) {
      this.#move(vring, 'wait', around.held);
      return;
    }
    const start = this.#compose(vring);
    if (typeof start === 'string') {
      this.#move(vring, 'wait', start);
      return;
    }
    await this.#target.startVring(vring.index, start);
    vring.started = start;
    this.#move(vring, 'start');
    this.onStarted();
  }

  /** The ring, or what it waits for. */
  #compose(vring: Vring): (ReturnType<typeof composeStart> & object) | string {
    try {
      return composeStart(vring, this.around, this.#iotlb) ?? TRANSLATIONS;
    } catch (error) {
      // Pages of a ring that are apart: nothing to refuse, the next update may bring better ones.
      const apart = error instanceof ProtocolError && error.code === 'ERR_VRING_RING_ADDRESS';
      if (apart && usesIotlb(this.around.features)) return 'contiguous translations';
      throw error;
    }
  }
}

const TRANSLATIONS = 'translations';

/** Why a ring stays stopped without being an error while memory regions come and go. */
const PATIENT_CODES = new Set(['ERR_VRING_RING_ADDRESS', 'ERR_VRING_LOG_SIZE']);

function sameAddr(a: VringAddr, b: VringAddr): boolean {
  const logs = (b.flags & VHOST_VRING_F_LOG) !== 0;
  return (
    a.flags === b.flags &&
    a.descUva === b.descUva &&
    a.availUva === b.availUva &&
    a.usedUva === b.usedUva &&
    (!logs || a.logGpa === b.logGpa)
  );
}

export type { Vring };
