/**
 * A vDPA device for tests that have none: answers the ioctls of drivers/vhost/vdpa.c as a kernel
 * with the given backend features does, and writes down what it is told, in order.
 */
import { fstatSync, readSync } from 'node:fs';
import { VringError } from '../../base/errors.ts';
import { createMemfd, sysError } from '../../sys/index.ts';
import { constants } from 'node:os';
import type { Ioctl } from '../../wire/ioctl.ts';
import {
  VdpaConfigHeader,
  VdpaIovaRange,
  VHOST_IOTLB_BATCH_BEGIN,
  VHOST_IOTLB_BATCH_END,
  VHOST_IOTLB_INVALIDATE,
  VHOST_IOTLB_UPDATE,
  VhostMessageV2,
  VringFile,
} from '../../wire/vhost-kernel.ts';
import { VringState } from '../../wire/vhost-user.ts';
import { VIRTIO_CONFIG_S_FEATURES_OK } from '../../wire/virtio.ts';
import { KernelDevice } from '../kernel-device.ts';

export type FakeVdpaOptions = {
  readonly features?: bigint;
  readonly backendFeatures?: bigint;
  readonly iovaLast?: bigint;
  /** Takes no features: FEATURES_OK does not stay set. */
  readonly isPicky?: boolean;
  /** Errno by name of an ioctl. */
  readonly refuses?: Readonly<Record<string, keyof typeof constants.errno>>;
};

const MESSAGES: Readonly<Record<number, string>> = {
  [VHOST_IOTLB_UPDATE]: 'map',
  [VHOST_IOTLB_INVALIDATE]: 'unmap',
  [VHOST_IOTLB_BATCH_BEGIN]: 'batch',
  [VHOST_IOTLB_BATCH_END]: 'end',
};

export class FakeVdpa extends KernelDevice {
  /** Bases that GET_VRING_BASE answers. */
  readonly bases = new Map<number, number>();
  status = 0;
  acked = 0n;
  readonly config = new Uint8Array(12);
  /** The eventfd of SET_CONFIG_CALL, as it was given; -1: none. */
  configCall = -1;
  readonly #options: FakeVdpaOptions;
  readonly #events: string[] = [];
  #read = 0;

  constructor(options: FakeVdpaOptions = {}) {
    // Translations are written to the node: here to a file that keeps them.
    super('/dev/vhost-vdpa-fake', createMemfd('fake-vdpa', 0));
    this.#options = options;
  }

  /** What was told since the last look: `SET_VRING_NUM 0 256`, `map 0x0 +0x1000`. */
  take(): string[] {
    this.#readMessages();
    return this.#events.splice(0);
  }

  override call(ioctl: Ioctl, argument = 0): number {
    this.#note(ioctl, argument === 0 ? '' : String(argument));
    return 0;
  }

  override getU64(ioctl: Ioctl): bigint {
    this.#refuse(ioctl);
    if (short(ioctl) === 'GET_FEATURES') return this.#options.features ?? 0n;
    return this.#options.backendFeatures ?? 0x1en;
  }

  override setU64(ioctl: Ioctl, value: bigint): void {
    if (short(ioctl) === 'SET_FEATURES') this.acked = value;
    this.#note(ioctl, `0x${value.toString(16)}`);
  }

  override getU32(ioctl: Ioctl): number {
    this.#refuse(ioctl);
    switch (short(ioctl)) {
      case 'GET_STATUS':
        return this.status;
      case 'GET_VQS_COUNT':
        return 3;
      case 'GET_VRING_NUM':
        return 256;
      case 'GET_CONFIG_SIZE':
        return this.config.length;
      default:
        return 1;
    }
  }

  override setU32(ioctl: Ioctl, value: number): void {
    if (short(ioctl) === 'SET_CONFIG_CALL') this.configCall = value;
    this.#note(ioctl, short(ioctl) === 'SET_CONFIG_CALL' ? 'fd' : String(value));
  }

  override exchange<B extends Uint8Array>(ioctl: Ioctl, argument: B): B {
    const view = new DataView(argument.buffer, argument.byteOffset);
    switch (short(ioctl)) {
      case 'GET_IOVA_RANGE':
        argument.set(
          VdpaIovaRange.encode({ first: 0n, last: this.#options.iovaLast ?? 2n ** 48n - 1n }),
        );
        return argument;
      case 'GET_VRING_BASE': {
        const { index } = VringState.read(view, 0);
        this.#note(ioctl, String(index));
        argument.set(VringState.encode({ index, num: this.bases.get(index) ?? 0 }));
        return argument;
      }
      case 'GET_CONFIG': {
        this.#refuse(ioctl);
        const { off, len } = VdpaConfigHeader.read(view, 0);
        argument.set(this.config.subarray(off, off + len), VdpaConfigHeader.size);
        return argument;
      }
      case 'SET_STATUS':
        this.status = argument[0]!;
        if (this.#options.isPicky === true) this.status &= ~VIRTIO_CONFIG_S_FEATURES_OK;
        this.#note(ioctl, `0x${argument[0]!.toString(16)}`);
        return argument;
      case 'SET_VRING_KICK':
      case 'SET_VRING_CALL':
      case 'SET_VRING_ERR': {
        const { index, fd } = VringFile.read(view, 0);
        this.#note(ioctl, `${index} ${fd === 0xffff_ffff ? 'none' : 'fd'}`);
        return argument;
      }
      default: {
        const { index, num } = VringState.read(view, 0);
        const isAddress = short(ioctl) === 'SET_VRING_ADDR';
        if (short(ioctl) === 'GET_VRING_SIZE') this.#lack(ioctl);
        const desc = isAddress ? `0x${view.getBigUint64(8, true).toString(16)}` : String(num);
        this.#note(ioctl, `${index} ${desc}`);
        return argument;
      }
    }
  }

  #note(ioctl: Ioctl, what: string): void {
    this.#refuse(ioctl);
    this.#readMessages();
    this.#events.push(`${short(ioctl)} ${what}`.trim());
  }

  #refuse(ioctl: Ioctl): void {
    if (this.closed) throw new VringError('ERR_VRING_CLOSED', `${this.path} is closed`);
    const name = this.#options.refuses?.[short(ioctl)];
    if (name !== undefined) throw sysError(ioctl.name, -constants.errno[name], this.path);
  }

  #lack({ name }: Ioctl): never {
    throw new VringError('ERR_VRING_KERNEL_LACKS', `${this.path}: this kernel has no ${name}`);
  }

  #readMessages(): void {
    const bytes = new Uint8Array(VhostMessageV2.size);
    while (this.#read < fstatSync(this.fd).size) {
      readSync(this.fd, bytes, 0, bytes.length, this.#read);
      this.#read += bytes.length;
      const { iotlbType, iova, sizeBytes, asid } = VhostMessageV2.decode(bytes);
      const space = asid === 0 ? '' : ` in ${asid}`;
      const range = sizeBytes === 0n ? '' : ` 0x${iova.toString(16)} +0x${sizeBytes.toString(16)}`;
      this.#events.push(`${MESSAGES[iotlbType]}${range}${space}`);
    }
  }
}

/** Without its prefix. */
function short({ name }: Ioctl): string {
  return name.replace(/^VHOST_(VDPA_)?/, '');
}
