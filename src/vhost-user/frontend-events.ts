/**
 * The backend channel on the front-end's side: requests of the back-end, one after the other.
 *
 * Who handles what is said in FrontendOptions.events; what nobody handles was not negotiated. A
 * request that cannot be fulfilled is answered by a non-zero ack; one that is malformed, unknown or
 * not negotiated ends the session, like a wrong reply does. Handlers of events that need no answer
 * return at once and may send requests of their own later: a back-end that waits for an ack does
 * not listen to anything else.
 */
import { ProtocolError } from '../base/errors.ts';
import type { Fd } from '../sys/index.ts';
import { IOTLB_MISS, parsePayload, type IotlbEvent } from '../wire/vhost-user-parse.ts';
import {
  U64Payload,
  VHOST_USER_NEED_REPLY_MASK,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_REPLY_MASK,
  VHOST_USER_VERSION,
} from '../wire/vhost-user.ts';
import { closeFds, type Message, MessageConnection } from './connection.ts';
import type { FrontendCalls } from './frontend-calls.ts';
import { protocolFeatureName } from './frontend-features.ts';
import {
  BACK_END_MESSAGES,
  backEndRequestName,
  EVENT_MESSAGE,
  type MessageEntry,
} from './message-table.ts';
import type { ObjectOwner, SharedObjectRegistry } from './shared-objects.ts';
import { ShmemMaps, type ShmemHandler } from './shmem-maps.ts';

/** A doorbell that the guest may write to directly. Bytes. */
export type HostNotifier = {
  /** Lent for the call. */
  readonly fd: number;
  readonly sizeBytes: number;
  readonly fdOffset: number;
};

/** What a front-end does for its back-end. What is absent is not negotiated. */
export type FrontendEvents = {
  /** The back-end lacks a translation; answer by `iotlb.update`. `write`: it wants to write. */
  readonly iotlbMiss?: (iova: bigint, write: boolean) => void;
  /** The back-end met memory that its translation does not allow. */
  readonly iotlbAccessFailed?: (iova: bigint, write: boolean) => void;
  readonly configChanged?: () => void;
  /** Null takes the notifier away. False refuses: kicks go on over the eventfd. */
  readonly hostNotifier?: (index: number, notifier: HostNotifier | null) => boolean;
  /** In-band notifications, for rings without a call descriptor. */
  readonly vringCall?: (index: number) => void;
  readonly vringErr?: (index: number) => void;
  readonly sharedObjects?: SharedObjectRegistry;
  readonly shmem?: ShmemHandler;
};

/** Done; done with an fd, which is closed after it was sent; or why not. */
type Result = null | { readonly fd: Fd } | string;

export class BackendChannelReceiver {
  readonly #connection: MessageConnection;
  readonly #events: FrontendEvents;
  readonly #calls: FrontendCalls;
  readonly #owner: ObjectOwner;
  readonly #shmem: ShmemMaps | null;
  /** Requests that were answered by a non-zero ack, and why the last one was. */
  refusals = 0;
  lastRefusal: string | null = null;

  /** `shmemSizes`: of each shared memory region, by id. */
  constructor(
    socket: Fd,
    events: FrontendEvents,
    calls: FrontendCalls,
    owner: ObjectOwner,
    shmemSizes: readonly bigint[],
  ) {
    this.#events = events;
    this.#calls = calls;
    this.#owner = owner;
    this.#shmem = events.shmem === undefined ? null : new ShmemMaps(events.shmem, shmemSizes);
    const nameOf = backEndRequestName;
    this.#connection = new MessageConnection(socket, { expectReplies: false, nameOf });
    void this.#run();
  }

  /** After RESET_DEVICE: shared memory is unmapped. */
  deviceReset(): void {
    this.#shmem?.clear();
  }

  /** Idempotent. What the back-end shared is gone. */
  close(): void {
    if (this.#connection.closed) return;
    this.#connection.close();
    this.#shmem?.clear();
    this.#events.sharedObjects?.removeAll(this.#owner);
  }

  async #run(): Promise<void> {
    try {
      for (;;) {
        const message = await this.#connection.receive();
        if (message === null) break;
        await this.#handle(message);
      }
    } catch (error) {
      if (!this.#connection.closed) this.#calls.channel.fail(error as Error);
    }
    this.close();
  }

  async #handle(message: Message): Promise<void> {
    let result: Result;
    let entry: MessageEntry;
    try {
      entry = this.#entryOf(message);
      const value = parsePayload(entry.payload, entry.name, message.payload);
      this.#checkFds(entry, value, message.fds.length);
      result = await this.#dispatch(entry.id, value, message.fds);
    } finally {
      closeFds(message.fds);
    }
    if (typeof result === 'string') {
      this.refusals++;
      this.lastRefusal = `${entry.name}: ${result}`;
    }
    const fd = typeof result === 'object' ? (result?.fd ?? null) : null;
    try {
      if (!this.#answers(entry, message)) return;
      const payload = U64Payload.encode({ value: typeof result === 'string' ? 1n : 0n });
      const flags = VHOST_USER_VERSION | VHOST_USER_REPLY_MASK;
      await this.#connection.send(entry.id, flags, payload, fd === null ? [] : [fd.number]);
    } finally {
      fd?.close();
    }
  }

  #answers(entry: MessageEntry, message: Message): boolean {
    if (entry.reply !== 'ack') return true;
    const asked = (message.flags & VHOST_USER_NEED_REPLY_MASK) !== 0;
    return asked && this.#calls.has(VHOST_USER_PROTOCOL_F_REPLY_ACK);
  }

  /** @throws ProtocolError for what must not come now. */
  #entryOf(message: Message): MessageEntry {
    const entry = BACK_END_MESSAGES.get(message.request);
    const name = backEndRequestName(message.request);
    if (entry === undefined) {
      const problem = `${message.request} is not a request of a back-end, expected 1 to 10`;
      throw new ProtocolError('ERR_VRING_MESSAGE_UNKNOWN', name, 'request', problem);
    }
    const { needs, needsVirtio } = entry;
    if (needs !== null && !this.#calls.has(needs)) {
      const problem = `${protocolFeatureName(needs)} was not negotiated`;
      throw new ProtocolError('ERR_VRING_NOT_NEGOTIATED', name, 'request', problem);
    }
    if (needsVirtio !== null && ((this.#calls.features >> BigInt(needsVirtio)) & 1n) === 0n) {
      const problem = `virtio feature bit ${needsVirtio} was not acked`;
      throw new ProtocolError('ERR_VRING_NOT_NEGOTIATED', name, 'request', problem);
    }
    return entry;
  }

  #checkFds(entry: MessageEntry, value: unknown, count: number): void {
    const [least, most] = entry.fds;
    const due = entry.payload.fdCount?.(value);
    if (count >= least && count <= most && (due === undefined || due === count)) return;
    const expected = due ?? (least === most ? least : `${least} to ${most}`);
    const problem = `${count} came, expected ${expected}`;
    throw new ProtocolError('ERR_VRING_MESSAGE_FDS', entry.name, 'fds', problem);
  }

  async #dispatch(id: number, value: unknown, fds: readonly Fd[]): Promise<Result> {
    const events = this.#events;
    switch (id) {
      case EVENT_MESSAGE.IOTLB_MSG.id:
        return this.#iotlb(value as IotlbEvent);
      case EVENT_MESSAGE.CONFIG_CHANGE_MSG.id:
        events.configChanged?.();
        return null;
      case EVENT_MESSAGE.VRING_HOST_NOTIFIER_MSG.id:
        return this.#hostNotifier(value as HostNotifierValue, fds[0] ?? null);
      case EVENT_MESSAGE.VRING_CALL.id:
        events.vringCall?.(value as number);
        return null;
      case EVENT_MESSAGE.VRING_ERR.id:
        events.vringErr?.(value as number);
        return null;
      case EVENT_MESSAGE.SHMEM_MAP.id:
      case EVENT_MESSAGE.SHMEM_UNMAP.id:
        return this.#changeShmem(id, value as ShmemValue, fds[0] ?? null);
      default:
        return this.#sharedObject(id, value as Uint8Array);
    }
  }

  #iotlb({ type, iova, permissions }: IotlbEvent): Result {
    const write = (permissions & 2) !== 0;
    if (type === IOTLB_MISS) this.#events.iotlbMiss?.(iova, write);
    else this.#events.iotlbAccessFailed?.(iova, write);
    return null;
  }

  #hostNotifier({ index, sizeBytes, fdOffset }: HostNotifierValue, fd: Fd | null): Result {
    const area = { sizeBytes: Number(sizeBytes), fdOffset: Number(fdOffset) };
    const notifier = fd === null ? null : { fd: fd.number, ...area };
    const taken = this.#events.hostNotifier?.(index, notifier) ?? false;
    return taken ? null : `the notifier of vring ${index} is refused`;
  }

  #changeShmem(id: number, value: ShmemValue, fd: Fd | null): Result {
    const mapping = {
      shmId: value.shmId,
      shmOffset: Number(value.shmOffset),
      sizeBytes: Number(value.sizeBytes),
      fdOffset: Number(value.fdOffset),
      writable: (value.flags & 1n) !== 0n,
    };
    if (this.#shmem === null) return 'there is no shared memory';
    if (id === EVENT_MESSAGE.SHMEM_UNMAP.id) return this.#shmem.unmap(mapping);
    return fd === null ? 'there is no fd' : this.#shmem.map(mapping, fd.number);
  }

  async #sharedObject(id: number, uuid: Uint8Array): Promise<Result> {
    const objects = this.#events.sharedObjects;
    if (objects === undefined) return 'there are no shared objects';
    if (id === EVENT_MESSAGE.SHARED_OBJECT_ADD.id) {
      return objects.add(uuid, this.#owner) ? null : 'the object is known already';
    }
    if (id === EVENT_MESSAGE.SHARED_OBJECT_REMOVE.id) {
      return objects.remove(uuid, this.#owner) ? null : 'the object is not its own';
    }
    const fd = await objects.lookUp(uuid, this.#owner).catch(() => null);
    return fd === null ? 'nobody has the object' : { fd };
  }
}

type HostNotifierValue = { index: number; sizeBytes: bigint; fdOffset: bigint };
type ShmemValue = {
  shmId: number;
  shmOffset: bigint;
  sizeBytes: bigint;
  fdOffset: bigint;
  flags: bigint;
};
