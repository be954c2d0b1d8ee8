/** What the back-end does for the messages that concern its device. See backend-handlers.ts. */
import { ProtocolError } from '../base/errors.ts';
import { type Fd, fdTarget, setNonblocking } from '../sys/index.ts';
import type { ConfigAccess } from '../wire/vhost-user-parse.ts';
import {
  ConfigHeader,
  ShmemConfigHeader,
  U64Payload,
  VHOST_USER_MAX_SHMEM_REGIONS,
} from '../wire/vhost-user.ts';
import { type Handler, u64Reply } from './backend-handlers.ts';

function refused(request: string, field: string, problem: string): ProtocolError {
  return new ProtocolError('ERR_VRING_DEVICE_REFUSED', request, field, problem);
}

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
  return refused(request, 'config', problem);
};

export const netSetMtu: Handler<number> = (session, { request, value }) => {
  if (session.target.setMtu(value)) {
    session.mtu = value;
    return;
  }
  return refused(request, 'mtu', `the port refuses ${value}`);
};

export const setStatus: Handler<number> = async ({ target }, { value }) => {
  await target.setStatus(value);
};

export const getStatus: Handler<null> = ({ target }) => u64Reply(target.getStatus());

export const sendRarp: Handler<Uint8Array> = async ({ target }, { value }) => {
  await target.sendRarp!(value);
};

/** Rings are stopped and disabled; memory and protocol features stay. */
export const resetDevice: Handler<null> = async ({ vrings, target }) => {
  await vrings.reset();
  await target.resetDevice!();
};

/** No fd: the device does not know the object. */
export const getSharedObject: Handler<Uint8Array> = ({ target }, { value }) => {
  const fd = target.sharedObject!(value);
  return { payload: new Uint8Array(0), fds: fd === null ? [] : [fd] };
};

export const getShmemConfig: Handler<null> = ({ target }) => {
  const regions = target.shmemRegions!.slice(0, VHOST_USER_MAX_SHMEM_REGIONS);
  const reply = new Uint8Array(ShmemConfigHeader.size + 8 * VHOST_USER_MAX_SHMEM_REGIONS);
  const count = regions.filter((sizeBytes) => sizeBytes > 0).length;
  reply.set(ShmemConfigHeader.encode({ count, padding: 0 }));
  regions.forEach((sizeBytes, id) => {
    reply.set(U64Payload.encode({ value: BigInt(sizeBytes) }), ShmemConfigHeader.size + 8 * id);
  });
  return reply;
};

export const createCryptoSession: Handler<Uint8Array> = ({ target }, { value }) =>
  target.createCryptoSession!(value);

export const closeCryptoSession: Handler<bigint> = async ({ target }, { request, value }) => {
  if (await target.closeCryptoSession!(value)) return;
  return refused(request, 'session id', `the device has no session ${value}`);
};

/** No feature gates it: a device that is no GPU does not have it. */
export const gpuSetSocket: Handler<null> = ({ target }, { request, fds }) => {
  if (target.setGpuSocket === undefined) {
    const problem = 'this device is no GPU';
    throw new ProtocolError('ERR_VRING_MESSAGE_UNSUPPORTED', request, 'request', problem);
  }
  target.setGpuSocket(takeSocket(request, fds));
};

/** @throws ProtocolError ERR_VRING_MESSAGE_FDS. */
export function takeSocket(request: string, fds: Fd[]): Fd {
  const what = fdTarget(fds[0]!.number);
  if (!what.startsWith('socket:')) {
    const problem = `the fd is ${what}, expected a stream socket`;
    throw new ProtocolError('ERR_VRING_MESSAGE_FDS', request, 'fds', problem);
  }
  setNonblocking(fds[0]!.number, true); // a peer that does not read must never hold us
  return fds.shift()!;
}
