/**
 * What a target asks of the front-end, as messages of the backend channel: negotiation, fds and
 * the rule that a suspended device says nothing (specification, "Suspended device state").
 */
import { ProtocolError, VringError } from '../base/errors.ts';
import { assert } from '../base/assert.ts';
import type { Fd } from '../sys/index.ts';
import * as wire from '../wire/vhost-user.ts';
import { IOTLB_ACCESS_RO, IOTLB_ACCESS_WO, IOTLB_MISS } from '../wire/vhost-user-parse.ts';
import { BackendChannel } from './backend-channel.ts';
import { closeFds, type Message } from './connection.ts';
import { EVENT_MESSAGE, type MessageEntry } from './message-table.ts';
import type { IotlbControl } from './iotlb-control.ts';
import type { FrontendRequests, MappableArea } from './target.ts';

/** What requests depend on. */
export type ChannelContext = {
  readonly protocolFeatures: bigint | null;
  readonly runningVrings: number;
  /** Deduplicates misses of the data plane; `sendMiss` sends them. */
  readonly iotlb: Pick<IotlbControl, 'miss'>;
};

/** Protocol features that mean nothing without the channel. */
const OVER_THE_CHANNEL = new Set([
  wire.VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  wire.VHOST_USER_PROTOCOL_F_CONFIG,
  wire.VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD,
  wire.VHOST_USER_PROTOCOL_F_HOST_NOTIFIER,
  wire.VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
  wire.VHOST_USER_PROTOCOL_F_SHARED_OBJECT,
  wire.VHOST_USER_PROTOCOL_F_SHMEM,
]);

export class ChannelRequests implements FrontendRequests {
  readonly #context: ChannelContext;
  #channel: BackendChannel | null = null;
  /** CONFIG_CHANGE_MSG is due when the device is no longer suspended. */
  #configChanged = false;
  #closed = false;

  constructor(context: ChannelContext) {
    this.#context = context;
  }

  get channel(): BackendChannel | null {
    return this.#channel;
  }

  /** SET_BACKEND_REQ_FD: the old channel is closed, the new one takes the socket over. */
  open(options: Omit<ConstructorParameters<typeof BackendChannel>[0], 'onEnd'>): void {
    this.#channel?.close();
    const channel = new BackendChannel({
      ...options,
      onEnd: () => {
        if (this.#channel === channel) this.#channel = null;
      },
    });
    this.#channel = channel;
  }

  /** The session is over. */
  close(): void {
    this.#closed = true;
    this.#channel?.close();
    this.#channel = null;
  }

  can(protocolFeature: number): boolean {
    if (!this.#acked(protocolFeature)) return false;
    return !OVER_THE_CHANNEL.has(protocolFeature) || this.#channel !== null;
  }

  iotlbMiss(iova: number, write: boolean): void {
    if (!this.#closed) this.#context.iotlb.miss(iova, write ? IOTLB_ACCESS_WO : IOTLB_ACCESS_RO);
  }

  /** IOTLB_MSG; a ring that waits for its areas says it while the device counts as suspended. */
  sendMiss(iova: number, permissions: number): boolean {
    const payload = wire.IotlbMessage.encode({
      iova: BigInt(iova),
      sizeBytes: 0n,
      userAddr: 0n,
      permissions,
      type: IOTLB_MISS,
      padding: new Uint8Array(6),
    });
    return this.#channel?.tell(EVENT_MESSAGE.IOTLB_MSG, payload) ?? false;
  }

  /** VRING_CALL and VRING_ERR of in-band notifications. */
  signal(which: 'call' | 'err', index: number): boolean {
    const entry = which === 'call' ? EVENT_MESSAGE.VRING_CALL : EVENT_MESSAGE.VRING_ERR;
    const payload = wire.VringState.encode({ index, num: 0 });
    return this.#channel?.tell(entry, payload) ?? false;
  }

  /** While every ring is stopped it waits for the first that runs. */
  async configChanged(): Promise<void> {
    this.#channelFor(EVENT_MESSAGE.CONFIG_CHANGE_MSG as MessageEntry, false);
    if (this.#context.runningVrings === 0) {
      this.#configChanged = true;
      return;
    }
    await this.#ask(EVENT_MESSAGE.CONFIG_CHANGE_MSG, new Uint8Array(0));
  }

  /** A ring was started: says what had to wait. */
  woken(): void {
    if (!this.#configChanged) return;
    this.#configChanged = false;
    this.configChanged().catch(() => undefined); // who asked was told that it would come later
  }

  async setHostNotifier(index: number, area: MappableArea | null): Promise<void> {
    const payload = wire.VringArea.encode({
      indexAndFlags: BigInt(index) | (area === null ? wire.VHOST_USER_VRING_NOFD_MASK : 0n),
      sizeBytes: BigInt(area?.sizeBytes ?? 0),
      fdOffset: BigInt(area?.offset ?? 0),
    });
    const fds = area === null ? [] : [area.fd];
    await this.#ask(EVENT_MESSAGE.VRING_HOST_NOTIFIER_MSG, payload, fds);
  }

  async addSharedObject(uuid: Uint8Array): Promise<void> {
    await this.#ask(EVENT_MESSAGE.SHARED_OBJECT_ADD, wire.SharedObject.encode({ uuid }));
  }

  async removeSharedObject(uuid: Uint8Array): Promise<void> {
    await this.#ask(EVENT_MESSAGE.SHARED_OBJECT_REMOVE, wire.SharedObject.encode({ uuid }));
  }

  async lookUpSharedObject(uuid: Uint8Array): Promise<Fd | null> {
    const payload = wire.SharedObject.encode({ uuid });
    const reply = await this.#ask(EVENT_MESSAGE.SHARED_OBJECT_LOOKUP, payload);
    assert(reply !== null, 'a lookup is always answered');
    const [fd] = reply!.fds.splice(0, 1);
    closeFds(reply!.fds);
    return fd ?? null;
  }

  async mapShmem(
    shmId: number,
    shmOffset: number,
    area: MappableArea,
    writable: boolean,
  ): Promise<void> {
    const payload = wire.ShmemMap.encode({
      shmId,
      padding: new Uint8Array(7),
      fdOffset: BigInt(area.offset),
      shmOffset: BigInt(shmOffset),
      sizeBytes: BigInt(area.sizeBytes),
      flags: writable ? 1n : 0n,
    });
    await this.#ask(EVENT_MESSAGE.SHMEM_MAP, payload, [area.fd]);
  }

  async unmapShmem(shmId: number, shmOffset: number, sizeBytes: number): Promise<void> {
    const payload = wire.ShmemMap.encode({
      shmId,
      padding: new Uint8Array(7),
      fdOffset: 0n,
      shmOffset: BigInt(shmOffset),
      sizeBytes: BigInt(sizeBytes),
      flags: 0n,
    });
    await this.#ask(EVENT_MESSAGE.SHMEM_UNMAP, payload);
  }

  #acked(feature: number): boolean {
    return (((this.#context.protocolFeatures ?? 0n) >> BigInt(feature)) & 1n) === 1n;
  }

  async #ask<T, R>(
    entry: MessageEntry<T, R>,
    payload: Uint8Array,
    fds: readonly number[] = [],
  ): Promise<Message | null> {
    const channel = this.#channelFor(entry as unknown as MessageEntry, fds.length > 0);
    if (this.#context.runningVrings === 0) {
      const problem = 'every vring is stopped, and a suspended device sends nothing';
      throw new VringError('ERR_VRING_SUSPENDED', `${entry.name}: ${problem}`, {
        recovery: 'retry',
      });
    }
    const always = entry.reply === 'payload';
    const answers = always || this.#acked(wire.VHOST_USER_PROTOCOL_F_REPLY_ACK);
    return channel.ask(entry, payload, answers, fds);
  }

  /** @throws ProtocolError ERR_VRING_NOT_NEGOTIATED. */
  #channelFor({ name, needs }: MessageEntry, sendsFds: boolean): BackendChannel {
    const sendFd = wire.VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD;
    const lacking: string[] = [];
    for (const feature of [needs ?? 0, ...(sendsFds ? [sendFd] : [])]) {
      if (!this.#acked(feature)) lacking.push(wire.PROTOCOL_FEATURE_NAMES[feature]!);
    }
    if (lacking.length === 0 && this.#channel !== null) return this.#channel;
    const problem =
      lacking.length > 0
        ? `${lacking.join(' and ')} was not negotiated`
        : 'the front-end opened no backend channel';
    throw new ProtocolError('ERR_VRING_NOT_NEGOTIATED', name, 'request', problem);
  }
}
