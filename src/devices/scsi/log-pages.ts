/**
 * LOG SENSE: SPC-4 6.7 and 7.3, of what is counted and true. There is no temperature, no wear, and
 * no count of resources that are left: a file system has those, and shares them.
 */
import * as scsi from '../../wire/scsi.ts';
import type { Command } from './command.ts';
import type { Lun } from './lun.ts';

/** PAGE CONTROL: cumulative values; there are no thresholds. */
const CUMULATIVE = 1;
const ALL_SUBPAGES = 0xff;

/** DS: nothing is saved. SPF: a subpage. */
const [DS, SPF] = [0x80, 0x40];
/** TSD of a parameter: nothing is saved; a binary counter that stops at its largest value. */
const CONTROL = 0x20;

// Parameters of the pages of error counters, and of start-stop cycles.
const TOTAL_BYTES = 5;
const UNCORRECTED = 6;
const START_STOP_CYCLES = 4;

type Parameter = readonly [code: number, value: Uint8Array];

const PAGES: ReadonlyMap<number, (lun: Lun) => Parameter[]> = new Map([
  [scsi.LOG_WRITE_ERRORS, (lun: Lun) => errorCounters(lun.movedBytes[1]!, lun.writeErrors)],
  [scsi.LOG_READ_ERRORS, (lun: Lun) => errorCounters(lun.movedBytes[0]!, lun.readErrors)],
  [scsi.LOG_START_STOP, ({ starts }: Lun) => [[START_STOP_CYCLES, counter(starts, 4)]]],
]);

export function logSense(command: Command): void {
  const control = command.u8(2) >> 6;
  const page = command.u8(2) & 0x3f;
  const subpage = command.u8(3);
  const pointer = command.u16(5);
  const allocated = command.u16(7);
  if (page === scsi.LOG_SUPPORTED) {
    if (subpage !== 0 && subpage !== ALL_SUBPAGES) return command.fail(scsi.SENSE_CDB_FIELD, 3);
    if (pointer !== 0) return command.fail(scsi.SENSE_CDB_FIELD, 5);
    return command.answer(supported(subpage), allocated);
  }
  const parameters = PAGES.get(page)?.(command.unit);
  if (parameters === undefined) return command.fail(scsi.SENSE_CDB_FIELD, 2);
  if (subpage !== 0) return command.fail(scsi.SENSE_CDB_FIELD, 3);
  if (control !== CUMULATIVE) return command.fail(scsi.SENSE_CDB_FIELD, 2);
  const wanted = parameters.filter(([code]) => code >= pointer);
  if (wanted.length === 0) return command.fail(scsi.SENSE_CDB_FIELD, 5);
  const body = wanted.flatMap(([code, value]) => {
    return [code >> 8, code & 0xff, CONTROL, value.length, ...value];
  });
  command.answer(pageOf(DS | page, 0, body), allocated);
}

function supported(subpage: number): Uint8Array {
  const pages = [scsi.LOG_SUPPORTED, ...PAGES.keys()];
  if (subpage === 0) return pageOf(scsi.LOG_SUPPORTED, 0, pages);
  const pairs = pages.flatMap((page) => (page === 0 ? [0, 0, 0, ALL_SUBPAGES] : [page, 0]));
  return pageOf(SPF | scsi.LOG_SUPPORTED, subpage, pairs);
}

function pageOf(head: number, subpage: number, body: readonly number[]): Uint8Array {
  return Uint8Array.of(head, subpage, body.length >> 8, body.length & 0xff, ...body);
}

/** What a medium corrects by itself nobody tells us. */
function errorCounters(bytes: number, uncorrected: number): Parameter[] {
  return [
    [TOTAL_BYTES, counter(bytes, 8)],
    [UNCORRECTED, counter(uncorrected, 4)],
  ];
}

function counter(value: number, sizeBytes: 4 | 8): Uint8Array {
  const bytes = new Uint8Array(sizeBytes);
  const view = new DataView(bytes.buffer);
  if (sizeBytes === 8) view.setBigUint64(0, BigInt(value));
  else view.setUint32(0, Math.min(value, 0xffff_ffff));
  return bytes;
}
