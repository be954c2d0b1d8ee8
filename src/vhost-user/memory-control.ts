/**
 * The memory table of one back-end session: maps what messages bring, swaps tables while no ring
 * runs, and keeps old memory until the target has let go of it. The fds of the regions are kept
 * too: a successor of this process maps the same memory with them.
 */
import { MAX_MEM_SLOTS } from '../base/limits.ts';
import { ProtocolError, VringError } from '../base/errors.ts';
import { MemoryError, MemoryTable, SharedRegion } from '../memory/index.ts';
import type { Fd } from '../sys/index.ts';
import type { MemoryRegion } from '../wire/vhost-user.ts';
import type { IotlbControl } from './iotlb-control.ts';
import { MAX_SESSION_MEMORY_BYTES } from './limits.ts';
import { hostAddress, type PostcopyControl } from './postcopy-control.ts';
import type { BackendTarget } from './target.ts';
import type { VringControl } from './vring-control.ts';

/** A region with what only the session needs of it. */
export type KeptRegion = {
  /** Tells it from every other region of this process, also one with the same addresses. */
  readonly id: number;
  readonly region: SharedRegion;
  readonly fd: Fd;
  /**
   * How often it was added beyond the first time. QEMU before 8.0 says ADD_MEM_REG and
   * REM_MEM_REG once for each queue pair of a device, with the same region.
   */
  again: number;
};

let regionIds = 0;

export type MemoryOptions = {
  readonly target: BackendTarget;
  readonly vrings: VringControl;
  readonly iotlb: IotlbControl;
  readonly postcopy: PostcopyControl;
};

export class MemoryControl {
  readonly #options: MemoryOptions;
  #table: MemoryTable | null = null;
  #kept = new Map<SharedRegion, KeptRegion>();
  /** Tables, regions and fds that left while the target still has them. */
  readonly #leaving = new Set<{ close(): void }>();

  constructor(options: MemoryOptions) {
    this.#options = options;
  }

  /** In the order of the table. */
  get regions(): readonly KeptRegion[] {
    return (this.#table?.regions ?? []).map((region) => this.#kept.get(region)!);
  }

  snapshot(): { readonly regions: number; readonly bytes: number } | null {
    const table = this.#table;
    return table && { regions: table.regions.length, bytes: Number(table.totalBytes) };
  }

  /**
   * SET_MEM_TABLE: all or nothing. Takes the fds over. While postcopy listens it returns the
   * regions with their addresses in this process.
   * @throws ProtocolError with the code of the memory's own check, field `regions[i]`; the old
   *   table stays.
   */
  async replace(
    request: string,
    regions: readonly MemoryRegion[],
    fds: Fd[],
  ): Promise<MemoryRegion[] | null> {
    const table = new MemoryTable();
    const mapped: SharedRegion[] = [];
    try {
      regions.forEach((region, i) => {
        mapped.push(addTo(table, request, `regions[${i}]`, region, fds[i]!));
        this.#listen(request, mapped[i]!, fds[i]!);
      });
    } catch (error) {
      table.close();
      throw error;
    }
    for (const fd of this.#kept.values()) this.#leaving.add(fd.fd);
    const old = this.#table;
    if (old !== null) this.#leaving.add(old);
    this.#table = table;
    const taken = fds.splice(0);
    this.#kept = new Map(mapped.map((region, i) => [region, keep(region, taken[i]!)]));
    await this.#publish(false, true);
    return this.#tellBack(regions, mapped);
  }

  /** A hand-over: what a predecessor had mapped, before any ring runs. */
  async adopt(regions: readonly KeptRegion[]): Promise<void> {
    const table = new MemoryTable();
    for (const { region } of regions) table.add(region);
    this.#table = table;
    this.#kept = new Map(regions.map((each) => [each.region, each]));
    await this.#publish(true, false);
  }

  /**
   * ADD_MEM_REG, takes the fd. The same region once more is counted, and changes nothing. While
   * postcopy listens it returns the region with its address in this process.
   */
  async add(request: string, region: MemoryRegion, fds: Fd[]): Promise<MemoryRegion | null> {
    const table = this.#table ?? new MemoryTable();
    const present = table.find(region);
    if (present !== null) {
      this.#kept.get(present)!.again++;
      return this.#tellBack([region], [present])?.[0] ?? null;
    }
    if (table.regions.length >= MAX_MEM_SLOTS) {
      const problem = `all ${MAX_MEM_SLOTS} memory slots are in use; remove a region first`;
      throw new ProtocolError('ERR_VRING_MEMORY_SLOTS', request, 'region', problem);
    }
    const added = addTo(table, request, 'region', region, fds[0]!);
    try {
      this.#listen(request, added, fds[0]!);
    } catch (error) {
      table.remove(region);
      added.close();
      throw error;
    }
    this.#table = table;
    this.#kept.set(added, keep(added, fds.shift()!));
    await this.#publish(true, false);
    return this.#tellBack([region], [added])?.[0] ?? null;
  }

  /** REM_MEM_REG: the fd offset does not identify a region. */
  async remove(request: string, region: MemoryRegion): Promise<void> {
    const present = this.#table?.find(region) ?? null;
    const kept = present === null ? null : this.#kept.get(present)!;
    if (kept !== null && kept.again > 0) {
      kept.again--;
      return;
    }
    const removed = this.#table?.remove(region) ?? null;
    if (removed === null) {
      const { guestPhysAddr: gpa, userAddr: uva, sizeBytes } = region;
      const problem =
        `no region has guest address 0x${gpa.toString(16)}, user address 0x${uva.toString(16)} ` +
        `and ${sizeBytes} bytes`;
      throw new ProtocolError('ERR_VRING_MEMORY_UNKNOWN', request, 'region', problem);
    }
    this.#leaving.add(removed);
    this.#leaving.add(this.#kept.get(removed)!.fd);
    this.#kept.delete(removed);
    await this.#publish(true, true);
  }

  /** The session is over and the target has let go of everything. */
  close(): void {
    this.#table?.close();
    this.#table = null;
    for (const { fd } of this.#kept.values()) fd.close();
    this.#kept.clear();
    this.#closeLeaving();
  }

  /** @param lost memory left: translations may lead to it, and are told again. */
  async #publish(patient: boolean, lost: boolean): Promise<void> {
    const table = this.#table!;
    const { vrings, target, iotlb } = this.#options;
    await vrings.withAllStopped(patient, async () => {
      vrings.around.maps = { gpa: table.gpaMap(), uva: table.uvaMap() };
      if (lost && iotlb.iotlb.count > 0) {
        const { iova, sizeBytes } = iotlb.clear();
        await target.invalidateIotlb?.(iova, sizeBytes);
      }
      await target.setMemTable(table);
      this.#closeLeaving();
    });
  }

  #listen(request: string, region: SharedRegion, fd: Fd): void {
    const { postcopy, vrings } = this.#options;
    if (postcopy.state !== 'listening') return;
    postcopy.register(request, region, fd);
    vrings.around.held = 'the front-end to take page faults';
  }

  #tellBack(
    regions: readonly MemoryRegion[],
    mapped: readonly SharedRegion[],
  ): MemoryRegion[] | null {
    if (this.#options.postcopy.state !== 'listening') return null;
    return regions.map((each, i) => ({ ...each, userAddr: hostAddress(mapped[i]!) }));
  }

  #closeLeaving(): void {
    for (const memory of this.#leaving) memory.close();
    this.#leaving.clear();
  }
}

function keep(region: SharedRegion, fd: Fd): KeptRegion {
  return { id: ++regionIds, region, fd, again: 0 };
}

/** Maps a region and enters it. What memory refuses becomes an error of the message. */
function addTo(
  table: MemoryTable,
  request: string,
  field: string,
  region: MemoryRegion,
  fd: Fd,
): SharedRegion {
  if (BigInt(table.totalBytes) + region.sizeBytes > MAX_SESSION_MEMORY_BYTES) {
    const problem = `the table would exceed ${MAX_SESSION_MEMORY_BYTES} bytes`;
    throw new ProtocolError('ERR_VRING_MEMORY_LIMIT', request, `${field}.memory_size`, problem);
  }
  let mapped: SharedRegion | null = null;
  try {
    mapped = SharedRegion.map(fd.number, region);
    table.add(mapped);
    return mapped;
  } catch (cause) {
    mapped?.close();
    if (!(cause instanceof VringError)) throw cause;
    const part = cause instanceof MemoryError ? `${field}.${cause.field}` : field;
    throw new ProtocolError(cause.code, request, part, cause.message, { cause });
  }
}
