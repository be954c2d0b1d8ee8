/** A disk behind the guest's block driver, by byte offsets: read, write, flush, and the like. */
import { VringError } from '../base/errors.ts';
import {
  BlkLifetime,
  BlkRange,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_ID_BYTES,
  VIRTIO_BLK_SECTOR_BYTES,
  VIRTIO_BLK_T_DISCARD,
  VIRTIO_BLK_T_FLUSH,
  VIRTIO_BLK_T_GET_ID,
  VIRTIO_BLK_T_GET_LIFETIME,
  VIRTIO_BLK_T_IN,
  VIRTIO_BLK_T_OUT,
  VIRTIO_BLK_T_SECURE_ERASE,
  VIRTIO_BLK_T_WRITE_ZEROES,
  VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
  blkRequestName,
} from '../wire/virtio-blk.ts';
import { hasFeature } from '../wire/virtio.ts';
import { askDisk } from './ask-disk.ts';
import type { RangeLimits } from './blk-config.ts';
import type { BlkGuest } from './blk-driver.ts';
import type { BlkRequest } from './blk-requests.ts';

/** Requests of one transfer that are under way at the same time. */
const DEPTH = 16;

export class BlkDisk {
  readonly guest: BlkGuest;

  constructor(guest: BlkGuest) {
    this.guest = guest;
  }

  get sizeBytes(): number {
    return this.guest.config.capacityBytes;
  }

  /** @throws VringError ERR_VRING_BLK_*: what the device answered, and for what. */
  async read(offset: number, lenBytes: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(lenBytes);
    await this.#inPieces(offset, lenBytes, async (at, length) => {
      const sector = (offset + at) / VIRTIO_BLK_SECTOR_BYTES;
      const data = await this.#ask({ type: VIRTIO_BLK_T_IN, sector, readBytes: length });
      bytes.set(data, at);
    });
    return bytes;
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    await this.#inPieces(offset, bytes.length, async (at, length) => {
      const sector = (offset + at) / VIRTIO_BLK_SECTOR_BYTES;
      const write = bytes.subarray(at, at + length);
      await this.#ask({ type: VIRTIO_BLK_T_OUT, sector, write });
    });
  }

  /** When it resolves, what was written before it is where it stays. */
  async flush(): Promise<void> {
    const hasFlush = hasFeature(this.guest.features, VIRTIO_BLK_F_FLUSH);
    // 5.2.6.2: without the feature the device writes through, and nothing is left to flush.
    if (hasFlush) await this.#ask({ type: VIRTIO_BLK_T_FLUSH, sector: 0 });
  }

  /** The bytes are not needed any more; what a read finds there afterwards is not said. */
  async discard(offset: number, lenBytes: number): Promise<void> {
    await this.#ranges(VIRTIO_BLK_T_DISCARD, this.guest.config.discard, offset, lenBytes, 0);
  }

  /** `unmap`: the device may give the room back. */
  async writeZeroes(offset: number, lenBytes: number, unmap = false): Promise<void> {
    const flags = unmap ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP : 0;
    const limits = this.guest.config.writeZeroes;
    await this.#ranges(VIRTIO_BLK_T_WRITE_ZEROES, limits, offset, lenBytes, flags);
  }

  async secureErase(offset: number, lenBytes: number): Promise<void> {
    const limits = this.guest.config.secureErase;
    await this.#ranges(VIRTIO_BLK_T_SECURE_ERASE, limits, offset, lenBytes, 0);
  }

  /** The serial number: up to 20 bytes, without the zeroes that fill them. */
  async getId(): Promise<string> {
    const readBytes = VIRTIO_BLK_ID_BYTES;
    const bytes = await this.#ask({ type: VIRTIO_BLK_T_GET_ID, sector: 0, readBytes });
    const end = bytes.indexOf(0);
    return Buffer.from(bytes.subarray(0, end < 0 ? bytes.length : end)).toString('latin1');
  }

  /** How worn the medium is, where LIFETIME was negotiated. */
  async getLifetime(): Promise<BlkLifetime> {
    const readBytes = BlkLifetime.size;
    const type = VIRTIO_BLK_T_GET_LIFETIME;
    return BlkLifetime.decode(await this.#ask({ type, sector: 0, readBytes }));
  }

  async #ask(request: BlkRequest): Promise<Uint8Array> {
    return (await askDisk(this.guest, request)).data;
  }

  /** A transfer as requests of the longest kind, some of them at a time. */
  async #inPieces(
    offset: number,
    lenBytes: number,
    one: (at: number, length: number) => Promise<void>,
  ): Promise<void> {
    this.#checkAlignment(offset, lenBytes);
    const most = this.guest.requestBytes;
    let next = 0;
    const work = async (): Promise<void> => {
      while (next < lenBytes) {
        const at = next;
        const length = Math.min(most, lenBytes - at);
        next += length;
        await one(at, length);
      }
    };
    await allSettledOrThrow(Array.from({ length: DEPTH }, work));
  }

  /** As one range a request: devices differ in how many they take. */
  async #ranges(
    type: number,
    limits: RangeLimits | null,
    offset: number,
    lenBytes: number,
    flags: number,
  ): Promise<void> {
    this.#checkAlignment(offset, lenBytes);
    if (limits === null) {
      const name = blkRequestName(type);
      const text = `${this.guest.backend.description}: ${name} was not negotiated`;
      throw new VringError('ERR_VRING_BLK_UNSUPP', text);
    }
    const unit = this.guest.config.blockBytes;
    const most = Math.max(unit, Math.floor(limits.maxBytes / unit) * unit);
    for (let at = 0; at < lenBytes; at += most) {
      const write = BlkRange.encode({
        sector: BigInt((offset + at) / VIRTIO_BLK_SECTOR_BYTES),
        numSectors: Math.min(most, lenBytes - at) / VIRTIO_BLK_SECTOR_BYTES,
        flags,
      });
      await this.#ask({ type, sector: 0, write });
    }
  }

  #checkAlignment(offset: number, lenBytes: number): void {
    const unit = this.guest.config.blockBytes;
    if (offset % unit === 0 && lenBytes % unit === 0 && offset >= 0 && lenBytes >= 0) return;
    const text = `${lenBytes} bytes at ${offset}: multiples of the block of ${unit} are expected`;
    throw new VringError('ERR_VRING_BLK_ALIGNMENT', text);
  }
}

/** Waits for all, so that nothing is under way afterwards; the first error is the result. */
async function allSettledOrThrow(work: readonly Promise<void>[]): Promise<void> {
  const results = await Promise.allSettled(work);
  for (const result of results) if (result.status === 'rejected') throw result.reason;
}
