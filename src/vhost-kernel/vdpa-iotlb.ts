/**
 * Translations that a front-end gives for one address space of a vDPA device. The device never
 * asks: what its rings will use must be told before, and a range that it does not know is an error
 * of the device, or silence.
 */
import type { BackendIotlb, IotlbMapping } from '../base/vhost-backend.ts';
import { Iotlb } from '../memory/index.ts';
import { arenaHostAddress } from '../sys/index.ts';
import type { IotlbChannel } from './iotlb-channel.ts';
import { explainMapping, type VdpaMemory } from './vdpa-memory.ts';

const ALL = 2n ** 64n - 1n;

export class VdpaIotlb implements BackendIotlb {
  readonly asks = false;
  readonly asid: number;
  readonly #path: string;
  readonly #channel: IotlbChannel;
  readonly #memory: VdpaMemory;
  /** What was told, for us: where a ring lies. */
  readonly #known = new Iotlb();
  #told = false;

  constructor(path: string, asid: number, channel: IotlbChannel, memory: VdpaMemory) {
    this.#path = path;
    this.asid = asid;
    this.#channel = channel;
    this.#memory = memory;
  }

  /**
   * A translation of the same addresses is replaced, and with it, whole, every one that it cuts:
   * the kernel takes no part of a translation away.
   * @throws VringError ERR_VRING_VDPA_IOVA, ERR_VRING_VDPA_PIN, ERR_VRING_MEMORY_ADDRESS.
   */
  async update({ iova, sizeBytes, userAddr, permissions }: IotlbMapping): Promise<void> {
    this.#memory.checkRange('a translation', iova, sizeBytes);
    const offset = this.#memory.arenaOffset(userAddr, sizeBytes);
    const hostAddr = arenaHostAddress() + BigInt(offset);
    const mapping = { iova, sizeBytes, hostAddr, permissions, asid: this.asid };
    try {
      this.#channel.update(mapping);
    } catch {
      // The kernel says EFAULT to everything that it refuses: what is known already is told anew.
      this.#channel.invalidate(iova, sizeBytes, this.asid);
      try {
        this.#channel.update(mapping);
      } catch (error) {
        throw explainMapping(error, this.#path, 'a translation', iova, sizeBytes);
      }
    }
    this.#told = true;
    const entry = { iova: Number(iova), sizeBytes: Number(sizeBytes), offset, permissions };
    this.#known.update(entry);
  }

  async invalidate(iova: bigint, sizeBytes: bigint): Promise<void> {
    if (!this.#told) return; // the kernel knows no address space that nothing was told for
    this.#channel.invalidate(iova, sizeBytes, this.asid);
    this.#known.invalidate(Number(iova), Number(sizeBytes));
  }

  /** Everything, after a reset. */
  forget(): void {
    if (this.#told) this.#channel.invalidate(0n, ALL, this.asid);
    this.#told = false;
    this.#known.clear();
  }

  /** Where an I/O virtual address is in the arena; negative: it is not known. */
  arenaOffset(iova: bigint, sizeBytes: number): number {
    return this.#known.translate(Number(iova), sizeBytes, 0);
  }
}
