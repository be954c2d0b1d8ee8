/**
 * The front-end's side of vhost-user: drives a back-end in another process, as a VMM does.
 *
 * The connection is negotiated before the constructor's caller gets it. Bit 30 and the protocol
 * features are this transport's own affair and do not show in `getFeatures` and `setFeatures`.
 * Messages without a reply of their own are acked where REPLY_ACK was negotiated, so that a
 * refusal is an error of the call that caused it; without REPLY_ACK a back-end that refuses
 * closes the connection, which the next call sees.
 *
 * What every transport can do is `VhostBackend`; what vhost-user has beyond it stands in one object
 * per noun: `memory`, `iotlb`, `inflight`, `migration`, `device`. What needs a feature that was not
 * negotiated throws ERR_VRING_NOT_NEGOTIATED with its name, and nothing is sent.
 */
import { rmSync } from 'node:fs';
import { VringError } from '../base/errors.ts';
import type {
  BackendDirtyLog,
  BackendMemoryRegion,
  VhostBackend,
  VringAddresses,
} from '../base/vhost-backend.ts';
import { acceptUnix, connectUnix, type Fd, listenUnix, pollFd, socketPair } from '../sys/index.ts';
import * as wire from '../wire/vhost-user.ts';
import { FrontendCalls } from './frontend-calls.ts';
import { FrontendChannel } from './frontend-channel.ts';
import { FrontendDevice } from './frontend-device.ts';
import { BackendChannelReceiver, type FrontendEvents } from './frontend-events.ts';
import { chooseProtocolFeatures } from './frontend-features.ts';
import { FrontendInflight } from './frontend-inflight.ts';
import { FrontendIotlb } from './frontend-iotlb.ts';
import { FrontendMemory } from './frontend-memory.ts';
import { FrontendMigration } from './frontend-migration.ts';
import { CALL_TIMEOUT_MS } from './limits.ts';
import { type MessageEntry, REQUEST } from './message-table.ts';

const F_PROTOCOL_FEATURES = 1n << BigInt(wire.VHOST_USER_F_PROTOCOL_FEATURES);

export type FrontendOptions = {
  /** How long a call may take. Default CALL_TIMEOUT_MS; ERR_VRING_TIMEOUT ends the session. */
  readonly timeoutMs?: number;
  /**
   * Protocol features to use at most. Default: all that are implemented but those that change the
   * meaning of other messages: INBAND_NOTIFICATIONS, GET_VRING_BASE_INFLIGHT, GPA_ADDRESSES.
   */
  readonly protocolFeatures?: bigint;
  /** Vrings for each unit of GET_QUEUE_NUM: 2 for net, whose back-ends count pairs. Default 1. */
  readonly vringsPerQueue?: number;
  /** What we do for the back-end. Without it there is no backend channel. */
  readonly events?: FrontendEvents;
};

export type FrontendListenOptions = FrontendOptions & {
  readonly mode?: number;
  /** Ends the wait for a back-end. */
  readonly signal?: AbortSignal;
};

export class VhostUserFrontend implements VhostBackend {
  readonly description: string;
  readonly closed: Promise<Error | null>;
  readonly memory: FrontendMemory;
  readonly iotlb: FrontendIotlb;
  readonly inflight: FrontendInflight;
  readonly migration: FrontendMigration;
  readonly device: FrontendDevice;
  readonly restartsWhole = false;
  readonly #channel: FrontendChannel;
  readonly #calls: FrontendCalls;
  readonly #options: FrontendOptions;
  #offersProtocolFeatures = false;
  #backendChannel: BackendChannelReceiver | null = null;

  private constructor(socket: Fd, description: string, options: FrontendOptions) {
    this.description = description;
    this.#options = options;
    this.#channel = new FrontendChannel(socket, options.timeoutMs ?? CALL_TIMEOUT_MS);
    const calls = new FrontendCalls(this.#channel, description);
    this.#calls = calls;
    this.memory = new FrontendMemory(calls);
    this.iotlb = new FrontendIotlb(calls);
    this.inflight = new FrontendInflight(calls);
    this.migration = new FrontendMigration(calls);
    this.device = new FrontendDevice(calls);
    this.closed = this.#channel.closed.then((reason) => {
      this.#backendChannel?.close();
      return reason;
    });
  }

  /**
   * Client mode: connects to a back-end that listens, and negotiates.
   * @throws SysError ENOENT, ECONNREFUSED with recovery 'retry'; VringError of the calls.
   */
  static async connect(path: string, options: FrontendOptions = {}): Promise<VhostUserFrontend> {
    return VhostUserFrontend.attach(connectUnix(path), `vhost-user:${path}`, options);
  }

  /**
   * Server mode: listens until one back-end connects, and negotiates with it. The socket is
   * removed then: one front-end serves one device, the next one listens again.
   * @throws VringError ERR_VRING_SOCKET_IN_USE, ERR_VRING_CLOSED when `signal` aborts.
   */
  static async listen(
    path: string,
    options: FrontendListenOptions = {},
  ): Promise<VhostUserFrontend> {
    const listener = listenUnix(path, options.mode === undefined ? {} : { mode: options.mode });
    try {
      const socket = await acceptOne(listener, path, options.signal);
      return await VhostUserFrontend.attach(socket, `vhost-user:${path},server`, options);
    } finally {
      listener.close();
      rmSync(path, { force: true });
    }
  }

  /** Takes a connected socket over and negotiates. */
  static async attach(
    socket: Fd,
    description = 'vhost-user',
    options: FrontendOptions = {},
  ): Promise<VhostUserFrontend> {
    const frontend = new VhostUserFrontend(socket, description, options);
    try {
      await frontend.#negotiate();
    } catch (error) {
      await frontend.close();
      throw error;
    }
    return frontend;
  }

  /** Negotiated protocol features; 0 for a back-end without bit 30. */
  get protocolFeatures(): bigint {
    return this.#calls.protocolFeatures;
  }

  /** What GET_PROTOCOL_FEATURES answered. */
  get offeredProtocolFeatures(): bigint {
    return this.#calls.offeredProtocolFeatures;
  }

  /** Requests of the back-end that were refused; null without a backend channel. */
  get refusedEvents(): { readonly count: number; readonly last: string | null } | null {
    const channel = this.#backendChannel;
    return channel === null ? null : { count: channel.refusals, last: channel.lastRefusal };
  }

  get dirtyLog(): BackendDirtyLog | null {
    return this.has(wire.VHOST_USER_PROTOCOL_F_LOG_SHMFD) ? this.migration : null;
  }

  /** Whether a protocol feature (bit) was negotiated. */
  has(protocolFeature: number): boolean {
    return this.#calls.has(protocolFeature);
  }

  async #negotiate(): Promise<void> {
    const calls = this.#calls;
    const features = await calls.askU64(REQUEST.GET_FEATURES);
    this.#offersProtocolFeatures = (features & F_PROTOCOL_FEATURES) !== 0n;
    if (!this.#offersProtocolFeatures) return;
    const { protocolFeatures, events } = this.#options;
    const offered = await calls.askU64(REQUEST.GET_PROTOCOL_FEATURES);
    const acked = chooseProtocolFeatures(offered, protocolFeatures, events);
    calls.offeredProtocolFeatures = offered;
    await calls.tellU64(REQUEST.SET_PROTOCOL_FEATURES, acked);
    calls.protocolFeatures = acked;
    if (events === undefined || !this.has(wire.VHOST_USER_PROTOCOL_F_BACKEND_REQ)) return;
    await this.#openBackendChannel(events);
  }

  async #openBackendChannel(events: FrontendEvents): Promise<void> {
    const shmem = this.has(wire.VHOST_USER_PROTOCOL_F_SHMEM);
    const sizes = shmem ? await this.device.getShmemConfig() : [];
    const [ours, theirs] = socketPair();
    const owner = this.device;
    this.#backendChannel = new BackendChannelReceiver(ours, events, this.#calls, owner, sizes);
    try {
      await this.#calls.tell(REQUEST.SET_BACKEND_REQ_FD, undefined, [theirs.number]);
    } catch (error) {
      this.#backendChannel.close(); // the session may have ended before there was one to close
      throw error;
    } finally {
      theirs.close();
    }
  }

  /* Negotiation */

  async getFeatures(): Promise<bigint> {
    return (await this.#calls.askU64(REQUEST.GET_FEATURES)) & ~F_PROTOCOL_FEATURES;
  }

  async setFeatures(acked: bigint): Promise<void> {
    const own = this.#offersProtocolFeatures ? F_PROTOCOL_FEATURES : 0n;
    await this.#calls.tellU64(REQUEST.SET_FEATURES, acked | own);
    this.#calls.features = acked;
  }

  setOwner(): Promise<void> {
    return this.#calls.tell(REQUEST.SET_OWNER);
  }

  /** Deprecated by the specification; some back-ends disable all rings. */
  resetOwner(): Promise<void> {
    return this.#calls.tell(REQUEST.RESET_OWNER);
  }

  /** Vrings; without MQ one queue, the specification's minimum. */
  async getQueueNum(): Promise<number> {
    const unit = this.#options.vringsPerQueue ?? 1;
    if (!this.has(wire.VHOST_USER_PROTOCOL_F_MQ)) return unit;
    return Number(await this.#calls.askU64(REQUEST.GET_QUEUE_NUM)) * unit;
  }

  /** See `memory.setTable`. */
  setMemTable(regions: readonly BackendMemoryRegion[]): Promise<void> {
    return this.memory.setTable(regions);
  }

  /* Vrings */

  setVringNum(index: number, size: number): Promise<void> {
    return this.#calls.tellState(REQUEST.SET_VRING_NUM, index, size);
  }

  /**
   * `usedLogGpa`: where writes to the used ring are marked in the dirty log (VHOST_VRING_F_LOG,
   * only with VHOST_F_LOG_ALL acked); null: they are not.
   */
  setVringAddr(
    index: number,
    addresses: VringAddresses,
    usedLogGpa: bigint | null = null,
  ): Promise<void> {
    const log = {
      flags: usedLogGpa === null ? 0 : wire.VHOST_VRING_F_LOG,
      logGpa: usedLogGpa ?? 0n,
    };
    const payload = wire.VringAddr.encode({ index, ...addresses, ...log });
    return this.#calls.tell(REQUEST.SET_VRING_ADDR, payload);
  }

  setVringBase(index: number, base: number): Promise<void> {
    return this.#calls.tellState(REQUEST.SET_VRING_BASE, index, base);
  }

  async getVringBase(index: number): Promise<number> {
    const entry = REQUEST.GET_VRING_BASE;
    const { value } = await this.#calls.ask(entry, wire.VringState.encode({ index, num: 0 }));
    if (value.index === index) return value.num;
    throw this.#channel.failReply(entry.id, 'index', `${value.index}, expected ${index}`);
  }

  setVringKick(index: number, fd: number | null): Promise<void> {
    return this.#tellFd(REQUEST.SET_VRING_KICK, index, fd);
  }

  setVringCall(index: number, fd: number | null): Promise<void> {
    return this.#tellFd(REQUEST.SET_VRING_CALL, index, fd);
  }

  setVringErr(index: number, fd: number | null): Promise<void> {
    return this.#tellFd(REQUEST.SET_VRING_ERR, index, fd);
  }

  /** @throws VringError ERR_VRING_NOT_NEGOTIATED: without bit 30 a ring cannot be disabled. */
  async setVringEnable(index: number, enabled: boolean): Promise<void> {
    const entry = REQUEST.SET_VRING_ENABLE;
    if (!this.#offersProtocolFeatures) {
      if (enabled) return; // it is, since SET_FEATURES
      const problem = 'VHOST_USER_F_PROTOCOL_FEATURES is not offered';
      throw this.#calls.notNegotiated(entry.name, problem);
    }
    await this.#calls.tellState(entry, index, enabled ? 1 : 0);
  }

  /** Byte order of a legacy (pre-1.0) ring's numbers. @throws ERR_VRING_NOT_NEGOTIATED. */
  setVringEndian(index: number, bigEndian: boolean): Promise<void> {
    return this.#calls.tellState(REQUEST.SET_VRING_ENDIAN, index, bigEndian ? 1 : 0);
  }

  /** A kick in band, for a ring without a kick descriptor. @throws ERR_VRING_NOT_NEGOTIATED. */
  kickVring(index: number): Promise<void> {
    return this.#calls.tellState(REQUEST.VRING_KICK, index, 0);
  }

  /* Device */

  getConfig(offset: number, sizeBytes: number): Promise<Uint8Array> {
    return this.device.getConfig(offset, sizeBytes);
  }

  setConfig(offset: number, bytes: Uint8Array): Promise<void> {
    return this.device.setConfig(offset, bytes);
  }

  getStatus(): Promise<number> {
    return this.device.getStatus();
  }

  setStatus(status: number): Promise<void> {
    return this.device.setStatus(status);
  }

  setMtu(mtu: number): Promise<void> {
    return this.device.setMtu(mtu);
  }

  /**
   * RESET_DEVICE: rings are disabled, the device forgets its driver, shared memory is unmapped.
   * @throws VringError ERR_VRING_NOT_NEGOTIATED.
   */
  async resetDevice(): Promise<void> {
    await this.#calls.tell(REQUEST.RESET_DEVICE);
    this.#backendChannel?.deviceReset();
  }

  async close(): Promise<void> {
    this.#channel.close();
    await this.closed;
  }

  #tellFd(
    entry: Pick<MessageEntry<never>, 'id' | 'name' | 'needs' | 'needsVirtio'>,
    index: number,
    fd: number | null,
  ): Promise<void> {
    const noFd = fd === null ? wire.VHOST_USER_VRING_NOFD_MASK : 0n;
    const payload = wire.U64Payload.encode({ value: BigInt(index) | noFd });
    return this.#calls.tell(entry, payload, fd === null ? [] : [fd]);
  }
}

/** Waits for the first connection. */
async function acceptOne(listener: Fd, path: string, signal?: AbortSignal): Promise<Fd> {
  let wake = (): void => {};
  const poll = pollFd(listener.number, { read: true }, () => wake());
  const abort = (): void => wake();
  signal?.addEventListener('abort', abort);
  try {
    for (;;) {
      if (signal?.aborted) {
        const text = `${path}: the wait for a back-end was cancelled`;
        throw new VringError('ERR_VRING_CLOSED', text, { cause: signal.reason });
      }
      const socket = acceptUnix(listener.number);
      if (socket !== null) return socket;
      await new Promise<void>((resolve) => (wake = resolve));
    }
  } finally {
    signal?.removeEventListener('abort', abort);
    poll.close();
  }
}
