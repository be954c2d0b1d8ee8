/** Guest memory of the front-end's session: a table at once, or region by region. */
import { VringError } from '../base/errors.ts';
import { MAX_MEM_SLOTS } from '../base/limits.ts';
import type { BackendMemoryRegion } from '../base/vhost-backend.ts';
import { memoryRegionPayload, memoryTablePayload, parsePayload } from '../wire/vhost-user-parse.ts';
import {
  MemoryRegion,
  MemoryTableHeader,
  SingleMemoryRegion,
  U64Payload,
  VHOST_MEMORY_BASELINE_NREGIONS,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
} from '../wire/vhost-user.ts';
import { closeFds } from './connection.ts';
import type { FrontendCalls } from './frontend-calls.ts';
import { REQUEST } from './message-table.ts';

/** A region of a postcopy table and where the back-end mapped it in its own address space. */
export type PostcopyRegion = {
  readonly region: BackendMemoryRegion;
  readonly backendAddr: bigint;
};

export class FrontendMemory {
  readonly #calls: FrontendCalls;
  /** Regions that the back-end has, however they went. */
  #shared: readonly BackendMemoryRegion[] = [];

  constructor(calls: FrontendCalls) {
    this.#calls = calls;
  }

  /** Regions that the back-end has now. */
  get regions(): readonly BackendMemoryRegion[] {
    return this.#shared;
  }

  /**
   * Up to eight regions go in one SET_MEM_TABLE; more need CONFIGURE_MEM_SLOTS and go one by one:
   * those that are not wanted any more are removed, then those that are new are added.
   * @throws VringError ERR_VRING_MEMORY_SLOTS when the back-end cannot take that many.
   */
  async setTable(regions: readonly BackendMemoryRegion[]): Promise<void> {
    if (regions.length <= VHOST_MEMORY_BASELINE_NREGIONS) {
      const fds = regions.map((region) => region.fd);
      await this.#calls.tell(REQUEST.SET_MEM_TABLE, tablePayload(regions), fds);
      this.#shared = [...regions];
      return;
    }
    const slots = await this.maxSlots();
    if (regions.length > slots) throw this.#tooMany(regions.length, slots);
    for (const old of this.#shared) {
      if (!regions.some((region) => sameRegion(region, old))) await this.removeRegion(old);
    }
    for (const region of regions) {
      if (!this.#shared.some((old) => sameRegion(region, old))) await this.addRegion(region);
    }
  }

  /**
   * SET_MEM_TABLE after POSTCOPY_LISTEN: the back-end answers with the addresses at which it
   * mapped the regions, in its own space, and waits until `register` has made ready for page
   * faults there. Section "Post-copy". At most eight regions.
   */
  async setTableForPostcopy(
    regions: readonly BackendMemoryRegion[],
    register: (mapped: readonly PostcopyRegion[]) => void,
  ): Promise<void> {
    const entry = REQUEST.SET_MEM_TABLE;
    if (regions.length > VHOST_MEMORY_BASELINE_NREGIONS) {
      throw this.#tooMany(regions.length, VHOST_MEMORY_BASELINE_NREGIONS);
    }
    const fds = regions.map((region) => region.fd);
    const reply = await this.#calls.askRaw(entry, tablePayload(regions), fds);
    closeFds(reply.fds);
    const mapped = this.#parseReply(entry.id, () =>
      parsePayload(memoryTablePayload, entry.name, reply.payload),
    );
    if (mapped.length !== regions.length) {
      const problem = `${mapped.length} regions, expected ${regions.length}`;
      throw this.#calls.channel.failReply(entry.id, 'count', problem);
    }
    this.#shared = [...regions];
    register(regions.map((region, i) => ({ region, backendAddr: mapped[i]!.userAddr })));
    await this.#calls.send(entry, U64Payload.encode({ value: 0n }));
  }

  /** One more region, while rings run: memory hotplug. @throws as `maxSlots`, ERR_VRING_REFUSED. */
  async addRegion(region: BackendMemoryRegion): Promise<void> {
    await this.#calls.tell(REQUEST.ADD_MEM_REG, singleRegion(region), [region.fd]);
    this.#shared = [...this.#shared, region];
  }

  /** As `addRegion` after POSTCOPY_LISTEN; see `setTableForPostcopy`. */
  async addRegionForPostcopy(
    region: BackendMemoryRegion,
    register: (mapped: PostcopyRegion) => void,
  ): Promise<void> {
    const entry = REQUEST.ADD_MEM_REG;
    const reply = await this.#calls.askRaw(entry, singleRegion(region), [region.fd]);
    closeFds(reply.fds);
    const mapped = this.#parseReply(entry.id, () =>
      parsePayload(memoryRegionPayload, entry.name, reply.payload),
    );
    this.#shared = [...this.#shared, region];
    register({ region, backendAddr: mapped.userAddr });
    await this.#calls.send(entry, U64Payload.encode({ value: 0n }));
  }

  /** Takes one region back; when it resolves the back-end does not use it any more. */
  async removeRegion(region: BackendMemoryRegion): Promise<void> {
    await this.#calls.tell(REQUEST.REM_MEM_REG, singleRegion(region));
    this.#shared = this.#shared.filter((each) => !sameRegion(each, region));
  }

  /** Regions that the back-end can have; 8 without CONFIGURE_MEM_SLOTS. */
  async maxSlots(): Promise<number> {
    if (!this.#calls.has(VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS)) {
      return VHOST_MEMORY_BASELINE_NREGIONS;
    }
    const slots = await this.#calls.askU64(REQUEST.GET_MAX_MEM_SLOTS);
    return slots > BigInt(MAX_MEM_SLOTS) ? MAX_MEM_SLOTS : Number(slots);
  }

  #tooMany(count: number, slots: number): VringError {
    const text = `${this.#calls.description} takes ${slots} memory regions, ${count} are due`;
    return new VringError('ERR_VRING_MEMORY_SLOTS', text);
  }

  #parseReply<T>(id: number, parse: () => T): T {
    try {
      return parse();
    } catch (error) {
      const { field = 'payload', message } = error as { field?: string; message: string };
      throw this.#calls.channel.failReply(id, field, message);
    }
  }
}

function tablePayload(regions: readonly BackendMemoryRegion[]): Uint8Array {
  const header = MemoryTableHeader.encode({ count: regions.length, padding: 0 });
  return Buffer.concat([header, ...regions.map((region) => MemoryRegion.encode(region))]);
}

function singleRegion(region: BackendMemoryRegion): Uint8Array {
  return SingleMemoryRegion.encode({ padding: 0n, ...region });
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
