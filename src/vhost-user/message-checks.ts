/** What makes a message of the table acceptable here and now. Its meaning is the handler's. */
import { ProtocolError } from '../base/errors.ts';
import { parsePayload } from '../wire/vhost-user-parse.ts';
import { hasFeature } from '../wire/virtio.ts';
import type { Message } from './connection.ts';
import { FRONT_END_MESSAGES, type MessageEntry, requestName } from './message-table.ts';
import type { ProtocolState } from './state-rules.ts';

/** @throws ProtocolError ERR_VRING_NOT_NEGOTIATED. */
export function checkNegotiated(entry: MessageEntry, state: ProtocolState): void {
  const { name, needs, needsVirtio } = entry;
  if (needs !== null && !hasFeature(state.protocolFeatures ?? 0n, needs)) {
    const problem = `protocol feature bit ${needs} was not negotiated`;
    throw new ProtocolError('ERR_VRING_NOT_NEGOTIATED', name, 'request', problem);
  }
  if (needsVirtio !== null && !hasFeature(state.features ?? 0n, needsVirtio)) {
    const problem = `virtio feature bit ${needsVirtio} was not negotiated`;
    throw new ProtocolError('ERR_VRING_NOT_NEGOTIATED', name, 'request', problem);
  }
}

/**
 * Payload, fds and state rules of a message. Returns the payload's value.
 * @throws ProtocolError ERR_VRING_MESSAGE_FDS, _SIZE, _VALUE or _STATE.
 */
export function checkMessage(
  entry: MessageEntry,
  { fds, payload }: Message,
  state: ProtocolState,
): unknown {
  const { name } = entry;
  checkFdRange(entry, fds.length);
  const value = parsePayload(entry.payload, name, payload);
  const due = entry.payload.fdCount?.(value);
  if (due !== undefined && due !== fds.length) {
    throw fdError(name, fds.length, `${due}, as the payload says`);
  }
  for (const rule of entry.legal) {
    if (rule.holds(state, value)) continue;
    const problem = `breaks the rule ${rule.id}: ${rule.says} (${rule.section})`;
    throw new ProtocolError('ERR_VRING_MESSAGE_STATE', name, 'request', problem);
  }
  return value;
}

function checkFdRange({ name, fds: [min, max] }: MessageEntry, count: number): void {
  if (count >= min && count <= max) return;
  throw fdError(name, count, min === max ? `${min}` : `${min} to ${max}`);
}

function fdError(name: string, count: number, due: string): ProtocolError {
  return new ProtocolError('ERR_VRING_MESSAGE_FDS', name, 'fds', `${count} came, expected ${due}`);
}

/** What a request is answered with that the table does not have. */
export function unknownMessage(request: number): ProtocolError {
  const last = FRONT_END_MESSAGES.size;
  const problem = `${request} is not a request of this protocol, expected 1 to ${last}`;
  const name = requestName(request);
  return new ProtocolError('ERR_VRING_MESSAGE_UNKNOWN', name, 'request', problem);
}
