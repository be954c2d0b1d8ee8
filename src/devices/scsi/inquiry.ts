/** INQUIRY, its vital product data, and REQUEST SENSE. SPC-4 6.4, 6.39, 7.8; SBC-3 6.6. */
import * as scsi from '../../wire/scsi.ts';
import type { Command } from './command.ts';
import {
  MAX_COMPARE_BLOCKS,
  MAX_TRANSFER_BYTES,
  MAX_UNMAP_BYTES,
  MAX_UNMAP_RANGES,
  MAX_WRITE_SAME_BYTES,
} from './limits.ts';
import { isStopped, type Lun } from './lun.ts';
import { encodeSense, NONE } from './sense.ts';

const VENDOR = 'vring   ';
const PRODUCT = 'DISK            ';
const REVISION = '1   ';
/** PERIPHERAL QUALIFIER 3, type 1Fh: there may be such a unit, and there is none. */
const NO_UNIT = 0x7f;
const WELL_KNOWN_TYPE = 0x1e;
/** What a file system lives in, whatever the logical block. */
export const PHYSICAL_BYTES = 4096;

export function inquiry(command: Command): void {
  const { lun } = command;
  const hasPage = (command.u8(1) & 1) !== 0;
  const page = command.u8(2);
  const allocated = command.u16(3);
  if (!hasPage) {
    if (page !== 0) command.fail(scsi.SENSE_CDB_FIELD, 2);
    else command.answer(standard(command), allocated);
    return;
  }
  const bytes = lun === null ? null : vitalData(lun, page);
  if (bytes === null) command.fail(scsi.SENSE_CDB_FIELD, 2);
  else command.answer(bytes, allocated);
}

export function requestSense(command: Command): void {
  const { lun } = command;
  let code = lun === null ? scsi.SENSE_LUN : lun.takeAttention();
  if (lun !== null && code === 0 && isStopped(lun)) code = scsi.SENSE_STOPPED;
  const asDescriptors = (command.u8(1) & 1) !== 0;
  command.answer(encodeSense(code, NONE, NONE, asDescriptors), command.u8(4));
}

function standard({ lun, flight, row }: Command): Uint8Array {
  const bytes = new Uint8Array(96);
  bytes[0] = lun !== null ? 0 : flight.lun[row] === -2 ? WELL_KNOWN_TYPE : NO_UNIT;
  bytes[2] = 6; //    SPC-4
  bytes[3] = 0x12; // HISUP, response format 2
  bytes[4] = bytes.length - 5;
  bytes[7] = 0x02; // CMDQUE
  bytes.set(ascii(VENDOR + PRODUCT + REVISION), 8);
  // Version descriptors: SAM-5, SPC-4, SBC-3, none of them with a version claimed.
  bytes.set([0x00, 0xa0, 0x04, 0x60, 0x04, 0xc0], 58);
  return bytes;
}

const PAGES: ReadonlyMap<number, (lun: Lun) => Uint8Array> = new Map([
  [scsi.VPD_SUPPORTED, () => Uint8Array.from(PAGES.keys())],
  [scsi.VPD_SERIAL, ({ serial }: Lun) => ascii(serial)],
  [scsi.VPD_IDENTIFICATION, identification],
  [scsi.VPD_EXTENDED, extended],
  [scsi.VPD_BLOCK_LIMITS, blockLimits],
  [scsi.VPD_BLOCK_CHARACTERISTICS, characteristics],
  [scsi.VPD_PROVISIONING, provisioning],
]);

/** Null: no such page. */
function vitalData(lun: Lun, page: number): Uint8Array | null {
  const body = PAGES.get(page)?.(lun);
  if (body === undefined) return null;
  return Uint8Array.of(0, page, body.length >> 8, body.length & 0xff, ...body);
}

/** Two names of the unit: by its serial number, and a locally assigned number made of it. */
function identification({ serial }: Lun): Uint8Array {
  const name = ascii(VENDOR + serial);
  const number = new Uint8Array(8);
  new DataView(number.buffer).setBigUint64(0, (0x3n << 60n) | hash60(serial));
  return Uint8Array.of(0x02, 0x01, 0, name.length, ...name, 0x01, 0x03, 0, 8, ...number);
}

/** FNV-1a, its upper bits: the same disk has the same number wherever it is served. */
function hash60(text: string): bigint {
  let hash = 0xcbf29ce484222325n;
  for (const byte of ascii(text)) {
    hash = ((hash ^ BigInt(byte)) * 0x100000001b3n) & 0xffff_ffff_ffff_ffffn;
  }
  return hash >> 4n;
}

function extended(): Uint8Array {
  const bytes = new Uint8Array(60);
  bytes[1] = 0x01; // SIMPSUP: other task attributes are taken as SIMPLE
  bytes[2] = 0x01; // V_SUP: there is a volatile cache
  return bytes;
}

function blockLimits({ blockBytes }: Lun): Uint8Array {
  const bytes = new Uint8Array(60);
  const view = new DataView(bytes.buffer);
  const physical = Math.max(1, PHYSICAL_BYTES / blockBytes);
  bytes[0] = 0x01; // WSNZ: WRITE SAME of no blocks is refused
  bytes[1] = MAX_COMPARE_BLOCKS;
  view.setUint16(2, physical); //                         optimal granularity
  view.setUint32(4, MAX_TRANSFER_BYTES / blockBytes);
  view.setUint32(16, MAX_UNMAP_BYTES / blockBytes);
  view.setUint32(20, MAX_UNMAP_RANGES);
  view.setUint32(24, physical); //                        optimal unmap granularity
  view.setUint32(28, 0x8000_0000); //                     UGAVALID, alignment 0
  view.setBigUint64(32, BigInt(MAX_WRITE_SAME_BYTES / blockBytes));
  return bytes;
}

function characteristics(): Uint8Array {
  const bytes = new Uint8Array(60);
  bytes[1] = 1; // does not rotate
  return bytes;
}

function provisioning(): Uint8Array {
  // LBPU, LBPWS, LBPWS10, and LBPRZ: what is unmapped reads as zeros. Thin provisioned.
  return Uint8Array.of(0, 0xe4, 0x02, 0);
}

function ascii(text: string): Uint8Array {
  return Uint8Array.from(text, (character) => character.charCodeAt(0));
}
