/** The zones of a disk behind the guest's block driver, by byte offsets. */
import { VringError } from '../base/errors.ts';
import {
  BlkZoneDescriptor,
  BlkZoneReport,
  VIRTIO_BLK_SECTOR_BYTES,
  VIRTIO_BLK_T_ZONE_APPEND,
  VIRTIO_BLK_T_ZONE_CLOSE,
  VIRTIO_BLK_T_ZONE_FINISH,
  VIRTIO_BLK_T_ZONE_OPEN,
  VIRTIO_BLK_T_ZONE_REPORT,
  VIRTIO_BLK_T_ZONE_RESET,
  VIRTIO_BLK_T_ZONE_RESET_ALL,
  VIRTIO_BLK_ZT_CONV,
} from '../wire/virtio-blk.ts';
import { askDisk } from './ask-disk.ts';
import type { BlkZones } from './blk-config.ts';
import type { BlkGuest } from './blk-driver.ts';

const CONDITIONS: Readonly<Record<number, string>> = {
  0: 'conventional',
  1: 'empty',
  2: 'implicitly open',
  3: 'explicitly open',
  4: 'closed',
  13: 'read-only',
  14: 'full',
  15: 'offline',
};

/** One zone as the device reports it; bytes. */
export type ZoneReport = {
  readonly at: number;
  readonly capacityBytes: number;
  /** Where the next write goes; null where the zone has no such place now. */
  readonly pointer: number | null;
  readonly conventional: boolean;
  readonly condition: string;
};

export type ZoneAction = 'open' | 'close' | 'finish' | 'reset';

const TYPES: Readonly<Record<ZoneAction, number>> = {
  open: VIRTIO_BLK_T_ZONE_OPEN,
  close: VIRTIO_BLK_T_ZONE_CLOSE,
  finish: VIRTIO_BLK_T_ZONE_FINISH,
  reset: VIRTIO_BLK_T_ZONE_RESET,
};

const HAS_POINTER = new Set([1, 2, 3, 4]);

/** Methods throw what `askDisk` throws. */
export class ZonedDisk {
  readonly guest: BlkGuest;
  readonly zones: BlkZones;

  /** @throws VringError ERR_VRING_BLK_UNSUPP: the disk is not zoned. */
  constructor(guest: BlkGuest) {
    const { zones } = guest.config;
    if (zones === null) {
      const text = `${guest.backend.description} is not a zoned disk, or ZONED was switched off`;
      throw new VringError('ERR_VRING_BLK_UNSUPP', text);
    }
    this.guest = guest;
    this.zones = zones;
  }

  /** Of all zones from that of byte `from` on, `most` at most. */
  async report(from = 0, most = Infinity): Promise<ZoneReport[]> {
    const { capacityBytes } = this.guest.config;
    const all: ZoneReport[] = [];
    let at = from;
    while (at < capacityBytes && all.length < most) {
      const room = Math.floor(this.guest.requestBytes / 64) - 1;
      const readBytes = 64 * (1 + Math.min(room, most - all.length));
      const sector = at / VIRTIO_BLK_SECTOR_BYTES;
      const type = VIRTIO_BLK_T_ZONE_REPORT;
      const { data } = await askDisk(this.guest, { type, sector, readBytes });
      const some = parseReport(data);
      const last = some.at(-1);
      if (last === undefined || last.at + this.zones.zoneBytes <= at) throw this.#nonsense(at);
      all.push(...some);
      at = last.at + this.zones.zoneBytes;
    }
    return all;
  }

  /** To the zone that begins at `zoneAt`. Returns where the bytes went. */
  async append(zoneAt: number, write: Uint8Array): Promise<number> {
    const sector = zoneAt / VIRTIO_BLK_SECTOR_BYTES;
    const type = VIRTIO_BLK_T_ZONE_APPEND;
    const { appendSector } = await askDisk(this.guest, { type, sector, write });
    return appendSector * VIRTIO_BLK_SECTOR_BYTES;
  }

  async act(action: ZoneAction, zoneAt: number): Promise<void> {
    await askDisk(this.guest, { type: TYPES[action], sector: zoneAt / VIRTIO_BLK_SECTOR_BYTES });
  }

  async resetAll(): Promise<void> {
    await askDisk(this.guest, { type: VIRTIO_BLK_T_ZONE_RESET_ALL, sector: 0 });
  }

  #nonsense(at: number): VringError {
    const text = `${this.guest.backend.description} reports no zone at byte ${at}`;
    return new VringError('ERR_VRING_GUEST_CONFIG', text);
  }
}

/** As many descriptors as the device says, and there is room for. */
export function parseReport(data: Uint8Array): ZoneReport[] {
  const room = Math.floor((data.length - BlkZoneReport.size) / BlkZoneDescriptor.size);
  const count = Math.min(room, Number(BlkZoneReport.decode(data).nrZones));
  return Array.from({ length: count }, (_, i) => {
    const zone = BlkZoneDescriptor.decode(
      data.subarray(BlkZoneReport.size + i * BlkZoneDescriptor.size),
    );
    const bytes = (sectors: bigint): number => Number(sectors) * VIRTIO_BLK_SECTOR_BYTES;
    return {
      at: bytes(zone.zStart),
      capacityBytes: bytes(zone.zCap),
      pointer: HAS_POINTER.has(zone.zState) ? bytes(zone.zWp) : null,
      conventional: zone.zType === VIRTIO_BLK_ZT_CONV,
      condition: CONDITIONS[zone.zState] ?? `condition ${zone.zState}`,
    };
  });
}
