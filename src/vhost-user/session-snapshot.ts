/**
 * A session as something that another process can go on with: everything that messages have said,
 * as JSON, and the fds that came with them. A snapshot names fds by their place in `fds`; in the
 * process that made it they stay the session's, in the one that restores it they become the new
 * session's.
 */
import type { Fd } from '../sys/index.ts';
import type { SessionContext } from './backend-context.ts';
import type { Preread } from './connection.ts';
import { addressOf } from './dirty-log.ts';
import type { KeptRegion } from './memory-control.ts';
import type { SharedArea } from './session-area.ts';
import type { NotifierName } from './vring-control.ts';

/** Place in `fds`. */
export type FdIndex = number;
/** A bigint in JSON: `0x…`. */
type Hex = string;

export type InputState = { readonly bytes: string; readonly fds: readonly FdIndex[] };
export type AreaState = { readonly fd: FdIndex; readonly bytes: number; readonly offset: number };

export type RegionState = {
  readonly id: number;
  readonly gpa: Hex;
  readonly uva: Hex;
  readonly bytes: Hex;
  readonly offset: Hex;
  readonly fd: FdIndex;
  readonly again: number;
};

export type VringStateJson = {
  readonly size: number;
  readonly base: number | null;
  readonly saidBase: number | null;
  readonly addr: Readonly<Record<'desc' | 'avail' | 'used' | 'log', Hex>> | null;
  readonly addrFlags: number;
  readonly kicked: boolean;
  readonly enabled: boolean;
  readonly bigEndian: boolean;
  /** Null: none, or one of the session's own (in-band), which is made anew. */
  readonly kick: FdIndex | null;
  readonly call: FdIndex | null;
  readonly err: FdIndex | null;
  readonly inband: readonly ('kick' | NotifierName)[];
};

export type SessionSnapshotState = {
  readonly version: 1;
  readonly socket: FdIndex;
  /** What was read of a message that is not complete. */
  readonly input: InputState;
  readonly features: Hex | null;
  readonly protocolFeatures: Hex | null;
  readonly owned: boolean;
  readonly mtu: number | null;
  readonly status: number;
  readonly memory: readonly RegionState[];
  readonly vrings: readonly VringStateJson[];
  readonly log: AreaState | null;
  readonly logFd: FdIndex | null;
  readonly inflight: (AreaState & { readonly queues: number; readonly queueSize: number }) | null;
  readonly channel: {
    readonly fd: FdIndex;
    readonly unanswered: readonly number[];
    readonly input: InputState;
  } | null;
  /** By user address: the arena is another one there. */
  readonly iotlb: readonly {
    readonly iova: number;
    readonly bytes: number;
    readonly uva: number;
    readonly permissions: number;
  }[];
};

export type SessionSnapshot = {
  readonly state: SessionSnapshotState;
  readonly fds: readonly Fd[];
};

/** The memory of a session that still runs: a successor may map it beforehand. */
export type MemorySnapshot = {
  readonly memory: readonly RegionState[];
  readonly fds: readonly Fd[];
};

/** Numbers fds as they are mentioned. */
class FdList {
  readonly fds: Fd[] = [];

  add(fd: Fd): FdIndex {
    return this.fds.push(fd) - 1;
  }

  addOr(fd: Fd | null): FdIndex | null {
    return fd === null ? null : this.add(fd);
  }
}

const hex = (value: bigint | number): Hex => `0x${value.toString(16)}`;
const hexOr = (value: bigint | null): Hex | null => (value === null ? null : hex(value));

function inputState({ bytes, fds }: Preread, list: FdList): InputState {
  return { bytes: Buffer.from(bytes).toString('base64'), fds: fds.map((fd) => list.add(fd)) };
}

function areaState(area: SharedArea, list: FdList): AreaState {
  return { fd: list.add(area.fd), bytes: area.sizeBytes, offset: area.fdOffset };
}

function regionStates(regions: readonly KeptRegion[], list: FdList): RegionState[] {
  return regions.map(({ id, region, fd, again }) => ({
    id,
    gpa: hex(region.guestPhysAddr),
    uva: hex(region.userAddr),
    bytes: hex(region.sizeBytes),
    offset: hex(region.fdOffset),
    fd: list.add(fd),
    again,
  }));
}

export function memorySnapshot(context: SessionContext): MemorySnapshot {
  const list = new FdList();
  return { memory: regionStates(context.memory.regions, list), fds: list.fds };
}

/** Of a session that is suspended: no ring runs, no message is under way. */
export function sessionSnapshot(
  context: SessionContext,
  socket: Fd,
  input: Preread,
): SessionSnapshot {
  const list = new FdList();
  const { vrings, requests, memory, logFd } = context;
  const { log, inflight, maps } = vrings.around;
  const channel = requests.channel;
  const said = channel?.suspend();
  const map = context.iotlb.iotlb.snapshot();
  const state: SessionSnapshotState = {
    version: 1,
    socket: list.add(socket),
    input: inputState(input, list),
    features: hexOr(context.features),
    protocolFeatures: hexOr(context.protocolFeatures),
    owned: context.owned,
    mtu: context.mtu,
    status: context.target.getStatus(),
    memory: regionStates(memory.regions, list),
    vrings: vrings.all.map(({ addr, fds, own, ...vring }) => ({
      size: vring.size,
      base: vring.base,
      saidBase: vring.saidBase,
      addr: addr && {
        desc: hex(addr.descUva),
        avail: hex(addr.availUva),
        used: hex(addr.usedUva),
        log: hex(addr.logGpa),
      },
      addrFlags: addr?.flags ?? 0,
      kicked: vring.kicked,
      enabled: vring.enabled,
      bigEndian: vring.bigEndian,
      kick: own.has('kick') ? null : list.addOr(fds.kick),
      call: own.has('call') ? null : list.addOr(fds.call),
      err: own.has('err') ? null : list.addOr(fds.err),
      inband: [...own],
    })),
    log: log && areaState(log, list),
    logFd: list.addOr(logFd),
    inflight: inflight && {
      ...areaState(inflight.area, list),
      queues: inflight.shape.queueCount,
      queueSize: inflight.shape.queueSize,
    },
    channel:
      channel === null || said === undefined
        ? null
        : {
            fd: list.add(channel.socket),
            unanswered: said.unanswered,
            input: inputState(said.preread, list),
          },
    iotlb: Array.from({ length: map.count }, (_, i) => ({
      iova: map.start[i]!,
      bytes: map.end[i]! - map.start[i]!,
      uva: maps === null ? -1 : addressOf(maps.uva, map.start[i]! + map.delta[i]!),
      permissions: map.permission![i]!,
    })),
  };
  return { state, fds: list.fds };
}
