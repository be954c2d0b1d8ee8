/**
 * What the back-end does for each message of negotiation, memory and vrings; device-handlers.ts
 * and migration-handlers.ts have the others. The payload was parsed, its fds counted and its
 * features checked before; what is left is meaning.
 *
 * A handler returns the payload of its reply, nothing, or a ProtocolError: "refused, but no harm
 * done". A ProtocolError that is thrown ends the session unless the front-end asked for a reply.
 */
import { MAX_MEM_SLOTS, MAX_RING_SIZE } from '../base/limits.ts';
import { ProtocolError, VringError } from '../base/errors.ts';
import {
  type Fd,
  fdTarget,
  setNonblocking,
  signalEventfd,
  signalForeignEventfd,
} from '../sys/index.ts';
import type { VringFd } from '../wire/vhost-user-parse.ts';
import {
  MemoryRegion,
  MemoryTableHeader,
  protocolFeatureNames,
  SingleMemoryRegion,
  U64Payload,
  VHOST_F_LOG_ALL,
  VHOST_USER_F_PROTOCOL_FEATURES,
  type VringAddr,
  VringState,
} from '../wire/vhost-user.ts';
import { featureNames, hasFeature } from '../wire/virtio.ts';
import type { SessionContext } from './backend-context.ts';
import { SESSION_FEATURES } from './offered-features.ts';
import { checkLogFlag } from './ring-start.ts';

/** The message at hand. */
export type Incoming<T> = {
  readonly request: string;
  readonly value: T;
  /** A handler takes out what it keeps; the rest is closed when it is done. */
  readonly fds: Fd[];
};

/** A reply with more than a payload. */
export type Reply = {
  readonly payload: Uint8Array;
  /** Sent with it and closed afterwards. */
  readonly fds?: readonly Fd[];
  /** What the payload says in numbers only: counted and shown as a refusal. */
  readonly refusal?: ProtocolError;
};

export type HandlerResult = Uint8Array | Reply | ProtocolError | void;
export type Handler<T> = (
  session: SessionContext,
  message: Incoming<T>,
) => HandlerResult | Promise<HandlerResult>;

export function u64Reply(value: bigint | number): Uint8Array {
  return U64Payload.encode({ value: BigInt(value) });
}

function checkOffered(request: string, acked: bigint, offered: bigint, names: string): void {
  const extra = acked & ~offered;
  if (extra === 0n) return;
  const problem =
    `0x${acked.toString(16)} acks 0x${extra.toString(16)}${names}, ` +
    `which was not offered (0x${offered.toString(16)})`;
  throw new ProtocolError('ERR_VRING_FEATURES', request, 'u64', problem);
}

/* Negotiation */

export const getFeatures: Handler<null> = ({ offeredFeatures }) => u64Reply(offeredFeatures);

/**
 * May come again while rings run (QEMU sends it for every queue pair): only a change stops and
 * restarts them. Without bit 30 all rings are enabled; no ring is ever disabled here.
 */
export const setFeatures: Handler<bigint> = async (session, { request, value }) => {
  const { target, vrings } = session;
  const names = featureNames(value & ~session.offeredFeatures, target.deviceId ?? 0);
  checkOffered(request, value, session.offeredFeatures, ` (${names.join(', ')})`);
  session.features = value;
  const features = value & ~SESSION_FEATURES;
  const logging = hasFeature(value, VHOST_F_LOG_ALL);
  const { around } = vrings;
  if (features !== around.features || logging !== around.logging) {
    await vrings.withAllStopped(false, async () => {
      around.logging = logging;
      if (features === around.features) return;
      around.features = features;
      await target.setFeatures(features);
    });
  }
  if (!hasFeature(value, VHOST_USER_F_PROTOCOL_FEATURES)) await vrings.setAllEnabled(true);
};

export const getProtocolFeatures: Handler<null> = ({ offeredProtocolFeatures }) =>
  u64Reply(offeredProtocolFeatures);

export const setProtocolFeatures: Handler<bigint> = async (session, { request, value }) => {
  const names = protocolFeatureNames(value & ~session.offeredProtocolFeatures);
  checkOffered(request, value, session.offeredProtocolFeatures, ` (${names.join(', ')})`);
  session.setProtocolFeatures(value);
  await session.target.setProtocolFeatures(value);
};

export const setOwner: Handler<null> = (session) => {
  session.owned = true;
};

/** Deprecated. "Either ignore this message, or use it to disable all rings": we disable. */
export const resetOwner: Handler<null> = async (session) => {
  session.owned = false;
  await session.vrings.setAllEnabled(false);
};

export const getQueueNum: Handler<null> = ({ target }) =>
  u64Reply(target.queueNum ?? target.queueCount);

/* Memory */

/** While postcopy listens it is answered: the same, with addresses in this process. */
export const setMemTable: Handler<readonly MemoryRegion[]> = async (
  { memory },
  { request, value, fds },
) => {
  const told = await memory.replace(request, value, fds);
  if (told === null) return;
  const head = MemoryTableHeader.encode({ count: told.length, padding: 0 });
  return Buffer.concat([head, ...told.map((region) => MemoryRegion.encode(region))]);
};

export const getMaxMemSlots: Handler<null> = () => u64Reply(MAX_MEM_SLOTS);

export const addMemReg: Handler<MemoryRegion> = async ({ memory }, { request, value, fds }) => {
  const told = await memory.add(request, value, fds);
  if (told !== null) return SingleMemoryRegion.encode({ padding: 0n, ...told });
};

export const remMemReg: Handler<MemoryRegion> = ({ memory }, { request, value }) =>
  memory.remove(request, value);

/* Vrings */

export const setVringNum: Handler<VringState> = async (session, { request, value }) => {
  const { target, vrings } = session;
  const vring = vrings.at(request, value.index);
  const max = target.queueSizeMax ?? MAX_RING_SIZE;
  if (value.num > max) {
    const problem = `ring size ${value.num}, this device takes at most ${max}`;
    throw new ProtocolError('ERR_VRING_RING_SIZE', request, 'num', problem);
  }
  if (vring.size === value.num) return;
  await vrings.change(vring, (v) => (v.size = value.num));
};

export const setVringAddr: Handler<VringAddr> = async ({ vrings }, { request, value }) => {
  const vring = vrings.at(request, value.index);
  checkLogFlag(request, value, vrings.around.logging);
  await vrings.setAddr(vring, value);
};

/** What the number means depends on the ring's format; it is judged when the ring starts. */
export const setVringBase: Handler<VringState> = async ({ vrings }, { request, value }) => {
  await vrings.setBase(vrings.at(request, value.index), value.num);
};

export const getVringBase: Handler<VringState> = async (session, { request, value }) => {
  const { vrings, iotlb, target } = session;
  const vring = vrings.at(request, value.index);
  const num = await vrings.stop(vring);
  if (vrings.areAllStopped && iotlb.iotlb.count > 0) {
    // QEMU does not tell what its guest unmaps while no ring runs: a guest that rebooted has other
    // pages under the same addresses. Everything is asked for again.
    const { iova, sizeBytes } = iotlb.clear();
    await target.invalidateIotlb?.(iova, sizeBytes);
  }
  return VringState.encode({ index: value.index, num });
};

/**
 * Only eventfds: what else a front-end may have cannot be waited for (a file, /dev/null, O_PATH),
 * or does more than count when it is written to.
 * @throws ProtocolError ERR_VRING_MESSAGE_FDS
 */
export function takeEventFd(request: string, fds: Fd[]): Fd | null {
  const fd = fds[0];
  if (fd === undefined) return null;
  const what = fdTarget(fd.number);
  if (what !== 'anon_inode:[eventfd]') {
    const problem = `the fd is ${what}, expected an eventfd`;
    throw new ProtocolError('ERR_VRING_MESSAGE_FDS', request, 'fds', problem);
  }
  setNonblocking(fd.number, true); // a full or empty counter must never hold a thread of ours
  fds.shift();
  return fd;
}

export const setVringKick: Handler<VringFd> = async ({ vrings }, { request, value, fds }) => {
  const vring = vrings.at(request, value.index);
  await vrings.setKick(vring, takeEventFd(request, fds));
};

export const setVringCall: Handler<VringFd> = async ({ vrings }, { request, value, fds }) => {
  const vring = vrings.at(request, value.index);
  await vrings.setNotifier(vring, 'call', takeEventFd(request, fds));
};

export const setVringErr: Handler<VringFd> = async ({ vrings }, { request, value, fds }) => {
  const vring = vrings.at(request, value.index);
  await vrings.setNotifier(vring, 'err', takeEventFd(request, fds));
};

/** Legal before SET_FEATURES (QEMU does so) and for every ring, with or without MQ. */
export const setVringEnable: Handler<{ index: number; enabled: boolean }> = async (
  { vrings },
  { request, value },
) => {
  await vrings.setEnabled(vrings.at(request, value.index), value.enabled);
};

export const setVringEndian: Handler<{ index: number; bigEndian: boolean }> = async (
  { vrings },
  { request, value },
) => {
  const vring = vrings.at(request, value.index);
  if (vring.bigEndian === value.bigEndian) return;
  await vrings.change(vring, (v) => (v.bigEndian = value.bigEndian));
};

/**
 * In-band: the eventfd is the session's own. SET_VRING_KICK, CALL and ERR are not necessary then:
 * what was never set is in-band, and this kick starts the ring. A polled ring needs no kick. An
 * eventfd of the front-end's is signalled for it, and must not hold this thread.
 */
export const vringKick: Handler<number> = async ({ vrings }, { request, value }) => {
  const vring = vrings.at(request, value);
  if (!vring.kicked) {
    for (const which of ['call', 'err'] as const) {
      if (vring.fds[which] === null) await vrings.setNotifier(vring, which, null);
    }
    await vrings.setKick(vring, null);
  }
  const { kick } = vring.fds;
  if (kick === null) return;
  if (vring.own.has('kick')) signalEventfd(kick.number);
  else if (!signalForeignEventfd(kick.number)) {
    const text = `${request}: the front-end made the kick eventfd of vring ${value} block us`;
    throw new VringError('ERR_VRING_NOTIFY_BLOCKED', text, { recovery: 'reconnect' });
  }
};
