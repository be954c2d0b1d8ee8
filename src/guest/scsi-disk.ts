/** A disk of the SCSI guest: the commands that drivers of disks give, by what they mean. */
import * as scsi from '../wire/scsi.ts';
import type { ScsiGuest } from './scsi-driver.ts';

export type ScsiCapacity = {
  readonly blocks: number;
  readonly blockBytes: number;
  readonly provisioned: boolean;
  readonly readsZeros: boolean;
};

/** A CDB with big-endian fields: `scsiCdb(0x28, 10, [2, 4, lba], [7, 2, blocks])`. */
export function scsiCdb(
  opcode: number,
  sizeBytes: number,
  ...fields: readonly (readonly [at: number, bytes: number, value: number])[]
): Uint8Array {
  const cdb = new Uint8Array(sizeBytes);
  cdb[0] = opcode;
  for (const [at, bytes, value] of fields) {
    for (let i = bytes - 1, rest = value; i >= 0; i--, rest = Math.floor(rest / 256)) {
      cdb[at + i] = rest % 256;
    }
  }
  return cdb;
}

export class ScsiDisk {
  readonly guest: ScsiGuest;
  readonly target: number;
  readonly lun: number;

  constructor(guest: ScsiGuest, target: number, lun: number) {
    this.guest = guest;
    this.target = target;
    this.lun = lun;
  }

  /** Standard data, or a page of vital product data. @throws VringError ERR_VRING_GUEST_SCSI. */
  inquiry(page: number | null = null): Promise<Uint8Array> {
    const which: [number, number, number][] = [
      [1, 1, page === null ? 0 : 1],
      [2, 1, page ?? 0],
    ];
    return this.#in(scsiCdb(scsi.INQUIRY, 6, ...which, [3, 2, 255]), 255);
  }

  /** Units of the target. */
  async luns(): Promise<number[]> {
    const bytes = await this.#in(scsiCdb(scsi.REPORT_LUNS, 12, [6, 4, 4096]), 4096);
    const count = new DataView(bytes.buffer).getUint32(0) / 8;
    return Array.from({ length: count }, (_, i) => {
      return ((bytes[8 + 8 * i]! & 0x3f) << 8) | bytes[9 + 8 * i]!;
    });
  }

  async capacity(): Promise<ScsiCapacity> {
    const action = scsi.SA_READ_CAPACITY_16;
    const cdb = scsiCdb(scsi.SERVICE_ACTION_IN_16, 16, [1, 1, action], [10, 4, 32]);
    const bytes = await this.#in(cdb, 32);
    const view = new DataView(bytes.buffer);
    return {
      blocks: Number(view.getBigUint64(0)) + 1,
      blockBytes: view.getUint32(8),
      provisioned: (bytes[14]! & 0x80) !== 0,
      readsZeros: (bytes[14]! & 0x40) !== 0,
    };
  }

  read(lba: number, blocks: number, blockBytes: number, queue = 0): Promise<Uint8Array> {
    const cdb = scsiCdb(scsi.READ_16, 16, [2, 8, lba], [10, 4, blocks]);
    return this.#in(cdb, blocks * blockBytes, queue);
  }

  async write(lba: number, bytes: Uint8Array, blockBytes: number, queue = 0): Promise<void> {
    const cdb = scsiCdb(scsi.WRITE_16, 16, [2, 8, lba], [10, 4, bytes.length / blockBytes]);
    const { target, lun } = this;
    await this.guest.perform({ target, lun, cdb, out: bytes, queue });
  }

  async flush(): Promise<void> {
    await this.#in(scsiCdb(scsi.SYNCHRONIZE_CACHE_10, 10), 0);
  }

  #in(cdb: Uint8Array, inBytes: number, queue = 0): Promise<Uint8Array> {
    const { target, lun } = this;
    return this.guest.perform({ target, lun, cdb, inBytes, queue });
  }
}
