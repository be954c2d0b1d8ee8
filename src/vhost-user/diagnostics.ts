import { channel } from 'node:diagnostics_channel';

/** What a subscriber of `vring:vhost-user:message` gets, once for each message. */
export type MessageEvent = {
  readonly direction: 'received' | 'sent';
  /** `VHOST_USER_SET_MEM_TABLE`; replies carry the name of their request. */
  readonly name: string;
  readonly flags: number;
  /** Payload bytes. */
  readonly size: number;
  readonly fds: number;
};

const messages = channel('vring:vhost-user:message');

/** Costs one property read while nobody listens. */
export function publishMessage(
  direction: MessageEvent['direction'],
  name: string,
  flags: number,
  size: number,
  fds: number,
): void {
  if (!messages.hasSubscribers) return;
  messages.publish({ direction, name, flags, size, fds } satisfies MessageEvent);
}
