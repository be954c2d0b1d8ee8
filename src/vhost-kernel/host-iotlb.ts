/** The IOTLB of a back-end of several vhost devices, for a front-end that has its own addresses. */
import { VringError } from '../base/errors.ts';
import type { BackendIotlb, IotlbMapping } from '../base/vhost-backend.ts';
import type { HostRings } from './host-rings.ts';
import type { VhostDevice } from './vhost-device.ts';

export class HostIotlb implements BackendIotlb {
  readonly asks = true;
  readonly #description: string;
  readonly #devices: readonly VhostDevice[];
  readonly #rings: HostRings;

  constructor(description: string, devices: readonly VhostDevice[], rings: HostRings) {
    this.#description = description;
    this.#devices = devices;
    this.#rings = rings;
  }

  /** Null: nobody is asked any more. */
  watch(
    onMiss: ((iova: bigint, write: boolean) => void) | null,
    onGone: (error: Error) => void,
  ): void {
    for (const { iotlb } of this.#devices) {
      if (onMiss === null) iotlb.close();
      else iotlb.watch(onMiss, onGone);
    }
  }

  /**
   * Every device learns it: one that did not ask yet would ask next.
   * @throws VringError ERR_VRING_NOT_NEGOTIATED, ERR_VRING_MEMORY_ADDRESS.
   */
  async update({ iova, sizeBytes, userAddr, permissions }: IotlbMapping): Promise<void> {
    this.#check();
    const hostAddr = this.#rings.hostAddr(userAddr, sizeBytes);
    for (const { iotlb } of this.#devices) iotlb.update({ iova, sizeBytes, hostAddr, permissions });
    this.#rings.translated();
  }

  async invalidate(iova: bigint, sizeBytes: bigint): Promise<void> {
    this.#check();
    for (const { iotlb } of this.#devices) iotlb.invalidate(iova, sizeBytes);
  }

  #check(): void {
    if (this.#rings.platform) return;
    const text = `${this.#description} has no IOTLB: ACCESS_PLATFORM (bit 33) is not acked`;
    throw new VringError('ERR_VRING_NOT_NEGOTIATED', text);
  }
}
