/** Which handler of the back-end serves which message. */
import { assert } from '../base/assert.ts';
import * as handle from './backend-handlers.ts';
import type { Handler } from './backend-handlers.ts';
import * as device from './device-handlers.ts';
import { type MessageEntry, REQUEST } from './message-table.ts';
import * as migration from './migration-handlers.ts';

const handlers = new Map<number, Handler<unknown>>();

function on<T, R>(entry: MessageEntry<T, R>, handler: Handler<T>): void {
  handlers.set(entry.id, handler as Handler<unknown>);
}

on(REQUEST.GET_FEATURES, handle.getFeatures);
on(REQUEST.SET_FEATURES, handle.setFeatures);
on(REQUEST.SET_OWNER, handle.setOwner);
on(REQUEST.RESET_OWNER, handle.resetOwner);
on(REQUEST.SET_MEM_TABLE, handle.setMemTable);
on(REQUEST.SET_VRING_NUM, handle.setVringNum);
on(REQUEST.SET_VRING_ADDR, handle.setVringAddr);
on(REQUEST.SET_VRING_BASE, handle.setVringBase);
on(REQUEST.GET_VRING_BASE, handle.getVringBase);
on(REQUEST.SET_VRING_KICK, handle.setVringKick);
on(REQUEST.SET_VRING_CALL, handle.setVringCall);
on(REQUEST.SET_VRING_ERR, handle.setVringErr);
on(REQUEST.GET_PROTOCOL_FEATURES, handle.getProtocolFeatures);
on(REQUEST.SET_PROTOCOL_FEATURES, handle.setProtocolFeatures);
on(REQUEST.GET_QUEUE_NUM, handle.getQueueNum);
on(REQUEST.SET_VRING_ENABLE, handle.setVringEnable);
on(REQUEST.NET_SET_MTU, device.netSetMtu);
on(REQUEST.GET_CONFIG, device.getConfig);
on(REQUEST.SET_CONFIG, device.setConfig);
on(REQUEST.GET_MAX_MEM_SLOTS, handle.getMaxMemSlots);
on(REQUEST.ADD_MEM_REG, handle.addMemReg);
on(REQUEST.REM_MEM_REG, handle.remMemReg);
on(REQUEST.SET_VRING_ENDIAN, handle.setVringEndian);
on(REQUEST.VRING_KICK, handle.vringKick);
on(REQUEST.SET_STATUS, device.setStatus);
on(REQUEST.GET_STATUS, device.getStatus);
on(REQUEST.SEND_RARP, device.sendRarp);
on(REQUEST.RESET_DEVICE, device.resetDevice);
on(REQUEST.GET_SHARED_OBJECT, device.getSharedObject);
on(REQUEST.GET_SHMEM_CONFIG, device.getShmemConfig);
on(REQUEST.CREATE_CRYPTO_SESSION, device.createCryptoSession);
on(REQUEST.CLOSE_CRYPTO_SESSION, device.closeCryptoSession);
on(REQUEST.GPU_SET_SOCKET, device.gpuSetSocket);
on(REQUEST.SET_LOG_BASE, migration.setLogBase);
on(REQUEST.SET_LOG_FD, migration.setLogFd);
on(REQUEST.GET_INFLIGHT_FD, migration.getInflightFd);
on(REQUEST.SET_INFLIGHT_FD, migration.setInflightFd);
on(REQUEST.SET_BACKEND_REQ_FD, migration.setBackendReqFd);
on(REQUEST.IOTLB_MSG, migration.iotlbMessage);
on(REQUEST.POSTCOPY_ADVISE, migration.postcopyAdvise);
on(REQUEST.POSTCOPY_LISTEN, migration.postcopyListen);
on(REQUEST.POSTCOPY_END, migration.postcopyEnd);
on(REQUEST.SET_DEVICE_STATE_FD, migration.setDeviceStateFd);
on(REQUEST.CHECK_DEVICE_STATE, migration.checkDeviceState);

/** The handler of a request of the table. */
export function handlerOf(request: number): Handler<unknown> {
  const handler = handlers.get(request);
  assert(handler !== undefined, () => `request ${request} has a handler`);
  return handler!;
}
