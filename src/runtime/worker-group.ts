import { setTimeout as sleep } from 'node:timers/promises';
import { ALARM_WORDS, raiseLockAlarm } from '../sys/lock-wait.ts';
import type { IotlbUpdate } from '../vhost-user/index.ts';
import { SHARED_RING_WORDS } from '../virtqueue/shared-ring.hot.ts';
import { BalanceTimer } from './balance-timer.ts';
import type { PlaneEvent, ResumedVring, VringAttach, WorkerCounters } from './data-plane.ts';
import type { PlaneRunner } from './plane-runner.ts';
import { balance } from './queue-balance.ts';

/** What a group needs of a worker; `DataPlaneWorker` is one. */
export interface GroupMember extends PlaneRunner {
  counters(): Promise<WorkerCounters>;
}

/** What a group gives its members. */
export type MemberContext = {
  /** Raised when one ended, whose locks are never let go of: who waits gives up (lock-wait.ts). */
  readonly alarm: Int32Array;
  /** Not 0: whoever has work first sets it to 0 and calls `onBusy`. */
  readonly quiet: Int32Array;
  onBusy(): void;
  onEvent(event: PlaneEvent): void;
  onCrash(error: Error): void;
};

/** Who carries a request of the plane out, and what its answer is. */
export type GroupRule = {
  /**
   * `each`: all at once. `first-last`, `first-first`: the first worker after or before all others:
   * it alone receives from an uplink, whose frames no other may meet before or after it knows it.
   * `first-first` is for what ends: when the first one fails, the others end it all the same.
   */
  readonly to: 'first' | 'each' | 'first-last' | 'first-first';
  /** No ring moves meanwhile: one that does would be in two answers, or in none. */
  readonly still?: boolean;
  payload?(payload: never, member: number, states: readonly unknown[]): unknown;
  /** Asked of each before, with the same payload: the answers are the `states`. */
  readonly before?: string;
  /** When one failed, this is asked of those that did not, with the same payload: none has it. */
  readonly undo?: string;
  /** Default: the first worker's answer. */
  merge?(results: readonly never[]): unknown;
};

export type WorkerGroupOptions = {
  readonly count: number;
  start(member: number, context: MemberContext): GroupMember;
  /** Rings that every worker writes; each other one belongs to one worker. */
  isShared(vring: VringAttach): boolean;
  ruleOf(op: string): GroupRule;
  onEvent(event: PlaneEvent): void;
  /** Once per queue, until it moves. */
  onRefused(refused: RefusedMove): void;
  /** A worker ended by itself, and all others with it; told once. */
  onCrash(error: Error): void;
  /** LOADS_BYTES; the plane adds up there what it takes from a ring. */
  readonly loads: SharedArrayBuffer;
  /** How often queues are looked at while they bring anything, milliseconds; 0: they stay. */
  readonly balanceMs: number;
};

/** Longest that workers which end with another one are waited for, milliseconds. */
const CLOSE_MS = 2000;

/** Slots of workers come first: load that belongs to no queue. */
const FIRST_SLOT = 16;
const LOAD_SLOTS = 4096;
export const LOADS_BYTES = LOAD_SLOTS * Float64Array.BYTES_PER_ELEMENT;

/** Periods that a queue stays where it was moved to: its driver and caches settle meanwhile. */
const REST_PERIODS = 3;
/** Periods that a queue stays which a worker could not take: each try stops it for a moment. */
const REFUSED_PERIODS = 60;

export type GroupQueue = {
  readonly device: number;
  readonly index: number;
  readonly member: number;
  /** What was taken from it in the last period. */
  readonly load: number;
};

/** Rings that went to a worker so far, and those that it could not take. */
export type GroupMoves = { readonly taken: number; readonly refused: number };

/** A ring that a worker could not take. */
export type RefusedMove = {
  readonly device: number;
  readonly index: number;
  readonly from: number;
  readonly to: number;
  readonly cause: Error;
  /** Its old worker could not take it back: nobody has it until it is attached anew. */
  readonly lost: boolean;
};

type Entry = {
  attach: VringAttach;
  /** -1: shared by all. */
  member: number;
  slot: number;
  counted: number;
  load: number;
  rest: number;
  /** Periods for which it stays, and lets others move meanwhile: a worker could not take it. */
  barred: number;
  refused: boolean;
  /** No worker has it; it stands where `attach` says. */
  lost: boolean;
  /** What is asked about a ring happens one after the other, moves included. */
  last: Promise<unknown>;
};

/**
 * Several workers that run one plane each and look like one. Every worker knows all devices. A ring
 * that is taken from (a transmit queue) belongs to one of them, which alone watches and polls it; a
 * ring that is written (a receive queue) is attached in all, behind a lock (`shared-ring.hot.ts`).
 *
 * A ring moves as if it were stopped and started: its worker lets go of it between two rounds, with
 * nothing out, and the next one begins where that ended. Its eventfd counts what nobody heard.
 *
 * A worker that ends by itself takes the others with it: it may have held a lock, and what a ring
 * that it was working on looks like nobody knows. Requests are answered when all threads are gone.
 */
export class WorkerGroup implements PlaneRunner {
  readonly #options: WorkerGroupOptions;
  readonly #members: readonly GroupMember[];
  readonly #entries = new Map<string, Entry>();
  readonly #freeSlots = Array.from({ length: LOAD_SLOTS - FIRST_SLOT }, (_, i) => i + FIRST_SLOT);
  readonly #loads: Float64Array;
  readonly #ownCounted = new Float64Array(FIRST_SLOT);
  readonly #alarm = new Int32Array(new SharedArrayBuffer(ALARM_WORDS * 4));
  #isEnding = false;
  readonly #timer: BalanceTimer;
  #moving: Promise<unknown> = Promise.resolve();
  /** Requests under way during which no ring moves. */
  #asking = 0;
  readonly #moves: { taken: number; refused: number }[];

  constructor(options: WorkerGroupOptions) {
    this.#options = options;
    const { count } = options;
    this.#loads = new Float64Array(options.loads);
    this.#moves = Array.from({ length: count }, () => ({ taken: 0, refused: 0 }));
    this.#timer = new BalanceTimer(options.balanceMs, (periods) => this.#balance(periods));
    if (count === 1 || options.balanceMs === 0) this.#timer.close();
    this.#members = Array.from({ length: count }, (_, member) =>
      options.start(member, {
        alarm: this.#alarm,
        quiet: this.#timer.quiet,
        onBusy: () => this.#timer.begin(),
        onEvent: (event) => this.#heard(event, member),
        onCrash: (error) => void this.#crashed(error),
      }),
    );
  }

  /** Queues that belong to a worker. */
  queues(): GroupQueue[] {
    return [...this.#entries.values()]
      .filter(({ member }) => member >= 0)
      .map(({ attach: { device, index }, member, load }) => ({ device, index, member, load }));
  }

  /** By worker: which took rings of others, or could not. */
  moves(): readonly GroupMoves[] {
    return this.#moves.map((moves) => ({ ...moves }));
  }

  counters(): Promise<WorkerCounters[]> {
    return this.#each((member) => member.counters());
  }

  async attachVring(vring: VringAttach): Promise<void> {
    const isShared = this.#members.length > 1 && this.#options.isShared(vring);
    const attach = isShared ? { ...vring, shared: newRecord() } : vring;
    const entry: Entry = {
      attach,
      member: isShared ? -1 : this.#leastLoaded(),
      slot: isShared ? 0 : (this.#freeSlots.pop() ?? 0),
      counted: 0,
      load: 0,
      rest: 0,
      barred: 0,
      refused: false,
      lost: false,
      last: Promise.resolve(),
    };
    if (entry.slot !== 0) {
      entry.attach = { ...attach, loadSlot: entry.slot };
      entry.counted = this.#loads[entry.slot]!;
    }
    this.#entries.set(keyOf(vring.device, vring.index), entry);
    await this.#serially(entry, async () => {
      try {
        if (!isShared) return await this.#members[entry.member]!.attachVring(entry.attach);
        await this.#attachShared(entry.attach);
      } catch (error) {
        this.#lose(entry);
        throw error;
      }
    });
  }

  /** In each worker, or in none. */
  async #attachShared(attach: VringAttach): Promise<void> {
    const { device, index, enabled } = attach;
    try {
      // Nobody writes before everybody has found the ring where it stands.
      const off = { ...attach, enabled: false };
      await this.#each((member) => member.attachVring(off));
      if (enabled) await this.#each((member) => member.enableVring(device, index, true));
    } catch (error) {
      await Promise.allSettled(this.#members.map((member) => member.detachVring(device, index)));
      throw error;
    }
  }

  /** No worker has it, and what it brings is counted no more. */
  #lose(entry: Entry): void {
    entry.lost = true;
    if (entry.slot !== 0) this.#freeSlots.push(entry.slot);
    entry.slot = entry.load = 0;
  }

  async detachVring(device: number, index: number): Promise<number> {
    const key = keyOf(device, index);
    const entry = this.#entries.get(key);
    if (entry === undefined) return await this.#members[0]!.detachVring(device, index);
    return await this.#serially(entry, async () => {
      this.#entries.delete(key);
      if (entry.slot !== 0) this.#freeSlots.push(entry.slot);
      if (entry.lost) return entry.attach.config.base;
      if (entry.member >= 0) return await this.#members[entry.member]!.detachVring(device, index);
      // The last to let go is the one who knows where the ring stands.
      const [first, ...others] = this.#members;
      const told = others.map((member) => member.detachVring(device, index));
      await Promise.allSettled(told); // if one failed, the first must let go all the same
      const base = await first!.detachVring(device, index);
      await Promise.all(told);
      return base;
    });
  }

  enableVring(device: number, index: number, enabled: boolean): Promise<void> {
    return this.#change(device, index, { enabled }, (member) =>
      member.enableVring(device, index, enabled),
    );
  }

  setCallFd(device: number, index: number, callFd: number): Promise<void> {
    return this.#change(device, index, { callFd }, (member) =>
      member.setCallFd(device, index, callFd),
    );
  }

  setErrFd(device: number, index: number, errFd: number): Promise<void> {
    return this.#change(device, index, { errFd }, (member) =>
      member.setErrFd(device, index, errFd),
    );
  }

  async resetDevice(device: number): Promise<void> {
    await this.#each((member) => member.resetDevice(device));
  }

  async updateIotlb(device: number, entry: IotlbUpdate): Promise<void> {
    await this.#each((member) => member.updateIotlb(device, entry));
  }

  async invalidateIotlb(device: number, iova: number, sizeBytes: number): Promise<void> {
    await this.#each((member) => member.invalidateIotlb(device, iova, sizeBytes));
  }

  async request<T>(op: string, payload: unknown): Promise<T> {
    const { still = false, ...rule } = this.#options.ruleOf(op);
    if (!still) return (await this.#carryOut(rule, op, payload)) as T;
    this.#asking++;
    await this.#moving;
    return (await this.#carryOut(rule, op, payload).finally(() => this.#asking--)) as T;
  }

  async #carryOut(rule: GroupRule, op: string, payload: unknown): Promise<unknown> {
    const { to, payload: payloadOf, merge, before, undo } = rule;
    const isOne = this.#members.length === 1;
    const states =
      before === undefined || isOne
        ? []
        : await this.#each((member) => member.request<unknown>(before, payload));
    const takers: GroupMember[] = [];
    const ask = async (member: GroupMember, at: number): Promise<unknown> => {
      const asked = payloadOf?.(payload as never, at, states) ?? payload;
      const result = await member.request(op, asked);
      takers.push(member);
      return result;
    };
    const first = (): Promise<unknown> => ask(this.#members[0]!, 0);
    const others = (): Promise<unknown[]> =>
      allOf(this.#members.slice(1).map((member, at) => ask(member, at + 1)));
    if (isOne || to === 'first') return await first();
    try {
      let results: unknown[];
      if (to === 'first-first') {
        const told = first();
        await told.catch(() => undefined);
        const rest = others();
        await rest.catch(() => undefined); // what the first one says comes first
        results = [await told, ...(await rest)];
      } else if (to === 'first-last') {
        const rest = await others();
        results = [await first(), ...rest];
      } else results = await this.#each(ask);
      return merge === undefined ? results[0] : merge(results as never[]);
    } catch (error) {
      if (undo !== undefined) {
        await Promise.allSettled(takers.map((member) => member.request(undo, payload)));
      }
      throw error;
    }
  }

  async close(): Promise<void> {
    this.#timer.close();
    this.#isEnding = true;
    await this.#moving;
    await this.#each((member) => member.close());
  }

  async #crashed(error: Error): Promise<void> {
    raiseLockAlarm(this.#alarm);
    if (this.#isEnding) return;
    this.#isEnding = true;
    this.#timer.close();
    const closed = this.#each((member) => member.close());
    await Promise.race([closed, sleep(CLOSE_MS, undefined, { ref: false })]);
    this.#options.onCrash(error);
  }

  /** Gives a ring to another worker; false where it is shared, gone, broken, or has an IOTLB. */
  async move(device: number, index: number, to: number): Promise<boolean> {
    const entry = this.#entries.get(keyOf(device, index));
    if (entry === undefined || entry.member < 0 || entry.attach.iotlb) return false;
    return await this.#serially(entry, async () => {
      if (this.#entries.get(keyOf(device, index)) !== entry || entry.lost) return false;
      if (entry.member === to) return false;
      const owner = entry.member;
      const from = this.#members[owner]!;
      const ring = { device, index };
      const resumed = await from.request<ResumedVring | null>('releaseVring', ring);
      if (resumed === null) return false;
      const config = { ...entry.attach.config, base: resumed.base };
      entry.attach = { ...entry.attach, config, resumed };
      entry.member = to;
      try {
        await this.#members[to]!.attachVring(entry.attach);
      } catch (error) {
        entry.member = owner; // who had it goes on where it stopped
        await this.#takeBack(entry, to, error as Error);
        throw error;
      }
      this.#moves[to]!.taken++;
      entry.refused = false;
      return true;
    });
  }

  async #takeBack(entry: Entry, to: number, cause: Error): Promise<void> {
    const { attach, member: from } = entry;
    this.#moves[to]!.refused++;
    entry.barred = REFUSED_PERIODS;
    await this.#members[from]!.attachVring(attach).catch(() => this.#lose(entry));
    const { refused, lost } = entry;
    entry.refused = true;
    const { device, index } = attach;
    if (!refused || lost) this.#options.onRefused({ device, index, from, to, cause, lost });
  }

  /**
   * Loads are read where the workers write them: nobody is woken for that. So many periods after
   * the last time; returns whether there was any load.
   */
  #balance(periods: number): boolean {
    const others = this.#members.map((_, member) => {
      const load = this.#loads[member]! - this.#ownCounted[member]!;
      this.#ownCounted[member] = this.#loads[member]!;
      return load;
    });
    const queues: (GroupQueue & { entry: Entry })[] = [];
    for (const entry of this.#entries.values()) {
      if (entry.member < 0 || entry.slot === 0) continue;
      const { device, index } = entry.attach;
      const counted = this.#loads[entry.slot]!;
      entry.load = counted - entry.counted;
      entry.counted = counted;
      entry.rest = Math.max(0, entry.rest - periods);
      const stays = entry.attach.iotlb || entry.lost || entry.barred > 0;
      entry.barred = Math.max(0, entry.barred - periods);
      if (stays) others[entry.member]! += entry.load;
      else queues.push({ device, index, member: entry.member, load: entry.load, entry });
    }
    const isBusy = others.some((load) => load > 0) || queues.some(({ load }) => load > 0);
    const isResting = queues.some(({ entry }) => entry.rest > 0);
    const move = isResting || this.#asking > 0 ? null : balance(queues, others);
    if (move === null) return isBusy;
    move.queue.entry.rest = REST_PERIODS;
    this.#moving = this.move(move.queue.device, move.queue.index, move.to).catch(() => undefined);
    return isBusy;
  }

  #leastLoaded(): number {
    const counts = this.#members.map(() => 0);
    for (const { member, lost } of this.#entries.values()) {
      if (member >= 0 && !lost) counts[member]!++;
    }
    return counts.indexOf(Math.min(...counts));
  }

  async #change(
    device: number,
    index: number,
    change: Partial<VringAttach>,
    tell: (member: GroupMember) => Promise<void>,
  ): Promise<void> {
    const entry = this.#entries.get(keyOf(device, index));
    if (entry === undefined) return await tell(this.#members[0]!);
    await this.#serially(entry, async () => {
      entry.attach = { ...entry.attach, ...change };
      if (entry.member >= 0) await tell(this.#members[entry.member]!);
      else await this.#each(tell);
    });
  }

  #serially<T>(entry: Entry, work: () => Promise<T>): Promise<T> {
    const done = entry.last.then(work, work);
    entry.last = done.catch(() => undefined);
    return done;
  }

  #each<T>(work: (member: GroupMember, at: number) => Promise<T>): Promise<T[]> {
    return allOf(this.#members.map(work));
  }

  #heard(event: PlaneEvent, from: number): void {
    if (event.kind !== 'driver-state') return this.#options.onEvent(event);
    const payload = { port: event.device, state: event.state };
    // A port that is removed meanwhile has no driver any more.
    const told = this.#members
      .filter((_, member) => member !== from)
      .map((other) => other.request('loadDriver', payload).catch(() => undefined));
    void Promise.all(told)
      .then(() => this.#members[from]!.request('driverHeard', { port: event.device }))
      .catch(() => undefined);
  }
}

/** When one fails, the others are waited for all the same: they may still use what it is about. */
async function allOf<T>(answers: readonly Promise<T>[]): Promise<T[]> {
  await Promise.allSettled(answers);
  return await Promise.all(answers);
}

function newRecord(): Int32Array {
  return new Int32Array(new SharedArrayBuffer(SHARED_RING_WORDS * 4));
}

function keyOf(device: number, index: number): string {
  return `${device}:${index}`;
}
