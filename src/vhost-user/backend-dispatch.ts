/** Which handler of the back-end serves which message. */
import * as handle from './backend-handlers.ts';
import type { Handler } from './backend-handlers.ts';
import { type MessageEntry, REQUEST } from './message-table.ts';

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
on(REQUEST.NET_SET_MTU, handle.netSetMtu);
on(REQUEST.GET_CONFIG, handle.getConfig);
on(REQUEST.SET_CONFIG, handle.setConfig);
on(REQUEST.GET_MAX_MEM_SLOTS, handle.getMaxMemSlots);
on(REQUEST.ADD_MEM_REG, handle.addMemReg);
on(REQUEST.REM_MEM_REG, handle.remMemReg);
on(REQUEST.SET_STATUS, handle.setStatus);
on(REQUEST.GET_STATUS, handle.getStatus);

/** The handler of a request, or null while there is none: then it is refused by name. */
export function handlerOf(request: number): Handler<unknown> | null {
  return handlers.get(request) ?? null;
}
