/**
 * The data-plane workers of a switch: a group that looks like one. Who of them carries out what is
 * asked of a switch, and what the answers of several come to.
 */
import type {
  AttachUplink,
  LoadNetState,
  NetPlaneOptions,
  NetPortStatus,
} from '../devices/net/index.ts';
import { NET_PLANE_MODULE, NetDevice, PARKED_FRAMES_BYTES } from '../devices/net/index.ts';
import { PrivateMemory } from '../memory/index.ts';
import {
  DataPlaneWorker,
  type GroupRule,
  LOADS_BYTES,
  type MemberContext,
  type PlaneEvent,
  type RefusedMove,
  type VringAttach,
  WorkerGroup,
} from '../runtime/index.ts';
import {
  COUNTER_COLUMNS,
  COUNTERS_BYTES,
  readCounters,
  SWITCH_SCRATCH_BYTES,
} from '../switch/index.ts';
import { TAP_SCRATCH_BYTES } from '../uplinks/index.ts';
import type { WorkerStatus } from './switch-types.ts';

export type SwitchWorkersOptions = {
  readonly count: number;
  readonly macTable: SharedArrayBuffer;
  readonly spinMs: number;
  /** Where each worker runs; null: anywhere. */
  readonly cores?: readonly number[] | null;
  /** Queue pairs of a port, which say where its control queue is. */
  queuePairsOf(port: number): number;
  onEvent(event: PlaneEvent): void;
  onRefused(refused: RefusedMove): void;
  onCrash(error: Error): void;
};

/** How often queues are looked at for one that another worker should have, milliseconds. */
const BALANCE_MS = 1000;

/** Memory of a port that each worker needs for itself, one behind the other. */
type AddPort = { readonly parkedAt?: number; readonly scratchAt?: number };

export class SwitchWorkers {
  readonly group: WorkerGroup;
  readonly #options: SwitchWorkersOptions;
  readonly #counters: readonly Float64Array<SharedArrayBuffer>[];
  readonly #scratch: PrivateMemory;

  constructor(options: SwitchWorkersOptions) {
    this.#options = options;
    const { count } = options;
    this.#counters = Array.from(
      { length: count },
      () => new Float64Array(new SharedArrayBuffer(COUNTERS_BYTES)),
    );
    this.#scratch = PrivateMemory.allocate(count * SWITCH_SCRATCH_BYTES);
    const loads = new SharedArrayBuffer(LOADS_BYTES);
    this.group = new WorkerGroup({
      count,
      start: (member, context) => this.#start(member, loads, context),
      isShared: (vring) => this.#isShared(vring),
      ruleOf: (op) => this.#rules[op] ?? EACH,
      onEvent: (event) => options.onEvent(event),
      onRefused: (refused) => options.onRefused(refused),
      onCrash: (error) => options.onCrash(error),
      loads,
      balanceMs: BALANCE_MS,
    });
  }

  /** What the switches of all workers count of a port. */
  counters(port: number): ReturnType<typeof readCounters> {
    const [first, ...others] = this.#counters.map((cells) => readCounters(cells, port));
    for (const other of others) addTo(first!, other);
    return first!;
  }

  async status(nameOf: (port: number) => string): Promise<WorkerStatus[]> {
    const queues = this.group.queues();
    const moves = this.group.moves();
    return (await this.group.counters()).map((counters, id) => ({
      id,
      ...counters,
      core: this.#options.cores?.[id] ?? null,
      queuesTaken: moves[id]!.taken,
      queuesRefused: moves[id]!.refused,
      queues: queues
        .filter(({ member }) => member === id)
        .map(({ device, index, load }) => {
          return { port: nameOf(device), index, chainsPerSecond: load };
        }),
    }));
  }

  clearCounters(port: number): void {
    for (const cells of this.#counters) {
      cells.fill(0, port * COUNTER_COLUMNS, (port + 1) * COUNTER_COLUMNS);
    }
  }

  async close(): Promise<void> {
    await this.group.close();
    this.#scratch.close();
  }

  #start(member: number, loads: SharedArrayBuffer, context: MemberContext) {
    const { macTable, spinMs, count, cores = null } = this.#options;
    return new DataPlaneWorker({
      name: `vring-plane-${member}`,
      planeModule: NET_PLANE_MODULE,
      planeOptions: {
        macTable,
        counters: this.#counters[member]!.buffer,
        scratchAt: this.#scratch.offset + member * SWITCH_SCRATCH_BYTES,
        worker: member,
        workers: count,
        loads,
      } satisfies NetPlaneOptions,
      spinMs,
      core: cores?.[member] ?? null,
      ...context,
    });
  }

  /** A receive queue: one of even index that is not the control queue of that driver. */
  #isShared({ device, index, features }: VringAttach): boolean {
    const pairs = this.#options.queuePairsOf(device);
    return index % 2 === 0 && index !== NetDevice.controlQueueIndex(features, pairs);
  }

  /**
   * The first worker's part of what a predecessor counted is what the others did not count: a port
   * that its guest left and comes back to has all its counters still.
   */
  #partOf(load: LoadNetState, member: number, states: readonly unknown[]): LoadNetState {
    const { port, state, switchCounters } = load;
    if (member > 0) return { ...load, state: { ...state, counters: {} }, switchCounters: {} };
    const others = this.#counters.slice(1).map((cells) => readCounters(cells, port));
    const saved = states.slice(1).map((other) => (other as { counters: Counted }).counters);
    return {
      ...load,
      state: { ...state, counters: restOf(state.counters, saved) },
      switchCounters: restOf(switchCounters, others),
    };
  }

  readonly #rules: Readonly<Record<string, GroupRule>> = {
    addNetPort: {
      to: 'each',
      payload: (add: AddPort, member) => shifted(add, 'parkedAt', member * PARKED_FRAMES_BYTES),
      undo: 'removePort',
    },
    // Its frames come to the first worker alone, which knows it last and forgets it first.
    addTapPort: {
      to: 'first-last',
      payload: (add: AddPort, member) => ({
        ...shifted(add, 'scratchAt', member * TAP_SCRATCH_BYTES),
        transmitOnly: member > 0,
      }),
      undo: 'removePort',
    },
    addUplinkPort: { to: 'each', undo: 'removePort' },
    // Each worker has sockets of its own; who asked detaches all when one refuses.
    attachUplink: {
      to: 'each',
      payload: (attach: AttachUplink, member) => ({
        ...attach,
        queues: ownOf<AttachUplink['queues'][number]>(attach.queues, member, this.#options.count),
      }),
    },
    removePort: { to: 'first-first' },
    portStatus: { to: 'each', still: true, merge: mergeStatus },
    saveState: { to: 'each', merge: mergeStates },
    loadState: {
      to: 'each',
      before: 'saveState',
      payload: (load: LoadNetState, member, states) => this.#partOf(load, member, states),
    },
    loadUplinkCounters: { to: 'first' },
    // Of the switch as a whole, whose table is one.
    macClock: { to: 'first' },
    flushMacs: { to: 'first' },
    learnMacs: { to: 'first' },
    announce: { to: 'first' },
  };
}

const EACH: GroupRule = { to: 'each' };

type Counted = Readonly<Record<string, number>>;

/** What people are told of a queue that its new worker could not take. */
export function refusalOf({ index, from, to, cause, lost }: RefusedMove): string {
  const where = lost
    ? `nor could worker ${from} take it back: it stands still until its driver sets it up again`
    : `it goes on at worker ${from}`;
  return `worker ${to} could not take queue ${index}: ${cause.message}; ${where}`;
}

function shifted(add: AddPort, field: keyof AddPort, bytes: number): AddPort {
  const at = add[field] ?? -1;
  return at < 0 ? add : { ...add, [field]: at + bytes };
}

function restOf(counted: Counted, others: readonly Counted[]): Record<string, number> {
  const rest = { ...counted };
  for (const other of others) {
    for (const [name, value] of Object.entries(other)) if (name in rest) rest[name]! -= value;
  }
  return rest;
}

/** Every n-th: a worker's own among the sockets of an uplink, the first of which it sends by. */
function ownOf<Place>(places: readonly Place[], member: number, count: number): Place[] {
  return places.filter((_, at) => at % count === member);
}

function addTo(sum: Record<string, number>, more: Counted): void {
  for (const [name, value] of Object.entries(more)) sum[name] = (sum[name] ?? 0) + value;
}

function mergeStatus(all: readonly NetPortStatus[]): NetPortStatus {
  const counters: Record<string, number> = {};
  const vrings = new Map<number, NetPortStatus['vrings'][number]>();
  for (const status of all) {
    addTo(counters, status.counters);
    for (const vring of status.vrings) {
      const known = vrings.get(vring.index);
      if (known === undefined) {
        vrings.set(vring.index, { ...vring, counters: { ...vring.counters } });
        continue;
      }
      // A kick is heard by every worker that has the ring, and was one all the same.
      const kicks = Math.max(known.counters.kicks ?? 0, vring.counters.kicks ?? 0);
      addTo(known.counters, vring.counters);
      known.counters.kicks = kicks;
      known.started ||= vring.started;
    }
  }
  return { counters, vrings: [...vrings.values()].sort((a, b) => a.index - b.index) };
}

function mergeStates(
  all: readonly { readonly counters: Record<string, number> }[],
): Record<string, unknown> {
  const counters: Record<string, number> = {};
  for (const state of all) addTo(counters, state.counters);
  return { ...all[0]!, counters };
}
