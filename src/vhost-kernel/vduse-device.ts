/**
 * /dev/vduse/NAME: one device of the kernel's vDPA bus that this process serves. linux/vduse.h,
 * drivers/vdpa/vdpa_user/vduse_dev.c.
 *
 * The kernel asks by requests that are read here and answered by a write: whoever caused one waits
 * in the kernel until it is answered, and after `msg_timeout` (30 s) the kernel calls the device
 * broken for good. What the driver set up is not told but looked up, queue by queue.
 */
import { VringError } from '../base/errors.ts';
import {
  EAGAIN,
  errnoName,
  Fd,
  ioctlBytes,
  openDeviceNode,
  pollFd,
  type Poll,
  readBytes,
  sysError,
  writeBytes,
} from '../sys/index.ts';
import type { Ioctl } from '../wire/ioctl.ts';
import * as vduse from '../wire/vduse.ts';
import { KernelDevice } from './kernel-device.ts';
import { VDUSE_REMEDY } from './vduse-control.ts';
import { checkVduseName } from './vduse-features.ts';
import { baseOfState, stateOfBase } from './vduse-state.ts';

/** What the driver made of a queue; addresses are IOVAs. */
export type VduseQueueInfo = {
  readonly size: number;
  readonly descIova: bigint;
  readonly driverIova: bigint;
  readonly deviceIova: bigint;
  /** Where the driver has it begin, in vhost's encoding. Not where it is now. */
  readonly base: number;
  readonly ready: boolean;
};

/** A piece of I/O virtual memory, and the file that it is in. The fd is the caller's. */
export type VduseMapping = {
  readonly start: bigint;
  /** Inclusive. */
  readonly last: bigint;
  /** Of `start` in the file. */
  readonly fdOffset: bigint;
  /** Bit 0 read, bit 1 write. */
  readonly permissions: number;
  readonly fd: Fd;
};

export type VduseRequest =
  | { readonly kind: 'queue-state'; readonly id: number; readonly index: number }
  | { readonly kind: 'status'; readonly id: number; readonly status: number }
  | { readonly kind: 'update-iotlb'; readonly id: number; readonly start: bigint; last: bigint }
  | { readonly kind: 'unknown'; readonly id: number; readonly type: number };

/** What a host drives: a VDUSE device, or a test's. */
export interface VduseChannel {
  readonly name: string;
  /** `StartVring.call` of a ring whose calls are injected interrupts. Lent. */
  readonly callFd: Fd;
  /** What the driver wrote; read it when it says FEATURES_OK. */
  driverFeatures(): bigint;
  queueInfo(index: number, packed: boolean): VduseQueueInfo;
  /** Null: nobody listens; the kernel then notes a kick. The fd may be closed afterwards. */
  setKick(index: number, kick: Fd | null): void;
  /** False: the driver is not at DRIVER_OK, so that nothing was injected. */
  injectInterrupt(index: number): boolean;
  setConfig(offset: number, bytes: Uint8Array): void;
  /** As `injectInterrupt`. */
  injectConfigInterrupt(): boolean;
  /** The first mapping that has an address of [start, last]; null: there is none. */
  mapping(start: bigint, last: bigint): VduseMapping | null;
  /** Size of the bounce buffer, if our memory may take its place now; else 0. */
  bounceBytes(): number;
  /** Our memory is the bounce buffer from now on. */
  registerMemory(hostAddr: bigint, sizeBytes: number): void;
  /** Undoes `registerMemory`; what the driver uses of it is copied back. */
  unregisterMemory(sizeBytes: number): void;
  /** The next request; null: none waits. */
  receive(): VduseRequest | null;
  /** False: the asker waits no more. */
  answer(request: VduseRequest, ok: boolean, state?: { base: number; packed: boolean }): boolean;
  /** Calls `onReady` while requests wait, and when the device is gone: `receive` then throws. */
  watch(onReady: () => void): Poll;
  close(): void;
}

/** -1 as an unsigned 64-bit number: the last address there is. */
export const LAST_IOVA = 0xffff_ffff_ffff_ffffn;

export class VduseDevice implements VduseChannel {
  readonly name: string;
  readonly callFd: Fd;
  readonly #device: KernelDevice;
  readonly #path: string;
  readonly #message = new Uint8Array(vduse.VduseDevRequest.size);

  /**
   * @throws VringError ERR_VRING_VDUSE_BUSY: another process serves it; ERR_VRING_DEVICE_*.
   */
  static open(name: string): VduseDevice {
    checkVduseName(name);
    const path = `/dev/vduse/${name}`;
    try {
      return new VduseDevice(name, openDeviceNode(path, VDUSE_REMEDY));
    } catch (cause) {
      if (!(cause instanceof VringError) || cause.code !== 'ERR_VRING_DEVICE_BUSY') throw cause;
      const text =
        `VDUSE device ${name} is served by another process; end that one first, ` +
        'or take another name';
      throw new VringError('ERR_VRING_VDUSE_BUSY', text, { cause, recovery: 'retry' });
    }
  }

  /** Takes the descriptor over. */
  constructor(name: string, fd: Fd) {
    this.name = name;
    this.callFd = fd;
    this.#path = fd.what;
    this.#device = new KernelDevice(fd.what, fd);
  }

  /** Once, before it is added to the vdpa bus: that asks for all queues to be set up. */
  setupQueue(index: number, maxSize: number): void {
    const reserved = new Uint8Array(26);
    this.#set(vduse.VDUSE_IOCTL.VQ_SETUP, vduse.VduseVqConfig.encode({ index, maxSize, reserved }));
  }

  /** Does the device have this queue? */
  hasQueue(index: number): boolean {
    return this.#call(vduse.VDUSE_IOCTL.VQ_GET_INFO, queueQuestion(index), 'EINVAL') >= 0;
  }

  driverFeatures(): bigint {
    const argument = new Uint8Array(8);
    this.#set(vduse.VDUSE_IOCTL.DEV_GET_FEATURES, argument);
    return new DataView(argument.buffer).getBigUint64(0, true);
  }

  queueInfo(index: number, packed: boolean): VduseQueueInfo {
    const argument = queueQuestion(index);
    this.#set(vduse.VDUSE_IOCTL.VQ_GET_INFO, argument);
    const info = vduse.VduseVqInfo.decode(argument);
    return {
      size: info.num,
      descIova: info.descAddr,
      driverIova: info.driverAddr,
      deviceIova: info.deviceAddr,
      base: baseOfState(info.state, packed),
      ready: info.ready !== 0,
    };
  }

  setKick(index: number, kick: Fd | null): void {
    const fd = kick?.number ?? vduse.VDUSE_EVENTFD_DEASSIGN;
    this.#set(vduse.VDUSE_IOCTL.VQ_SETUP_KICKFD, vduse.VduseVqEventfd.encode({ index, fd }));
  }

  injectInterrupt(index: number): boolean {
    const argument = new Uint8Array(4);
    new DataView(argument.buffer).setUint32(0, index, true);
    return this.#call(vduse.VDUSE_IOCTL.VQ_INJECT_IRQ, argument, 'EINVAL') >= 0;
  }

  setConfig(offset: number, bytes: Uint8Array): void {
    const { size } = vduse.VduseConfigData;
    const argument = new Uint8Array(size + bytes.length);
    vduse.VduseConfigData.write(new DataView(argument.buffer), 0, { offset, length: bytes.length });
    argument.set(bytes, size);
    this.#set(vduse.VDUSE_IOCTL.DEV_SET_CONFIG, argument);
  }

  injectConfigInterrupt(): boolean {
    const none = new Uint8Array(4);
    return this.#call(vduse.VDUSE_IOCTL.DEV_INJECT_CONFIG_IRQ, none, 'EINVAL') >= 0;
  }

  mapping(start: bigint, last: bigint): VduseMapping | null {
    const argument = vduse.VduseIotlbEntry.encode({
      offset: 0n,
      start,
      last,
      perm: 0,
      padding: new Uint8Array(7),
    });
    const number = this.#call(vduse.VDUSE_IOCTL.IOTLB_GET_FD, argument, 'EINVAL');
    if (number < 0) return null;
    const entry = vduse.VduseIotlbEntry.decode(argument);
    const fd = new Fd(number, `memory of ${this.#path}`);
    const { offset: fdOffset, perm: permissions } = entry;
    return { start: entry.start, last: entry.last, fdOffset, permissions, fd };
  }

  bounceBytes(): number {
    const argument = vduse.VduseIovaInfo.encode({
      start: 0n,
      last: 0n,
      capability: 0n,
      reserved: new Uint8Array(24),
    });
    if (this.#call(vduse.VDUSE_IOCTL.IOTLB_GET_INFO, argument, 'EINVAL') < 0) return 0;
    const { start, last, capability } = vduse.VduseIovaInfo.decode(argument);
    const may = start === 0n && (capability & BigInt(vduse.VDUSE_IOVA_CAP_UMEM)) !== 0n;
    return may ? Number(last) + 1 : 0;
  }

  registerMemory(hostAddr: bigint, sizeBytes: number): void {
    this.#set(vduse.VDUSE_IOCTL.IOTLB_REG_UMEM, umem(hostAddr, sizeBytes));
  }

  unregisterMemory(sizeBytes: number): void {
    this.#set(vduse.VDUSE_IOCTL.IOTLB_DEREG_UMEM, umem(0n, sizeBytes));
  }

  receive(): VduseRequest | null {
    const result = readBytes(this.callFd.number, this.#message);
    if (result === -EAGAIN) {
      this.driverFeatures(); // throws when the device is broken: that has no requests either
      return null;
    }
    if (result < 0) throw sysError('read', result, this.#path);
    const { type, requestId: id, payload } = vduse.VduseDevRequest.decode(this.#message);
    switch (type) {
      case vduse.VDUSE_GET_VQ_STATE:
        return { kind: 'queue-state', id, index: vduse.VduseVqState.decode(payload).index };
      case vduse.VDUSE_SET_STATUS:
        return { kind: 'status', id, status: payload[0]! };
      case vduse.VDUSE_UPDATE_IOTLB:
        return { kind: 'update-iotlb', id, ...vduse.VduseIovaRange.decode(payload) };
      default:
        return { kind: 'unknown', id, type };
    }
  }

  answer(request: VduseRequest, ok: boolean, state?: { base: number; packed: boolean }): boolean {
    const payload = new Uint8Array(128);
    if (request.kind === 'queue-state' && state !== undefined) {
      const bytes = stateOfBase(state.base, state.packed);
      payload.set(vduse.VduseVqState.encode({ index: request.index, state: bytes }));
    }
    const result = writeBytes(
      this.callFd.number,
      vduse.VduseDevResponse.encode({
        requestId: request.id,
        result: ok ? vduse.VDUSE_REQ_RESULT_OK : vduse.VDUSE_REQ_RESULT_FAILED,
        reserved: new Uint8Array(16),
        payload,
      }),
    );
    if (result >= 0) return true;
    if (errnoName(-result) === 'ENOENT') return false;
    throw sysError('write', result, this.#path);
  }

  watch(onReady: () => void): Poll {
    return pollFd(this.callFd.number, { read: true }, onReady);
  }

  /** Idempotent. Requests that were read and not answered wait for whoever opens it next. */
  close(): void {
    this.#device.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #set(ioctl: Ioctl, argument: Uint8Array): void {
    this.#call(ioctl, argument);
  }

  /** The result, or -1 where the kernel said `expected`. */
  #call(ioctl: Ioctl, argument: Uint8Array, expected?: string): number {
    const result = ioctlBytes(this.callFd.number, ioctl.request, argument);
    if (result >= 0) return result;
    const reason = errnoName(-result);
    if (reason === expected) return -1;
    if (reason === 'EPERM') throw deviceBroken(this.name);
    throw this.#device.refusal(ioctl, result);
  }
}

/** `vduse_dev_broken`: every ioctl is EPERM from then on. */
function deviceBroken(name: string): VringError {
  const text =
    `VDUSE device ${name} is broken: a request was not answered within ` +
    `/sys/class/vduse/${name}/msg_timeout; delete it (vring vdpa delete ${name}) and serve it anew`;
  return new VringError('ERR_VRING_VDUSE_BROKEN', text, { recovery: 'reset' });
}

function queueQuestion(index: number): Uint8Array {
  const argument = new Uint8Array(vduse.VduseVqInfo.size);
  new DataView(argument.buffer).setUint32(0, index, true);
  return argument;
}

function umem(uaddr: bigint, sizeBytes: number): Uint8Array {
  const size = BigInt(sizeBytes);
  return vduse.VduseIovaUmem.encode({ uaddr, iova: 0n, size, reserved: new Uint8Array(24) });
}
