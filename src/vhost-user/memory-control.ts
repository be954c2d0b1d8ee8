/**
 * The memory table of one back-end session: maps what messages bring, swaps tables while no ring
 * runs, and keeps old memory until the target has let go of it.
 */
import { MAX_MEM_SLOTS } from '../base/limits.ts';
import { ProtocolError, VringError } from '../base/errors.ts';
import { MemoryError, MemoryTable, SharedRegion } from '../memory/index.ts';
import type { Fd } from '../sys/index.ts';
import type { MemoryRegion } from '../wire/vhost-user.ts';
import { MAX_SESSION_MEMORY_BYTES } from './limits.ts';
import type { BackendTarget } from './target.ts';
import type { VringControl } from './vring-control.ts';

export class MemoryControl {
  readonly #target: BackendTarget;
  readonly #vrings: VringControl;
  #table: MemoryTable | null = null;
  /**
   * How often a region was added beyond the first time. QEMU before 8.0 says ADD_MEM_REG and
   * REM_MEM_REG once for each queue pair of a device, with the same region.
   */
  readonly #again = new Map<SharedRegion, number>();
  /** Tables and regions that left while the target still has them. */
  readonly #leaving = new Set<{ close(): void }>();

  constructor(target: BackendTarget, vrings: VringControl) {
    this.#target = target;
    this.#vrings = vrings;
  }

  snapshot(): { readonly regions: number; readonly bytes: number } | null {
    const table = this.#table;
    return table && { regions: table.regions.length, bytes: Number(table.totalBytes) };
  }

  /**
   * SET_MEM_TABLE: all or nothing.
   * @throws ProtocolError with the code of the memory's own check, field `regions[i]`; the old
   *   table stays.
   */
  async replace(request: string, regions: readonly MemoryRegion[], fds: Fd[]): Promise<void> {
    const table = new MemoryTable();
    try {
      regions.forEach((region, i) => addTo(table, request, `regions[${i}]`, region, fds[i]!));
    } catch (error) {
      table.close();
      throw error;
    }
    const old = this.#table;
    this.#table = table;
    this.#again.clear();
    if (old !== null) this.#leaving.add(old);
    await this.#publish(false);
  }

  /** ADD_MEM_REG. The same region once more is counted, and changes nothing. */
  async add(request: string, region: MemoryRegion, fd: Fd): Promise<void> {
    const table = this.#table ?? new MemoryTable();
    const present = table.find(region);
    if (present !== null) {
      this.#again.set(present, (this.#again.get(present) ?? 0) + 1);
      return;
    }
    if (table.regions.length >= MAX_MEM_SLOTS) {
      const problem = `all ${MAX_MEM_SLOTS} memory slots are in use; remove a region first`;
      throw new ProtocolError('ERR_VRING_MEMORY_SLOTS', request, 'region', problem);
    }
    addTo(table, request, 'region', region, fd);
    this.#table = table;
    await this.#publish(true);
  }

  /** REM_MEM_REG: the fd offset does not identify a region. */
  async remove(request: string, region: MemoryRegion): Promise<void> {
    const present = this.#table?.find(region) ?? null;
    const again = present === null ? 0 : (this.#again.get(present) ?? 0);
    if (present !== null && again > 0) {
      this.#again.set(present, again - 1);
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
    this.#again.delete(removed);
    this.#leaving.add(removed);
    await this.#publish(true);
  }

  /** The session is over and the target has let go of everything. */
  close(): void {
    this.#table?.close();
    this.#table = null;
    this.#closeLeaving();
  }

  async #publish(patient: boolean): Promise<void> {
    const table = this.#table!;
    await this.#vrings.withAllStopped(patient, async () => {
      this.#vrings.maps = { gpa: table.gpaMap(), uva: table.uvaMap() };
      await this.#target.setMemTable(table);
      this.#closeLeaving();
    });
  }

  #closeLeaving(): void {
    for (const memory of this.#leaving) memory.close();
    this.#leaving.clear();
  }
}

/** Maps a region and enters it. What memory refuses becomes an error of the message. */
function addTo(
  table: MemoryTable,
  request: string,
  field: string,
  region: MemoryRegion,
  fd: Fd,
): void {
  if (BigInt(table.totalBytes) + region.sizeBytes > MAX_SESSION_MEMORY_BYTES) {
    const problem = `the table would exceed ${MAX_SESSION_MEMORY_BYTES} bytes`;
    throw new ProtocolError('ERR_VRING_MEMORY_LIMIT', request, `${field}.memory_size`, problem);
  }
  let mapped: SharedRegion | null = null;
  try {
    mapped = SharedRegion.map(fd.number, region);
    table.add(mapped);
  } catch (cause) {
    mapped?.close();
    if (!(cause instanceof VringError)) throw cause;
    const part = cause instanceof MemoryError ? `${field}.${cause.field}` : field;
    throw new ProtocolError(cause.code, request, part, cause.message, { cause });
  }
}
