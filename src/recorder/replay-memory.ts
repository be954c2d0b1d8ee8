/**
 * ADD_MEM_REG and REM_MEM_REG for a back-end without CONFIGURE_MEM_SLOTS: the whole table, each
 * time it changes, as a front-end would say it.
 */
import { REQUEST } from '../vhost-user/index.ts';
import {
  MemoryRegion,
  MemoryTableHeader,
  SingleMemoryRegion,
  VHOST_MEMORY_BASELINE_NREGIONS,
  VhostUserHeader,
} from '../wire/vhost-user.ts';
import type { FdDescription, MessageEvent } from './recorded-event.ts';

export type TableMessage = { readonly bytes: Uint8Array; readonly fds: readonly FdDescription[] };

type Slot = { readonly region: MemoryRegion; readonly fd: FdDescription };

export class ReplayMemory {
  #slots: Slot[] = [];

  /** The table after this message; null when it cannot be one SET_MEM_TABLE. */
  after(event: MessageEvent): TableMessage | null {
    const payload = Buffer.from(event.hex, 'hex').subarray(VhostUserHeader.size);
    if (payload.length !== SingleMemoryRegion.size) return null;
    const { padding: _padding, ...region } = SingleMemoryRegion.decode(payload);
    const [fd] = event.fds;
    if (event.id === REQUEST.REM_MEM_REG.id) {
      this.#slots = this.#slots.filter(({ region: { userAddr, sizeBytes } }) => {
        return userAddr !== region.userAddr || sizeBytes !== region.sizeBytes;
      });
    } else if (fd !== undefined) {
      this.#slots.push({ region, fd });
    }
    const count = this.#slots.length;
    if (count === 0 || count > VHOST_MEMORY_BASELINE_NREGIONS) return null;
    const body = Buffer.concat([
      MemoryTableHeader.encode({ count, padding: 0 }),
      ...this.#slots.map((slot) => MemoryRegion.encode(slot.region)),
    ]);
    const request = REQUEST.SET_MEM_TABLE.id;
    const header = VhostUserHeader.encode({ request, flags: event.flags.raw, size: body.length });
    return { bytes: Buffer.concat([header, body]), fds: this.#slots.map((slot) => slot.fd) };
  }
}
