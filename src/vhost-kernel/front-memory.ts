/**
 * The front-end's memory in this process: the kernel's vhost takes addresses of the process that
 * owns the device, so the regions of a memory table are mapped here from their fds, and what the
 * front-end calls by its own user address is found at ours.
 */
import type { BackendMemoryRegion } from '../base/vhost-backend.ts';
import { VringError } from '../base/errors.ts';
import { MemoryTable, SharedRegion } from '../memory/index.ts';
import { arenaHostAddress } from '../sys/index.ts';

/** A region and where this process has it. */
export type HostRegion = {
  readonly guestPhysAddr: bigint;
  readonly sizeBytes: bigint;
  /** In the front-end's space. */
  readonly userAddr: bigint;
  /** In ours. */
  readonly hostAddr: bigint;
};

/** Owns the mappings. */
export class FrontMemory {
  readonly regions: readonly HostRegion[];
  readonly #table = new MemoryTable();

  /**
   * The fds stay the caller's.
   * @throws MemoryError with the field at fault; nothing is mapped then.
   */
  static map(regions: readonly BackendMemoryRegion[]): FrontMemory {
    return new FrontMemory(regions);
  }

  private constructor(regions: readonly BackendMemoryRegion[]) {
    try {
      for (const [i, { fd, ...description }] of regions.entries()) {
        const region = SharedRegion.map(fd, description, `region ${i}`);
        try {
          this.#table.add(region);
        } catch (error) {
          region.close();
          throw error;
        }
      }
    } catch (error) {
      this.#table.close();
      throw error;
    }
    const base = arenaHostAddress();
    this.regions = this.#table.regions.map((region) => ({
      guestPhysAddr: BigInt(region.guestPhysAddr),
      sizeBytes: BigInt(region.sizeBytes),
      userAddr: BigInt(region.userAddr),
      hostAddr: base + BigInt(region.offset),
    }));
  }

  /** @throws VringError ERR_VRING_MEMORY_ADDRESS: not in one region. */
  hostAddr(userAddr: bigint, sizeBytes = 1n): bigint {
    const { region, delta } = this.#find(userAddr, sizeBytes);
    return region.hostAddr + delta;
  }

  /** @throws as `hostAddr`. */
  guestPhysAddr(userAddr: bigint, sizeBytes = 1n): bigint {
    const { region, delta } = this.#find(userAddr, sizeBytes);
    return region.guestPhysAddr + delta;
  }

  /** Idempotent. */
  close(): void {
    this.#table.close();
  }

  #find(userAddr: bigint, sizeBytes: bigint): { region: HostRegion; delta: bigint } {
    for (const region of this.regions) {
      const delta = userAddr - region.userAddr;
      if (delta >= 0n && delta + sizeBytes <= region.sizeBytes) return { region, delta };
    }
    const text =
      `user address 0x${userAddr.toString(16)} (${sizeBytes} bytes) is in none of the ` +
      `${this.regions.length} regions of the memory table`;
    throw new VringError('ERR_VRING_MEMORY_ADDRESS', text);
  }
}
