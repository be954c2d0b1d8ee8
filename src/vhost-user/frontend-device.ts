/**
 * What a front-end says to some kinds of device: configuration, status, MTU, crypto sessions,
 * shared objects, shared memory regions, the GPU's socket.
 */
import { VringError } from '../base/errors.ts';
import type { Fd } from '../sys/index.ts';
import {
  CONFIG_MIGRATION,
  CONFIG_WRITABLE,
  ConfigHeader,
  SharedObject,
  U64Payload,
  VHOST_USER_PROTOCOL_F_STATUS,
} from '../wire/vhost-user.ts';
import { closeFds } from './connection.ts';
import type { FrontendCalls } from './frontend-calls.ts';
import { REQUEST } from './message-table.ts';

export class FrontendDevice {
  readonly #calls: FrontendCalls;
  #status = 0;

  constructor(calls: FrontendCalls) {
    this.#calls = calls;
  }

  /** @throws VringError ERR_VRING_NOT_NEGOTIATED; ERR_VRING_CONFIG_RANGE: the device says no. */
  async getConfig(offset: number, sizeBytes: number): Promise<Uint8Array> {
    const entry = REQUEST.GET_CONFIG;
    const header = ConfigHeader.encode({ offset, sizeBytes, flags: CONFIG_WRITABLE });
    const payload = Buffer.concat([header, new Uint8Array(sizeBytes)]);
    const reply = await this.#calls.askRaw(entry, payload);
    closeFds(reply.fds);
    const { length } = reply.payload;
    if (length === 0) {
      const text = `the back-end has no configuration at ${offset} + ${sizeBytes} bytes`;
      throw new VringError('ERR_VRING_CONFIG_RANGE', text);
    }
    if (length !== payload.length) {
      const problem = `${length} bytes, expected ${payload.length}`;
      throw this.#calls.channel.failReply(entry.id, 'size', problem);
    }
    return reply.payload.slice(ConfigHeader.size);
  }

  /** `migration`: not the driver writes, but the state of a device that moved comes in. */
  async setConfig(offset: number, bytes: Uint8Array, migration = false): Promise<void> {
    const flags = migration ? CONFIG_MIGRATION : CONFIG_WRITABLE;
    const header = ConfigHeader.encode({ offset, sizeBytes: bytes.length, flags });
    await this.#calls.tell(REQUEST.SET_CONFIG, Buffer.concat([header, bytes]));
  }

  /** Without STATUS the back-end knows none: what was set here. */
  async getStatus(): Promise<number> {
    if (!this.#calls.has(VHOST_USER_PROTOCOL_F_STATUS)) return this.#status;
    return Number(await this.#calls.askU64(REQUEST.GET_STATUS));
  }

  async setStatus(status: number): Promise<void> {
    this.#status = status;
    if (!this.#calls.has(VHOST_USER_PROTOCOL_F_STATUS)) return;
    await this.#calls.tellU64(REQUEST.SET_STATUS, BigInt(status));
  }

  /** NET_SET_MTU: bytes of IP in one frame. @throws VringError ERR_VRING_NOT_NEGOTIATED. */
  setMtu(mtu: number): Promise<void> {
    return this.#calls.tellU64(REQUEST.NET_SET_MTU, BigInt(mtu));
  }

  /**
   * CREATE_CRYPTO_SESSION. The layout of the parameters is the device's, in both directions: what
   * comes back is theirs with the session's id filled in.
   */
  async createCryptoSession(parameters: Uint8Array): Promise<Uint8Array> {
    return (await this.#calls.ask(REQUEST.CREATE_CRYPTO_SESSION, parameters)).value;
  }

  closeCryptoSession(id: bigint): Promise<void> {
    return this.#calls.tellU64(REQUEST.CLOSE_CRYPTO_SESSION, id);
  }

  /** GET_SHARED_OBJECT: the object's fd, which is the caller's; null: the back-end has it not. */
  async getSharedObject(uuid: Uint8Array): Promise<Fd | null> {
    return (await this.#calls.ask(REQUEST.GET_SHARED_OBJECT, SharedObject.encode({ uuid }))).fd;
  }

  /** GET_SHMEM_CONFIG: size in bytes of each shared memory region, by its id; 0 for none. */
  async getShmemConfig(): Promise<readonly bigint[]> {
    return (await this.#calls.ask(REQUEST.GET_SHMEM_CONFIG)).value.sizes;
  }

  /** GPU_SET_SOCKET: the socket on which vhost-user-gpu speaks. The fd stays the caller's. */
  setGpuSocket(socket: number): Promise<void> {
    const payload = U64Payload.encode({ value: 0n });
    return this.#calls.tell(REQUEST.GPU_SET_SOCKET, payload.subarray(0, 0), [socket]);
  }
}
