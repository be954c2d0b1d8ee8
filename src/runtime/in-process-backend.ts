/**
 * The first contract over the second one, without a socket between: a front-end drives a device
 * that its own process hosts.
 *
 * What a vhost-user session does with its messages is done here with the same functions
 * (vhost-user/backend-handlers.ts and its siblings): memory is mapped from the fds, ring addresses
 * are translated and checked, rings start when they are complete. So a device cannot tell this
 * from a socket, and a front-end is judged as a stranger is. What differs is the way: calls
 * instead of messages, one after the other, and misses of the IOTLB are calls, too.
 *
 * With a `LocalRunner` the device works in the front-end's own thread (`inThread`).
 */
import { ProtocolError, VringError } from '../base/errors.ts';
import type {
  BackendDirtyLog,
  BackendIotlb,
  BackendMemoryRegion,
  InThreadDevice,
  VhostBackend,
  VringAddresses,
} from '../base/vhost-backend.ts';
import { dupFd, type Fd } from '../sys/index.ts';
import { SessionContext } from '../vhost-user/backend-context.ts';
import * as handlers from '../vhost-user/backend-handlers.ts';
import { type ChannelContext, ChannelRequests } from '../vhost-user/channel-requests.ts';
import { iotlbMessage, setLogBase } from '../vhost-user/migration-handlers.ts';
import type { BackendTarget } from '../vhost-user/index.ts';
import { IOTLB_ACCESS_RO, IOTLB_INVALIDATE, IOTLB_UPDATE } from '../wire/vhost-user-parse.ts';
import {
  VHOST_F_LOG_ALL,
  VHOST_USER_F_PROTOCOL_FEATURES,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_STATUS,
  VHOST_VRING_F_LOG,
  VringState,
} from '../wire/vhost-user.ts';
import { featureSet, hasFeature, VIRTIO_F_ACCESS_PLATFORM } from '../wire/virtio.ts';
import type { LocalRunner } from './local-runner.ts';

/** What the device says to its front-end. */
export type InProcessEvents = {
  /** To be answered by `iotlb.update`, some time; not from within the call. */
  readonly iotlbMiss?: (iova: bigint, write: boolean) => void;
  readonly configChanged?: () => void;
};

export type InProcessOptions = {
  /** `in-process:tap0` */
  readonly description: string;
  readonly target: BackendTarget;
  readonly events?: InProcessEvents;
  /** What runs the device in this thread; without it kicks are signals to whoever runs it. */
  readonly runner?: LocalRunner;
  /** Called once behind the end: closes what is behind the target. */
  readonly release?: () => Promise<void>;
};

/** What means something without a socket, out of what the target offers. */
const PROTOCOL_FEATURES = featureSet(
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_STATUS,
);
/** With it rings are enabled one by one. */
const ENABLES = featureSet(VHOST_USER_F_PROTOCOL_FEATURES);

export class InProcessBackend implements VhostBackend {
  readonly description: string;
  readonly restartsWhole = false;
  readonly iotlb: BackendIotlb | null;
  readonly dirtyLog: BackendDirtyLog | null;
  readonly closed: Promise<Error | null>;
  readonly inThread?: InThreadDevice;
  readonly #options: InProcessOptions;
  readonly #context: SessionContext;
  readonly #end = Promise.withResolvers<Error | null>();
  /** Calls are carried out one after the other. */
  #queue: Promise<unknown> = Promise.resolve();
  #ended = false;

  /** Begins a session with the target, which has none. @throws VringError of the target. */
  static async open(options: InProcessOptions): Promise<InProcessBackend> {
    const backend = new InProcessBackend(options);
    try {
      await backend.#begin();
      return backend;
    } catch (error) {
      await backend.close();
      throw error;
    }
  }

  private constructor(options: InProcessOptions) {
    const { target, events = {}, runner } = options;
    this.#options = options;
    this.description = options.description;
    const requests = (context: ChannelContext) => new DirectRequests(context, events);
    this.#context = new SessionContext(target, requests);
    this.closed = this.#end.promise;
    const platform = hasFeature(target.features, VIRTIO_F_ACCESS_PLATFORM);
    this.iotlb = platform ? this.#makeIotlb() : null;
    const logs = hasFeature(this.#context.offeredFeatures, VHOST_F_LOG_ALL);
    this.dirtyLog = logs ? { setLogBase: (fd, size) => this.#setLogBase(fd, size) } : null;
    if (runner === undefined) return;
    const { vrings } = this.#context;
    this.inThread = {
      kicked: (index) => {
        const kick = vrings.all[index]?.fds.kick;
        if (kick != null) runner.kicked(kick.number);
      },
      turn: () => runner.turn(),
    };
  }

  async #begin(): Promise<void> {
    const context = this.#context;
    context.target.sessionOpened?.(context.requests);
    const acked = context.offeredProtocolFeatures & PROTOCOL_FEATURES;
    await this.#tell(handlers.setProtocolFeatures, acked);
  }

  /* Negotiation */

  async getFeatures(): Promise<bigint> {
    return this.#context.offeredFeatures & ~ENABLES;
  }

  setFeatures(acked: bigint): Promise<void> {
    return this.#tell(handlers.setFeatures, acked | ENABLES);
  }

  setOwner(): Promise<void> {
    return this.#tell(handlers.setOwner, null);
  }

  async getQueueNum(): Promise<number> {
    return this.#context.target.queueCount;
  }

  setMemTable(regions: readonly BackendMemoryRegion[]): Promise<void> {
    const lent = regions.map(({ fd }) => fd);
    return this.#tell(handlers.setMemTable, regions, lent);
  }

  /* Vrings */

  setVringNum(index: number, size: number): Promise<void> {
    return this.#tell(handlers.setVringNum, { index, num: size });
  }

  setVringAddr(
    index: number,
    addresses: VringAddresses,
    usedLogGpa: bigint | null = null,
  ): Promise<void> {
    const flags = usedLogGpa === null ? 0 : VHOST_VRING_F_LOG;
    const addr = { index, flags, ...addresses, logGpa: usedLogGpa ?? 0n };
    return this.#tell(handlers.setVringAddr, addr);
  }

  setVringBase(index: number, base: number): Promise<void> {
    return this.#tell(handlers.setVringBase, { index, num: base });
  }

  getVringBase(index: number): Promise<number> {
    return this.#serially(async () => {
      const answer = await this.#handle(handlers.getVringBase, { index, num: 0 });
      return VringState.decode(answer as Uint8Array).num;
    });
  }

  setVringKick(index: number, fd: number | null): Promise<void> {
    return this.#tell(handlers.setVringKick, { index, hasFd: fd !== null }, fds(fd));
  }

  setVringCall(index: number, fd: number | null): Promise<void> {
    return this.#tell(handlers.setVringCall, { index, hasFd: fd !== null }, fds(fd));
  }

  setVringErr(index: number, fd: number | null): Promise<void> {
    return this.#tell(handlers.setVringErr, { index, hasFd: fd !== null }, fds(fd));
  }

  setVringEnable(index: number, enabled: boolean): Promise<void> {
    return this.#tell(handlers.setVringEnable, { index, enabled });
  }

  /* Device */

  async getConfig(offset: number, sizeBytes: number): Promise<Uint8Array> {
    const bytes = this.#context.target.getConfig(offset, sizeBytes);
    if (bytes !== null) return bytes;
    throw this.#configRange(offset, sizeBytes, 'is outside the configuration space');
  }

  async setConfig(offset: number, bytes: Uint8Array): Promise<void> {
    if (this.#context.target.setConfig(offset, bytes, 0)) return;
    throw this.#configRange(offset, bytes.length, 'cannot be written by a driver');
  }

  async getStatus(): Promise<number> {
    return this.#context.target.getStatus();
  }

  setStatus(status: number): Promise<void> {
    return this.#serially(() => this.#context.target.setStatus(status));
  }

  /** The plane behind the target is gone: so is the back-end. */
  async fail(reason: Error): Promise<void> {
    await this.#finish(reason);
  }

  async close(): Promise<void> {
    await this.#finish(null);
  }

  async #finish(reason: Error | null): Promise<void> {
    if (!this.#ended) {
      this.#ended = true;
      const done = this.#queue.then(() => this.#letGo(reason));
      this.#queue = done;
    }
    await this.closed;
  }

  /** As a session ends: first nobody waits, then the target lets go, then all is closed. */
  async #letGo(reason: Error | null): Promise<void> {
    const context = this.#context;
    let error = reason;
    context.disconnect();
    try {
      await context.target.sessionClosed(reason);
    } catch (thrown) {
      error ??= thrown as Error;
    }
    context.close();
    try {
      await this.#options.release?.();
    } catch (thrown) {
      error ??= thrown as Error;
    }
    this.#end.resolve(error);
  }

  #makeIotlb(): BackendIotlb {
    return {
      asks: true,
      update: (mapping) => this.#tell(iotlbMessage, { ...mapping, type: IOTLB_UPDATE }),
      invalidate: (iova, sizeBytes) => {
        const range = { iova, sizeBytes, userAddr: 0n, permissions: 0 };
        return this.#tell(iotlbMessage, { ...range, type: IOTLB_INVALIDATE });
      },
    };
  }

  #setLogBase(fd: number, sizeBytes: number): Promise<void> {
    return this.#tell(setLogBase, { sizeBytes: BigInt(sizeBytes), fdOffset: 0n }, [fd]);
  }

  /** A call without an answer. The fds are duplicated; what the handler keeps is the session's. */
  #tell<T>(
    handler: handlers.Handler<T>,
    value: NoInfer<T>,
    lent: readonly number[] = [],
  ): Promise<void> {
    return this.#serially(async () => void (await this.#handle(handler, value, lent)));
  }

  async #handle<T>(
    handler: handlers.Handler<T>,
    value: T,
    lent: readonly number[] = [],
  ): Promise<handlers.HandlerResult> {
    const own: Fd[] = [];
    try {
      for (const fd of lent) own.push(dupFd(fd, 'of a front-end in this process'));
      const result = await handler(this.#context, { request: this.description, value, fds: own });
      if (result instanceof ProtocolError) throw result;
      return result;
    } catch (error) {
      throw error instanceof ProtocolError ? this.#refusal(error) : error;
    } finally {
      for (const fd of own) fd.close();
    }
  }

  #serially<T>(work: () => Promise<T>): Promise<T> {
    if (this.#ended) {
      const text = `${this.description} is closed`;
      return Promise.reject(new VringError('ERR_VRING_CLOSED', text, { recovery: 'reconnect' }));
    }
    const done = this.#queue.then(work);
    this.#queue = done.catch(() => undefined);
    return done;
  }

  /** There was no message that could be named. */
  #refusal(error: ProtocolError): VringError {
    const what = error.message.slice(error.request.length + ': '.length);
    return new VringError(error.code, `${this.description}: ${what}`, { cause: error });
  }

  #configRange(offset: number, sizeBytes: number, problem: string): VringError {
    const range = `bytes ${offset} to ${offset + sizeBytes} of the configuration`;
    return new VringError('ERR_VRING_CONFIG_RANGE', `${this.description}: ${range}: ${problem}`);
  }
}

/** What a target asks of a front-end in this process: two things; the others need a channel. */
class DirectRequests extends ChannelRequests {
  readonly #events: InProcessEvents;

  constructor(context: ChannelContext, events: InProcessEvents) {
    super(context);
    this.#events = events;
  }

  override can(protocolFeature: number): boolean {
    if (protocolFeature === VHOST_USER_PROTOCOL_F_CONFIG) {
      return this.#events.configChanged !== undefined;
    }
    return super.can(protocolFeature);
  }

  override async configChanged(): Promise<void> {
    this.#events.configChanged?.();
  }

  override sendMiss(iova: number, permissions: number): boolean {
    if (this.#events.iotlbMiss === undefined) return false;
    this.#events.iotlbMiss(BigInt(iova), permissions !== IOTLB_ACCESS_RO);
    return true;
  }
}

function fds(fd: number | null): readonly number[] {
  return fd === null ? [] : [fd];
}
