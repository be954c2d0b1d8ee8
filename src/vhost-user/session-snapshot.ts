/**
 * A session as something that another process can go on with: everything that messages have said,
 * as JSON, and the fds that came with them. A snapshot names fds by their place in `fds`; in the
 * process that made it they stay the session's, in the one that restores it they become the new
 * session's.
 */
import { VringError } from '../base/errors.ts';
import { SharedRegion, translate } from '../memory/index.ts';
import type { Fd } from '../sys/index.ts';
import { protocolFeatureNames, VHOST_F_LOG_ALL, type VringAddr } from '../wire/vhost-user.ts';
import { hasFeature } from '../wire/virtio.ts';
import type { SessionContext } from './backend-context.ts';
import type { Preread } from './connection.ts';
import { addressOf } from './dirty-log.ts';
import { InflightRegion } from './inflight-region.ts';
import type { KeptRegion } from './memory-control.ts';
import { SESSION_FEATURES } from './offered-features.ts';
import { SharedArea } from './session-area.ts';
import type { NotifierName } from './vring-control.ts';

/** Place in `fds`. */
type FdIndex = number;
/** A bigint in JSON: `0x…`. */
type Hex = string;

type InputState = { readonly bytes: string; readonly fds: readonly FdIndex[] };
type AreaState = { readonly fd: FdIndex; readonly bytes: number; readonly offset: number };

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

/** fds that were received with a snapshot: each is taken once, the rest is closed. */
export class ReceivedFds {
  readonly #fds: (Fd | null)[];

  constructor(fds: readonly Fd[]) {
    this.#fds = [...fds];
  }

  /** @throws VringError ERR_VRING_SNAPSHOT. */
  take(index: FdIndex): Fd {
    const fd = this.#fds[index] ?? null;
    if (fd === null) throw badSnapshot(`fd ${index} is missing, or named twice`);
    this.#fds[index] = null;
    return fd;
  }

  takeOr(index: FdIndex | null): Fd | null {
    return index === null ? null : this.take(index);
  }

  /** Idempotent. */
  closeRest(): void {
    for (const fd of this.#fds.splice(0)) fd?.close();
  }
}

function badSnapshot(problem: string): VringError {
  return new VringError('ERR_VRING_SNAPSHOT', `the session cannot be taken over: ${problem}`);
}

/** Memory that was mapped before the session came. Owns what nobody took. */
export class PreparedMemory {
  readonly #regions = new Map<number, KeptRegion>();

  /** Takes the fds over. Regions that cannot be mapped are left out: they are tried once more. */
  static map({ memory, fds }: MemorySnapshot): PreparedMemory {
    const prepared = new PreparedMemory();
    const received = new ReceivedFds(fds);
    try {
      for (const state of memory) {
        const fd = received.take(state.fd);
        try {
          prepared.#regions.set(state.id, mapRegion(state, fd));
        } catch {
          fd.close();
        }
      }
    } finally {
      received.closeRest();
    }
    return prepared;
  }

  /** The region, which is the caller's then; null: it was not prepared. */
  take(id: number): KeptRegion | null {
    const found = this.#regions.get(id) ?? null;
    this.#regions.delete(id);
    return found;
  }

  /** Idempotent. */
  close(): void {
    for (const { region, fd } of this.#regions.values()) {
      region.close();
      fd.close();
    }
    this.#regions.clear();
  }
}

function mapRegion(state: RegionState, fd: Fd): KeptRegion {
  const region = SharedRegion.map(fd.number, {
    guestPhysAddr: BigInt(state.gpa),
    userAddr: BigInt(state.uva),
    sizeBytes: BigInt(state.bytes),
    fdOffset: BigInt(state.offset),
  });
  return { id: state.id, region, fd, again: state.again };
}

export function prereadOf({ bytes, fds }: InputState, received: ReceivedFds): Preread {
  return { bytes: Buffer.from(bytes, 'base64'), fds: fds.map((index) => received.take(index)) };
}

/** @throws VringError ERR_VRING_SNAPSHOT: this device is not what the front-end was promised. */
function checkPromises(context: SessionContext, state: SessionSnapshotState): void {
  if (state.version !== 1) throw badSnapshot(`version ${String(state.version)}, expected 1`);
  const lost = BigInt(state.features ?? 0) & ~context.offeredFeatures;
  if (lost !== 0n) {
    throw badSnapshot(`virtio features ${hex(lost)} were acked and are not offered`);
  }
  const lostProtocol = BigInt(state.protocolFeatures ?? 0) & ~context.offeredProtocolFeatures;
  if (lostProtocol !== 0n) {
    const names = protocolFeatureNames(lostProtocol).join(', ');
    throw badSnapshot(`protocol features ${names} were acked and are not offered`);
  }
  if (state.vrings.length > context.target.queueCount) {
    const { queueCount } = context.target;
    throw badSnapshot(`it has ${state.vrings.length} vrings, this device ${queueCount}`);
  }
}

/**
 * Makes a fresh context what the snapshot says, up to the rings, which are complete and not
 * started. What it took is the context's, whatever happens.
 * @throws VringError ERR_VRING_SNAPSHOT; ProtocolError of a part that cannot be restored.
 */
export async function restoreContext(
  context: SessionContext,
  state: SessionSnapshotState,
  received: ReceivedFds,
  prepared: PreparedMemory | null,
): Promise<void> {
  checkPromises(context, state);
  const { target, vrings, memory, requests, iotlb } = context;
  const { around } = vrings;
  if (state.protocolFeatures !== null) {
    context.setProtocolFeatures(BigInt(state.protocolFeatures));
    await target.setProtocolFeatures(BigInt(state.protocolFeatures));
  }
  if (state.features !== null) {
    context.features = BigInt(state.features);
    around.features = context.features & ~SESSION_FEATURES;
    around.logging = hasFeature(context.features, VHOST_F_LOG_ALL);
    await target.setFeatures(around.features);
  }
  context.owned = state.owned;
  context.mtu = state.mtu;
  if (state.mtu !== null) target.setMtu(state.mtu);
  const area = (name: string, { fd, bytes, offset }: AreaState): SharedArea => {
    const taken = received.take(fd);
    try {
      return SharedArea.map('snapshot', name, taken, BigInt(bytes), BigInt(offset));
    } catch (error) {
      taken.close();
      throw error;
    }
  };
  if (state.log !== null) around.log = area('log', state.log);
  context.logFd = received.takeOr(state.logFd);
  if (state.inflight !== null) {
    const { queues: queueCount, queueSize } = state.inflight;
    const shape = { queueCount, queueSize };
    around.inflight = new InflightRegion(area('inflight', state.inflight), shape);
  }
  if (state.memory.length > 0) await memory.adopt(takeRegions(state, received, prepared));
  for (const entry of state.iotlb) {
    const uva = around.maps?.uva;
    const offset = uva === undefined || entry.uva < 0 ? -1 : translate(uva, entry.uva, entry.bytes);
    if (offset < 0) continue; // it will be missed
    const { iova, bytes: sizeBytes, permissions } = entry;
    iotlb.iotlb.update({ iova, sizeBytes, offset, permissions });
    await target.updateIotlb?.({ iova, sizeBytes, offset, permissions });
  }
  await restoreVrings(context, state, received);
  if (state.channel !== null) {
    const { fd, unanswered, input } = state.channel;
    const preread = prereadOf(input, received);
    requests.open({ socket: received.take(fd), state: { unanswered }, preread });
  }
  await target.setStatus(state.status);
}

function takeRegions(
  state: SessionSnapshotState,
  received: ReceivedFds,
  prepared: PreparedMemory | null,
): KeptRegion[] {
  const regions: KeptRegion[] = [];
  try {
    for (const each of state.memory) {
      const ready = prepared?.take(each.id) ?? null;
      if (ready !== null) {
        ready.again = each.again;
        regions.push(ready); // the fd came twice; the second one is closed with the rest
        continue;
      }
      const fd = received.take(each.fd);
      try {
        regions.push(mapRegion(each, fd));
      } catch (error) {
        fd.close();
        throw error;
      }
    }
    return regions;
  } catch (error) {
    for (const { region, fd } of regions) {
      region.close();
      fd.close();
    }
    throw error;
  }
}

async function restoreVrings(
  { vrings }: SessionContext,
  state: SessionSnapshotState,
  received: ReceivedFds,
): Promise<void> {
  for (const [index, each] of state.vrings.entries()) {
    const vring = vrings.all[index]!;
    const { size, base, saidBase, bigEndian, addr } = each;
    Object.assign(vring, { size, base, saidBase, bigEndian });
    vring.addr = addr === null ? null : addrOf(index, each.addrFlags, addr);
    const fdOf = (which: 'kick' | NotifierName): Fd | null => received.takeOr(each[which]);
    if (each.kicked) vrings.adoptKick(vring, fdOf('kick'), each.inband.includes('kick'));
    for (const which of ['call', 'err'] as const) {
      vrings.adoptNotifier(vring, which, fdOf(which), each.inband.includes(which));
    }
    await vrings.setEnabled(vring, each.enabled);
  }
}

function addrOf(
  index: number,
  flags: number,
  addr: NonNullable<VringStateJson['addr']>,
): VringAddr {
  return {
    index,
    flags,
    descUva: BigInt(addr.desc),
    availUva: BigInt(addr.avail),
    usedUva: BigInt(addr.used),
    logGpa: BigInt(addr.log),
  };
}
