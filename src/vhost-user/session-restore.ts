/**
 * Going on with a session that another process has suspended: see session-snapshot.ts. What a
 * snapshot names is mapped anew, and the target hears what its predecessor heard.
 */
import { VringError } from '../base/errors.ts';
import { SharedRegion, translate } from '../memory/index.ts';
import type { Fd } from '../sys/index.ts';
import { protocolFeatureNames, VHOST_F_LOG_ALL, type VringAddr } from '../wire/vhost-user.ts';
import { hasFeature } from '../wire/virtio.ts';
import type { SessionContext } from './backend-context.ts';
import type { Preread } from './connection.ts';
import { InflightRegion } from './inflight-region.ts';
import type { KeptRegion } from './memory-control.ts';
import { SESSION_FEATURES } from './offered-features.ts';
import { SharedArea } from './session-area.ts';
import type {
  AreaState,
  FdIndex,
  InputState,
  MemorySnapshot,
  RegionState,
  SessionSnapshotState,
  VringStateJson,
} from './session-snapshot.ts';
import type { NotifierName } from './vring-control.ts';

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
    throw badSnapshot(`virtio features 0x${lost.toString(16)} were acked and are not offered`);
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
