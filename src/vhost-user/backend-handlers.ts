/**
 * What the back-end does for each message. The payload was parsed, its fds counted and its
 * features checked before; what is left is meaning.
 *
 * A handler returns the payload of its reply, nothing, or a ProtocolError: "refused, but no harm
 * done". A ProtocolError that is thrown ends the session unless the front-end asked for a reply.
 */
import { MAX_MEM_SLOTS, MAX_RING_SIZE } from '../base/limits.ts';
import { ProtocolError } from '../base/errors.ts';
import { type Fd, fdTarget, setNonblocking } from '../sys/index.ts';
import type { ConfigAccess, VringFd } from '../wire/vhost-user-parse.ts';
import {
  ConfigHeader,
  type MemoryRegion,
  protocolFeatureNames,
  U64Payload,
  VHOST_F_LOG_ALL,
  VHOST_USER_F_PROTOCOL_FEATURES,
  VHOST_VRING_F_LOG,
  type VringAddr,
  VringState,
} from '../wire/vhost-user.ts';
import type { MemoryControl } from './memory-control.ts';
import type { ProtocolState } from './state-rules.ts';
import type { BackendTarget } from './target.ts';
import type { VringControl } from './vring-control.ts';

/** What handlers may touch of a session. */
export type SessionContext = ProtocolState & {
  readonly target: BackendTarget;
  readonly vrings: VringControl;
  readonly memory: MemoryControl;
  /** What GET_PROTOCOL_FEATURES answers. */
  readonly offeredProtocolFeatures: bigint;
  /** As the front-end sent it, bit 30 included; null before. */
  features: bigint | null;
  protocolFeatures: bigint | null;
  owned: boolean;
  mtu: number | null;
  postcopy: ProtocolState['postcopy'];
  stateTransfer: boolean;
};

/** The message at hand. */
export type Incoming<T> = {
  readonly request: string;
  readonly value: T;
  /** A handler takes out what it keeps; the rest is closed when it is done. */
  readonly fds: Fd[];
};

export type HandlerResult = Uint8Array | ProtocolError | void;
export type Handler<T> = (
  session: SessionContext,
  message: Incoming<T>,
) => HandlerResult | Promise<HandlerResult>;

const F_PROTOCOL_FEATURES = 1n << BigInt(VHOST_USER_F_PROTOCOL_FEATURES);

function u64Reply(value: bigint | number): Uint8Array {
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

export const getFeatures: Handler<null> = ({ target }) =>
  u64Reply(target.features | F_PROTOCOL_FEATURES);

/**
 * May come again while rings run (QEMU sends it for every queue pair): only a change stops and
 * restarts them. Without bit 30 all rings are enabled; no ring is ever disabled here.
 */
export const setFeatures: Handler<bigint> = async (session, { request, value }) => {
  const { target, vrings } = session;
  checkOffered(request, value, target.features | F_PROTOCOL_FEATURES, '');
  session.features = value;
  const features = value & ~F_PROTOCOL_FEATURES;
  if (features !== vrings.features) {
    await vrings.withAllStopped(false, async () => {
      vrings.features = features;
      await target.setFeatures(features);
    });
  }
  if ((value & F_PROTOCOL_FEATURES) === 0n) await vrings.setAllEnabled(true);
};

export const getProtocolFeatures: Handler<null> = ({ offeredProtocolFeatures }) =>
  u64Reply(offeredProtocolFeatures);

export const setProtocolFeatures: Handler<bigint> = async (session, { request, value }) => {
  const names = protocolFeatureNames(value & ~session.offeredProtocolFeatures);
  checkOffered(request, value, session.offeredProtocolFeatures, ` (${names.join(', ')})`);
  session.protocolFeatures = value;
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

export const setMemTable: Handler<readonly MemoryRegion[]> = (
  { memory },
  { request, value, fds },
) => memory.replace(request, value, fds);

export const getMaxMemSlots: Handler<null> = () => u64Reply(MAX_MEM_SLOTS);

export const addMemReg: Handler<MemoryRegion> = ({ memory }, { request, value, fds }) =>
  memory.add(request, value, fds[0]!);

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

export const setVringAddr: Handler<VringAddr> = async (session, { request, value }) => {
  const vring = session.vrings.at(request, value.index);
  const logging = ((session.features ?? 0n) >> BigInt(VHOST_F_LOG_ALL)) & 1n;
  if (value.flags & VHOST_VRING_F_LOG && !logging) {
    const problem = 'bit 0 (VHOST_VRING_F_LOG) without VHOST_F_LOG_ALL, which was not negotiated';
    throw new ProtocolError('ERR_VRING_NOT_NEGOTIATED', request, 'flags', problem);
  }
  await session.vrings.setAddr(vring, value);
};

/** What the number means depends on the ring's format; it is judged when the ring starts. */
export const setVringBase: Handler<VringState> = async ({ vrings }, { request, value }) => {
  const vring = vrings.at(request, value.index);
  if (vring.running) return; // the base that it began with, said once more
  await vrings.change(vring, (v) => (v.base = value.num));
};

export const getVringBase: Handler<VringState> = async ({ vrings }, { request, value }) => {
  const vring = vrings.at(request, value.index);
  return VringState.encode({ index: value.index, num: await vrings.stop(vring) });
};

/**
 * Only eventfds: what else a front-end may have cannot be waited for (a file, /dev/null, O_PATH),
 * or does more than count when it is written to.
 * @throws ProtocolError ERR_VRING_MESSAGE_FDS
 */
function takeEventFd(request: string, fds: Fd[]): Fd | null {
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

/* Device */

/** The specification's error is an empty payload. */
export const getConfig: Handler<ConfigAccess> = ({ target }, { value }) => {
  const data = target.getConfig(value.offset, value.sizeBytes);
  if (data === null || data.length !== value.sizeBytes) return new Uint8Array(0);
  const reply = new Uint8Array(ConfigHeader.size + data.length);
  const { offset, sizeBytes, flags } = value;
  reply.set(ConfigHeader.encode({ offset, sizeBytes, flags }));
  reply.set(data, ConfigHeader.size);
  return reply;
};

/** A guest may write what is read-only: that is refused, and no reason to end the session. */
export const setConfig: Handler<ConfigAccess> = ({ target }, { request, value }) => {
  const { offset, sizeBytes, flags } = value;
  if (target.setConfig(offset, value.data.slice(), flags)) return;
  const problem = `the device refuses ${sizeBytes} bytes at ${offset}, flags ${flags}`;
  return new ProtocolError('ERR_VRING_DEVICE_REFUSED', request, 'config', problem);
};

export const netSetMtu: Handler<number> = (session, { request, value }) => {
  if (session.target.setMtu(value)) {
    session.mtu = value;
    return;
  }
  return new ProtocolError('ERR_VRING_DEVICE_REFUSED', request, 'mtu', `the port refuses ${value}`);
};

export const setStatus: Handler<number> = async ({ target }, { value }) => {
  await target.setStatus(value);
};

export const getStatus: Handler<null> = ({ target }) => u64Reply(target.getStatus());
