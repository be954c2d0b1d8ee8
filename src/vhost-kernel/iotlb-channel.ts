/**
 * The IOTLB of one device of the kernel's vhost: messages written to its node, and what the kernel
 * asks for read from it. linux/vhost_types.h, "vhost_msg"; drivers/vhost/vhost.c,
 * `vhost_chr_read_iter` and `_write_iter`.
 *
 * A ring that lacks a translation puts one question into the node's list and stands still; an
 * update that covers the address wakes it. The kernel asks for one address at a time, never for a
 * length, and does not ask again while nobody answers.
 */
import { VringError } from '../base/errors.ts';
import { EAGAIN, pollFd, type Poll, readBytes, sysError, writeBytes } from '../sys/index.ts';
import { featureSet } from '../wire/virtio.ts';
import {
  VHOST_ACCESS_WO,
  VHOST_BACKEND_F_IOTLB_BATCH,
  VHOST_BACKEND_F_IOTLB_MSG_V2,
  VHOST_IOTLB_ACCESS_FAIL,
  VHOST_IOTLB_BATCH_BEGIN,
  VHOST_IOTLB_BATCH_END,
  VHOST_IOTLB_INVALIDATE,
  VHOST_IOTLB_MISS,
  VHOST_IOTLB_MSG,
  VHOST_IOTLB_MSG_V2,
  VHOST_IOTLB_UPDATE,
  VhostMessage,
  VhostMessageV2,
} from '../wire/vhost-kernel.ts';
import type { KernelDevice } from './kernel-device.ts';

/** A translation: I/O virtual to what the device takes, an address of this process. */
export type HostMapping = {
  readonly iova: bigint;
  readonly sizeBytes: bigint;
  readonly hostAddr: bigint;
  /** VHOST_ACCESS_*. */
  readonly permissions: number;
  /** Address space; other than 0 only with VHOST_BACKEND_F_IOTLB_ASID. */
  readonly asid?: number;
};

/** The kernel wants to use an address that it cannot translate. */
export type MissHandler = (iova: bigint, write: boolean, asid: number) => void;

/** Questions read per turn of the event loop: a guest can make the kernel ask without end. */
const MISSES_PER_TURN = 64;

export class IotlbChannel {
  /** VHOST_BACKEND_F_*; set by `VhostDevice.negotiateBackendFeatures`. */
  features = 0n;
  readonly #device: KernelDevice;
  readonly #message = new Uint8Array(VhostMessageV2.size);
  #poll: Poll | null = null;

  constructor(device: KernelDevice) {
    this.#device = device;
  }

  /** Told before or after it was missed; the rings that wait for it go on. */
  update({ iova, sizeBytes, hostAddr, permissions, asid = 0 }: HostMapping): void {
    this.#send(VHOST_IOTLB_UPDATE, { iova, sizeBytes, hostAddr, permissions }, asid);
  }

  /** When it returns, no ring uses a translation of the range; (0, 2^64 - 1) is all. */
  invalidate(iova: bigint, sizeBytes: bigint, asid = 0): void {
    this.#send(VHOST_IOTLB_INVALIDATE, { iova, sizeBytes, hostAddr: 0n, permissions: 0 }, asid);
  }

  /** Many updates that take effect together; just the calls where the device has no batch. */
  batch(asid: number, updates: () => void): void {
    if (!this.#has(VHOST_BACKEND_F_IOTLB_BATCH)) return updates();
    const nothing = { iova: 0n, sizeBytes: 0n, hostAddr: 0n, permissions: 0 };
    this.#send(VHOST_IOTLB_BATCH_BEGIN, nothing, asid);
    try {
      updates();
    } finally {
      this.#send(VHOST_IOTLB_BATCH_END, nothing, asid);
    }
  }

  /**
   * Reads the kernel's questions from now on, in this thread's event loop, which that keeps alive.
   * `onGone`: the device does not answer any more.
   */
  watch(onMiss: MissHandler, onGone: (error: VringError) => void): void {
    if (this.#poll !== null) return;
    this.#poll = pollFd(this.#device.fd, { read: true }, () => this.#read(onMiss, onGone));
  }

  get watched(): boolean {
    return this.#poll !== null;
  }

  /** Idempotent. Before the device is closed. */
  close(): void {
    this.#poll?.close();
    this.#poll = null;
  }

  #read(onMiss: MissHandler, onGone: (error: VringError) => void): void {
    for (let i = 0; i < MISSES_PER_TURN && this.#poll !== null; i++) {
      const result = readBytes(this.#device.fd, this.#message);
      if (result === -EAGAIN || result === 0) return;
      if (result < 0) {
        this.close();
        return onGone(sysError('read', result, `questions of ${this.#device.path}`));
      }
      const message = VhostMessageV2.decode(this.#message); // v1 differs in the hole at `asid`
      const { iotlbType, iova, permissions } = message;
      if (iotlbType !== VHOST_IOTLB_MISS && iotlbType !== VHOST_IOTLB_ACCESS_FAIL) continue;
      const asid = message.type === VHOST_IOTLB_MSG_V2 ? message.asid : 0;
      onMiss(iova, (permissions & VHOST_ACCESS_WO) !== 0, asid);
    }
  }

  #send(
    iotlbType: number,
    { iova, sizeBytes, hostAddr, permissions }: HostMapping,
    asid: number,
  ): void {
    const v2 = this.#has(VHOST_BACKEND_F_IOTLB_MSG_V2);
    const padding = new Uint8Array(38);
    const fields = { iova, sizeBytes, userAddr: hostAddr, permissions, iotlbType, padding };
    const bytes = v2
      ? VhostMessageV2.encode({ type: VHOST_IOTLB_MSG_V2, asid, ...fields })
      : VhostMessage.encode({ type: VHOST_IOTLB_MSG, hole: 0, ...fields });
    const result = writeBytes(this.#device.fd, bytes);
    if (result >= 0) return;
    const name = NAMES[iotlbType];
    const range = `0x${iova.toString(16)}, ${sizeBytes} bytes`;
    throw sysError('write', result, `${this.#device.path}: ${name} of IOVA ${range}`);
  }

  #has(bit: number): boolean {
    return (this.features & featureSet(bit)) !== 0n;
  }
}

const NAMES: Readonly<Record<number, string>> = {
  [VHOST_IOTLB_UPDATE]: 'VHOST_IOTLB_UPDATE',
  [VHOST_IOTLB_INVALIDATE]: 'VHOST_IOTLB_INVALIDATE',
  [VHOST_IOTLB_BATCH_BEGIN]: 'VHOST_IOTLB_BATCH_BEGIN',
  [VHOST_IOTLB_BATCH_END]: 'VHOST_IOTLB_BATCH_END',
};
