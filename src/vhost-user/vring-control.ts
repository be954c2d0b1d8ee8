/**
 * The vrings of one back-end session.
 *
 * Theory of operation. Two states that know nothing of each other (specification, "Ring states"):
 * `enabled` is what SET_VRING_ENABLE says; `running` means that the target has the ring. A ring
 * is *complete* with a size, addresses, a kick message, acked features and memory that covers it;
 * the base is that of a new ring unless said. Whatever message completes it starts it, whatever
 * changes it stops and restarts it with the base where it was, and GET_VRING_BASE stops it for
 * good: its next start needs a new kick message. When the worker begins (first kick, or a ring
 * found non-empty) is the target's affair.
 */
import { ProtocolError } from '../base/errors.ts';
import { PACKED_BASE_FRESH } from '../wire/virtio.ts';
import type { AddressMap } from '../memory/address-map.ts';
import type { Fd } from '../sys/index.ts';
import type { VringAddr } from '../wire/vhost-user.ts';
import { checkSizeAndBase, isPacked, translateRing } from './ring-addresses.ts';
import type { VringSetup } from './state-rules.ts';
import type { BackendTarget } from './target.ts';

/** One vring, as status displays see it. */
export type VringSnapshot = {
  readonly index: number;
  readonly size: number;
  readonly base: number;
  readonly enabled: boolean;
  /** The target has it. */
  readonly running: boolean;
  readonly hasKickFd: boolean;
  readonly hasCallFd: boolean;
  readonly hasErrFd: boolean;
  /** What it still lacks: `size`, `addresses`, `kick`, `features`, `memory`. */
  readonly missing: readonly string[];
};

type Vring = {
  readonly index: number;
  size: number; //            0: not known yet
  /** As SET_VRING_BASE had it, or where the ring was stopped; null: never said. */
  base: number | null;
  addr: VringAddr | null;
  kicked: boolean; //         SET_VRING_KICK came, with an fd or with the no-fd bit
  bigEndian: boolean; //      SET_VRING_ENDIAN, for legacy rings
  enabled: boolean;
  running: boolean;
  readonly fds: { kick: Fd | null; call: Fd | null; err: Fd | null };
};

/** The maps of the present memory table. */
export type MemoryMaps = { readonly gpa: AddressMap; readonly uva: AddressMap };

export class VringControl {
  readonly #target: BackendTarget;
  readonly #vrings: Vring[];
  /** fds that the target may still use. */
  readonly #replaced: Fd[] = [];
  /** Acked virtio features, null before SET_FEATURES. Set by the session. */
  features: bigint | null = null;
  /** Null before the first region. Set by the session. */
  maps: MemoryMaps | null = null;

  constructor(target: BackendTarget) {
    this.#target = target;
    this.#vrings = Array.from({ length: target.queueCount }, (_, index) => ({
      index,
      size: 0,
      base: null,
      addr: null,
      kicked: false,
      bigEndian: false,
      enabled: false,
      running: false,
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

  isRunning(index: number): boolean {
    return this.#vrings[index]?.running ?? false;
  }

  setup(index: number): VringSetup | null {
    return this.#vrings[index] ?? null;
  }

  get runningCount(): number {
    return this.#vrings.filter((vring) => vring.running).length;
  }

  snapshots(): VringSnapshot[] {
    return this.#vrings.map((vring) => ({
      index: vring.index,
      size: vring.size,
      base: vring.base ?? this.#freshBase(),
      enabled: vring.enabled,
      running: vring.running,
      hasKickFd: vring.fds.kick !== null,
      hasCallFd: vring.fds.call !== null,
      hasErrFd: vring.fds.err !== null,
      missing: this.#missing(vring),
    }));
  }

  #missing(vring: Vring): string[] {
    const missing: string[] = [];
    if (vring.size === 0) missing.push('size');
    if (vring.addr === null) missing.push('addresses');
    if (!vring.kicked) missing.push('kick');
    if (this.features === null) missing.push('features');
    if (this.maps === null) missing.push('memory');
    return missing;
  }

  /**
   * Changes a ring's configuration; a running one is stopped first, and started again if it is
   * still complete.
   * @throws ProtocolError when the change makes the ring impossible; it stays stopped then.
   */
  async change(vring: Vring, apply: (vring: Vring) => void): Promise<void> {
    await this.#halt(vring);
    apply(vring);
    await this.#start(vring);
  }

  /** SET_VRING_ADDR: front-ends repeat it; only news disturb a running ring. */
  async setAddr(vring: Vring, addr: VringAddr): Promise<void> {
    const known = vring.addr;
    if (
      known !== null &&
      vring.running &&
      known.descUva === addr.descUva &&
      known.availUva === addr.availUva &&
      known.usedUva === addr.usedUva
    ) {
      return;
    }
    await this.change(vring, (v) => (v.addr = addr));
  }

  /** SET_VRING_KICK. The ring owns `fd` from here on, null is the no-fd bit. */
  async setKick(vring: Vring, fd: Fd | null): Promise<void> {
    this.#keep(vring, 'kick', fd);
    vring.kicked = true;
    await this.change(vring, () => this.#closeReplaced());
  }

  /** SET_VRING_CALL and SET_VRING_ERR: replaced while the ring runs, without stopping it. */
  async setNotifier(vring: Vring, which: 'call' | 'err', fd: Fd | null): Promise<void> {
    this.#keep(vring, which, fd);
    if (vring.running && which === 'call') await this.#target.setVringCall(vring.index, fd);
    if (vring.running && which === 'err') await this.#target.setVringErr(vring.index, fd);
    this.#closeReplaced();
  }

  /** The ring owns the new fd at once; the old one waits until the target has let go of it. */
  #keep(vring: Vring, which: 'kick' | 'call' | 'err', fd: Fd | null): void {
    const old = vring.fds[which];
    if (old !== null) this.#replaced.push(old);
    vring.fds[which] = fd;
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
    await this.#halt(vring);
    vring.kicked = false;
    vring.fds.kick?.close();
    vring.fds.kick = null;
    return vring.base ?? this.#freshBase();
  }

  /** Where a ring starts whose base the front-end did not say. */
  #freshBase(): number {
    return isPacked(this.features ?? 0n) ? PACKED_BASE_FRESH : 0;
  }

  /**
   * Runs `body` while no ring runs, then starts every complete ring.
   * @param patient a ring whose memory is not there stays stopped instead of being an error:
   *   regions come and go one by one.
   */
  async withAllStopped(patient: boolean, body: () => void | Promise<void>): Promise<void> {
    for (const vring of this.#vrings) await this.#halt(vring);
    await body();
    let failure: ProtocolError | null = null;
    for (const vring of this.#vrings) {
      try {
        await this.#start(vring);
      } catch (error) {
        if (!(error instanceof ProtocolError)) throw error;
        if (patient && error.code === 'ERR_VRING_RING_ADDRESS') continue;
        failure ??= error; // the others start nevertheless
      }
    }
    if (failure !== null) throw failure;
  }

  /** The session is over and the target has let go of everything. */
  close(): void {
    for (const vring of this.#vrings) {
      vring.running = false;
      for (const which of ['kick', 'call', 'err'] as const) {
        vring.fds[which]?.close();
        vring.fds[which] = null;
      }
    }
    this.#closeReplaced();
  }

  async #halt(vring: Vring): Promise<void> {
    if (!vring.running) return;
    vring.base = await this.#target.stopVring(vring.index);
    vring.running = false;
  }

  async #start(vring: Vring): Promise<void> {
    const { features, maps } = this;
    const { index, size, addr } = vring;
    if (size === 0 || addr === null || !vring.kicked) return;
    if (features === null || maps === null) return;
    const base = vring.base ?? this.#freshBase();
    checkSizeAndBase(index, size, base, features);
    const offsets = translateRing(index, addr, size, features, maps.uva);
    const { kick, call, err } = vring.fds;
    await this.#target.startVring(index, {
      size,
      packed: isPacked(features),
      base,
      ...offsets,
      features,
      enabled: vring.enabled,
      kick,
      call,
      err,
      map: maps.gpa,
      iotlb: false,
      log: null,
      inflight: null,
      bigEndian: false,
    });
    vring.running = true;
  }
}

export type { Vring };
