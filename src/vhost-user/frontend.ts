/**
 * The front-end's side of vhost-user: drives a back-end in another process, as a VMM does.
 *
 * The connection is negotiated before the constructor's caller gets it. Bit 30 and the protocol
 * features are this transport's own affair and do not show in `getFeatures` and `setFeatures`.
 * Messages without a reply of their own are acked where REPLY_ACK was negotiated, so that a
 * refusal is an error of the call that caused it; without REPLY_ACK a back-end that refuses
 * closes the connection, which the next call sees.
 */
import { rmSync } from 'node:fs';
import { VringError } from '../base/errors.ts';
import { MAX_MEM_SLOTS } from '../base/limits.ts';
import type { BackendMemoryRegion, VhostBackend, VringAddresses } from '../base/vhost-backend.ts';
import { acceptUnix, connectUnix, type Fd, listenUnix, pollFd } from '../sys/index.ts';
import * as wire from '../wire/vhost-user.ts';
import { FrontendChannel } from './frontend-channel.ts';
import { CALL_TIMEOUT_MS } from './limits.ts';
import { requestName } from './message-table.ts';

const bit = (n: number): bigint => 1n << BigInt(n);
const F_PROTOCOL_FEATURES = bit(wire.VHOST_USER_F_PROTOCOL_FEATURES);

/** Protocol features that this front-end can use. */
export const FRONTEND_PROTOCOL_FEATURES =
  bit(wire.VHOST_USER_PROTOCOL_F_MQ) |
  bit(wire.VHOST_USER_PROTOCOL_F_REPLY_ACK) |
  bit(wire.VHOST_USER_PROTOCOL_F_MTU) |
  bit(wire.VHOST_USER_PROTOCOL_F_CONFIG) |
  bit(wire.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS) |
  bit(wire.VHOST_USER_PROTOCOL_F_STATUS);

export type FrontendOptions = {
  /** How long a call may take. Default CALL_TIMEOUT_MS; ERR_VRING_TIMEOUT ends the session. */
  readonly timeoutMs?: number;
  /** Protocol features to use at most. Default: all that are implemented. */
  readonly protocolFeatures?: bigint;
  /** Vrings for each unit of GET_QUEUE_NUM: 2 for net, whose back-ends count pairs. Default 1. */
  readonly vringsPerQueue?: number;
};

export type FrontendListenOptions = FrontendOptions & {
  readonly mode?: number;
  /** Ends the wait for a back-end. */
  readonly signal?: AbortSignal;
};

const NOTHING = new Uint8Array(0);

export class VhostUserFrontend implements VhostBackend {
  readonly description: string;
  readonly closed: Promise<Error | null>;
  readonly #channel: FrontendChannel;
  readonly #options: FrontendOptions;
  #offersProtocolFeatures = false;
  #protocolFeatures = 0n;
  /** Regions that the back-end has, however they went. */
  #shared: readonly BackendMemoryRegion[] = [];
  #status = 0;

  private constructor(socket: Fd, description: string, options: FrontendOptions) {
    this.description = description;
    this.#options = options;
    this.#channel = new FrontendChannel(socket, options.timeoutMs ?? CALL_TIMEOUT_MS);
    this.closed = this.#channel.closed;
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
    return this.#protocolFeatures;
  }

  async #negotiate(): Promise<void> {
    const features = await this.#askU64(wire.VHOST_USER_GET_FEATURES);
    this.#offersProtocolFeatures = (features & F_PROTOCOL_FEATURES) !== 0n;
    if (!this.#offersProtocolFeatures) return;
    const offered = await this.#askU64(wire.VHOST_USER_GET_PROTOCOL_FEATURES);
    const wanted = this.#options.protocolFeatures ?? FRONTEND_PROTOCOL_FEATURES;
    const acked = offered & wanted & FRONTEND_PROTOCOL_FEATURES;
    await this.#tellU64(wire.VHOST_USER_SET_PROTOCOL_FEATURES, acked);
    this.#protocolFeatures = acked;
  }

  /* Negotiation */

  async getFeatures(): Promise<bigint> {
    return (await this.#askU64(wire.VHOST_USER_GET_FEATURES)) & ~F_PROTOCOL_FEATURES;
  }

  setFeatures(acked: bigint): Promise<void> {
    const own = this.#offersProtocolFeatures ? F_PROTOCOL_FEATURES : 0n;
    return this.#tellU64(wire.VHOST_USER_SET_FEATURES, acked | own);
  }

  setOwner(): Promise<void> {
    return this.#tell(wire.VHOST_USER_SET_OWNER, NOTHING);
  }

  /** Vrings; without MQ one queue, the specification's minimum. */
  async getQueueNum(): Promise<number> {
    const unit = this.#options.vringsPerQueue ?? 1;
    if (!this.#has(wire.VHOST_USER_PROTOCOL_F_MQ)) return unit;
    return Number(await this.#askU64(wire.VHOST_USER_GET_QUEUE_NUM)) * unit;
  }

  /* Memory */

  /**
   * Up to eight regions go in one SET_MEM_TABLE; more need CONFIGURE_MEM_SLOTS and go one by one:
   * those that are not wanted any more are removed, then those that are new are added.
   * @throws VringError ERR_VRING_MEMORY_SLOTS when the back-end cannot take that many.
   */
  async setMemTable(regions: readonly BackendMemoryRegion[]): Promise<void> {
    if (regions.length <= wire.VHOST_MEMORY_BASELINE_NREGIONS) {
      const header = wire.MemoryTableHeader.encode({ count: regions.length, padding: 0 });
      const payload = Buffer.concat([header, ...regions.map((r) => wire.MemoryRegion.encode(r))]);
      const fds = regions.map((region) => region.fd);
      await this.#tell(wire.VHOST_USER_SET_MEM_TABLE, payload, fds);
      this.#shared = [...regions];
      return;
    }
    const slots = await this.#maxMemSlots();
    if (regions.length > slots) {
      const text = `${this.description} takes ${slots} memory regions, ${regions.length} are due`;
      throw new VringError('ERR_VRING_MEMORY_SLOTS', text);
    }
    for (const old of this.#shared) {
      if (regions.some((region) => sameRegion(region, old))) continue;
      await this.#tell(wire.VHOST_USER_REM_MEM_REG, singleRegion(old));
      this.#shared = this.#shared.filter((region) => region !== old);
    }
    for (const region of regions) {
      if (this.#shared.some((old) => sameRegion(region, old))) continue;
      await this.#tell(wire.VHOST_USER_ADD_MEM_REG, singleRegion(region), [region.fd]);
      this.#shared = [...this.#shared, region];
    }
  }

  async #maxMemSlots(): Promise<number> {
    if (!this.#has(wire.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS)) {
      return wire.VHOST_MEMORY_BASELINE_NREGIONS;
    }
    const slots = await this.#askU64(wire.VHOST_USER_GET_MAX_MEM_SLOTS);
    return slots > BigInt(MAX_MEM_SLOTS) ? MAX_MEM_SLOTS : Number(slots);
  }

  /* Vrings */

  setVringNum(index: number, size: number): Promise<void> {
    return this.#tellState(wire.VHOST_USER_SET_VRING_NUM, index, size);
  }

  setVringAddr(index: number, addresses: VringAddresses): Promise<void> {
    const payload = wire.VringAddr.encode({ index, flags: 0, ...addresses, logGpa: 0n });
    return this.#tell(wire.VHOST_USER_SET_VRING_ADDR, payload);
  }

  setVringBase(index: number, base: number): Promise<void> {
    return this.#tellState(wire.VHOST_USER_SET_VRING_BASE, index, base);
  }

  async getVringBase(index: number): Promise<number> {
    const request = wire.VHOST_USER_GET_VRING_BASE;
    const reply = await this.#channel.ask(request, wire.VringState.encode({ index, num: 0 }));
    if (reply.length !== wire.VringState.size) {
      throw this.#badReply(request, 'size', `${reply.length} bytes, expected 8`);
    }
    const state = wire.VringState.decode(reply);
    if (state.index === index) return state.num;
    throw this.#badReply(request, 'index', `${state.index}, expected ${index}`);
  }

  setVringKick(index: number, fd: number | null): Promise<void> {
    return this.#tellFd(wire.VHOST_USER_SET_VRING_KICK, index, fd);
  }

  setVringCall(index: number, fd: number | null): Promise<void> {
    return this.#tellFd(wire.VHOST_USER_SET_VRING_CALL, index, fd);
  }

  setVringErr(index: number, fd: number | null): Promise<void> {
    return this.#tellFd(wire.VHOST_USER_SET_VRING_ERR, index, fd);
  }

  /** @throws VringError ERR_VRING_NOT_NEGOTIATED: without bit 30 a ring cannot be disabled. */
  async setVringEnable(index: number, enabled: boolean): Promise<void> {
    if (!this.#offersProtocolFeatures) {
      if (enabled) return; // it is, since SET_FEATURES
      throw this.#notNegotiated('VHOST_USER_SET_VRING_ENABLE', 'VHOST_USER_F_PROTOCOL_FEATURES');
    }
    await this.#tellState(wire.VHOST_USER_SET_VRING_ENABLE, index, enabled ? 1 : 0);
  }

  /* Device */

  /** @throws VringError ERR_VRING_NOT_NEGOTIATED; ERR_VRING_CONFIG_RANGE: the device says no. */
  async getConfig(offset: number, sizeBytes: number): Promise<Uint8Array> {
    const request = wire.VHOST_USER_GET_CONFIG;
    this.#demand(request, wire.VHOST_USER_PROTOCOL_F_CONFIG);
    const header = wire.ConfigHeader.encode({ offset, sizeBytes, flags: wire.CONFIG_WRITABLE });
    const payload = Buffer.concat([header, new Uint8Array(sizeBytes)]);
    const reply = await this.#channel.ask(request, payload);
    if (reply.length === 0) {
      const text = `the back-end has no configuration at ${offset} + ${sizeBytes} bytes`;
      throw new VringError('ERR_VRING_CONFIG_RANGE', text);
    }
    if (reply.length !== payload.length) {
      throw this.#badReply(request, 'size', `${reply.length} bytes, expected ${payload.length}`);
    }
    return reply.slice(wire.ConfigHeader.size);
  }

  async setConfig(offset: number, bytes: Uint8Array): Promise<void> {
    this.#demand(wire.VHOST_USER_SET_CONFIG, wire.VHOST_USER_PROTOCOL_F_CONFIG);
    const sizeBytes = bytes.length;
    const header = wire.ConfigHeader.encode({ offset, sizeBytes, flags: wire.CONFIG_WRITABLE });
    await this.#tell(wire.VHOST_USER_SET_CONFIG, Buffer.concat([header, bytes]));
  }

  /** Without STATUS the back-end knows none: what was set here. */
  async getStatus(): Promise<number> {
    if (!this.#has(wire.VHOST_USER_PROTOCOL_F_STATUS)) return this.#status;
    return Number(await this.#askU64(wire.VHOST_USER_GET_STATUS));
  }

  async setStatus(status: number): Promise<void> {
    this.#status = status;
    if (!this.#has(wire.VHOST_USER_PROTOCOL_F_STATUS)) return;
    await this.#tellU64(wire.VHOST_USER_SET_STATUS, BigInt(status));
  }

  /** Bytes of IP in one frame. @throws VringError ERR_VRING_NOT_NEGOTIATED. */
  async setMtu(mtu: number): Promise<void> {
    this.#demand(wire.VHOST_USER_NET_SET_MTU, wire.VHOST_USER_PROTOCOL_F_MTU);
    await this.#tellU64(wire.VHOST_USER_NET_SET_MTU, BigInt(mtu));
  }

  async close(): Promise<void> {
    this.#channel.close();
    await this.closed;
  }

  /* How they are sent */

  #has(feature: number): boolean {
    return (this.#protocolFeatures & bit(feature)) !== 0n;
  }

  async #askU64(request: number): Promise<bigint> {
    return this.#channel.readU64(request, await this.#channel.ask(request, NOTHING));
  }

  #tell(request: number, payload: Uint8Array, fds: readonly number[] = []): Promise<void> {
    const ack = this.#has(wire.VHOST_USER_PROTOCOL_F_REPLY_ACK);
    return this.#channel.tell(request, payload, fds, ack);
  }

  #tellU64(request: number, value: bigint): Promise<void> {
    return this.#tell(request, wire.U64Payload.encode({ value }));
  }

  #tellState(request: number, index: number, num: number): Promise<void> {
    return this.#tell(request, wire.VringState.encode({ index, num }));
  }

  #tellFd(request: number, index: number, fd: number | null): Promise<void> {
    const noFd = fd === null ? wire.VHOST_USER_VRING_NOFD_MASK : 0n;
    const payload = wire.U64Payload.encode({ value: BigInt(index) | noFd });
    return this.#tell(request, payload, fd === null ? [] : [fd]);
  }

  #demand(request: number, feature: number): void {
    if (this.#has(feature)) return;
    const name = wire.PROTOCOL_FEATURE_NAMES[feature];
    throw this.#notNegotiated(requestName(request), `VHOST_USER_PROTOCOL_F_${name}`);
  }

  #notNegotiated(request: string, feature: string): VringError {
    const text = `${request}: ${this.description} does not offer ${feature}`;
    return new VringError('ERR_VRING_NOT_NEGOTIATED', text);
  }

  #badReply(request: number, field: string, problem: string): Error {
    return this.#channel.failReply(request, field, problem);
  }
}

function singleRegion(region: BackendMemoryRegion): Uint8Array {
  return wire.SingleMemoryRegion.encode({ padding: 0n, ...region });
}

function sameRegion(a: BackendMemoryRegion, b: BackendMemoryRegion): boolean {
  const { guestPhysAddr, userAddr, sizeBytes, fdOffset } = a;
  return (
    guestPhysAddr === b.guestPhysAddr &&
    userAddr === b.userAddr &&
    sizeBytes === b.sizeBytes &&
    fdOffset === b.fdOffset &&
    a.fd === b.fd
  );
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
