/** Requests to a zoned disk, from a slot to its layer. */
import { assert } from '../../base/assert.ts';
import { EOPNOTSUPP, EROFS } from '../../sys/index.ts';
import {
  BlkZoneDescriptor,
  BlkZoneReport,
  VIRTIO_BLK_ZT_CONV,
  VIRTIO_BLK_ZT_SWR,
} from '../../wire/virtio-blk.ts';
import { SECTOR_BYTES } from '../zoned/zone-format.ts';
import {
  IO_AGAIN,
  IO_FUA,
  IO_READ,
  IO_WRITE,
  IO_ZONE_ACTIVE_LIMIT,
  IO_ZONE_APPEND,
  IO_ZONE_CLOSE,
  IO_ZONE_FINISH,
  IO_ZONE_INVALID,
  IO_ZONE_OPEN,
  IO_ZONE_OPEN_LIMIT,
  IO_ZONE_REPORT,
  IO_ZONE_RESET,
  IO_ZONE_RESET_ALL,
  IO_ZONE_UNALIGNED,
  ioName,
} from '../io-batch.ts';
import { type Layer, LayerError } from '../layer/layer.ts';
import {
  type ZoneAction,
  type ZonedMedium,
  type ZoneInfo,
  type ZoneProblem,
} from '../zoned/zone-types.ts';
import type { RequestRing } from './request-ring.ts';
import type { SlotData } from './slot-data.ts';

export const ZONE_STATUS: Readonly<Record<ZoneProblem, number>> = {
  invalid: IO_ZONE_INVALID,
  unaligned: IO_ZONE_UNALIGNED,
  'open-limit': IO_ZONE_OPEN_LIMIT,
  'active-limit': IO_ZONE_ACTIVE_LIMIT,
};

const ACTIONS: Readonly<Record<number, ZoneAction>> = {
  [IO_ZONE_OPEN]: 'open',
  [IO_ZONE_CLOSE]: 'close',
  [IO_ZONE_FINISH]: 'finish',
  [IO_ZONE_RESET]: 'reset',
  [IO_ZONE_RESET_ALL]: 'reset-all',
};

export class ZoneRequests {
  readonly #ring: RequestRing;
  readonly #layer: Layer;
  readonly #zones: ZonedMedium;
  readonly #data: SlotData;

  constructor(ring: RequestRing, layer: Layer, data: SlotData) {
    assert(layer.zones !== undefined, 'the disk is zoned');
    this.#ring = ring;
    this.#layer = layer;
    this.#zones = layer.zones;
    this.#data = data;
  }

  takes(op: number): boolean {
    return op === IO_READ || op === IO_WRITE || op >= IO_ZONE_APPEND;
  }

  /** @throws LayerError: not within the zones. Their range is inside the disk. */
  async carryOut(slot: number, op: number, at: number, size: number): Promise<void> {
    const flags = this.#ring.flags[slot]!;
    const how = { fua: (flags & IO_FUA) !== 0, again: (flags & IO_AGAIN) !== 0 };
    const zones = this.#zones;
    if (op === IO_ZONE_REPORT) return this.#report(slot, at, size);
    if (op === IO_READ) {
      const bytes = Buffer.allocUnsafeSlow(size);
      await zones.read(at, bytes);
      return this.#data.scatter(slot, bytes, 0);
    }
    if (this.#layer.readOnly) throw new LayerError(EROFS, 'the disk is read-only');
    if (op === IO_WRITE) return zones.write(at, this.#data.gather(slot, size), how);
    if (op === IO_ZONE_APPEND) {
      const order = this.#ring.tagOrder[slot]!;
      const tag = order === 0 ? null : { queue: this.#ring.tagQueue[slot]!, order };
      const place = await zones.append(at, this.#data.gather(slot, size), how, tag);
      const answer = Buffer.alloc(8);
      answer.writeBigUInt64LE(BigInt(place / SECTOR_BYTES));
      return this.#data.scatter(slot, answer, size);
    }
    const action = ACTIONS[op];
    if (action === undefined) throw new LayerError(EOPNOTSUPP, `no zone knows ${ioName(op)}`);
    await zones.manage(action, at, how);
  }

  /** As many zones as there is room for, and zeros in the rest of it. */
  async #report(slot: number, at: number, size: number): Promise<void> {
    const most = Math.max(0, Math.floor((size - BlkZoneReport.size) / BlkZoneDescriptor.size));
    const zones = this.#zones.report(at, most);
    const bytes = new Uint8Array(size);
    const view = new DataView(bytes.buffer);
    const reserved = new Uint8Array(BlkZoneReport.fields.reserved.bytes);
    BlkZoneReport.write(view, 0, { nrZones: BigInt(zones.length), reserved });
    for (const [i, zone] of zones.entries()) {
      const place = BlkZoneReport.size + i * BlkZoneDescriptor.size;
      BlkZoneDescriptor.write(view, place, descriptorOf(zone));
    }
    this.#data.scatter(slot, bytes, 0);
  }
}

function descriptorOf(zone: ZoneInfo): BlkZoneDescriptor {
  const sectors = (bytes: number): bigint => BigInt(bytes / SECTOR_BYTES);
  return {
    zCap: sectors(zone.capacityBytes),
    zStart: sectors(zone.at),
    zWp: sectors(zone.pointer),
    zType: zone.conventional ? VIRTIO_BLK_ZT_CONV : VIRTIO_BLK_ZT_SWR,
    zState: zone.condition,
    reserved: new Uint8Array(BlkZoneDescriptor.fields.reserved.bytes),
  };
}
