/** MODE SENSE and MODE SELECT: SPC-4 6.11 to 6.14 and 7.5, SBC-3 6.5.5 (caching). */
import * as scsi from '../../wire/scsi.ts';
import type { Command } from './command.ts';
import type { Lun } from './lun.ts';
import { IN_PARAMETERS } from './sense.ts';

const CURRENT = 0; // PAGE CONTROL
const CHANGEABLE = 1;
const SAVED = 3;

const DPOFUA = 0x10;
const WRITE_PROTECTED = 0x80;
const WCE = 0x04;
const D_SENSE = 0x04;
const SWP = 0x08;

export function modeSense(command: Command): void {
  const isLong = command.u8(0) === scsi.MODE_SENSE_10;
  const control = command.u8(2) >> 6;
  const [page, subpage] = [command.u8(2) & 0x3f, command.u8(3)];
  const { unit } = command;
  if (control === SAVED) return command.fail(scsi.SENSE_SAVING);
  const isAll = page === scsi.MODE_ALL;
  const pages = [scsi.MODE_CACHING, scsi.MODE_CONTROL].filter((code) => isAll || code === page);
  if (pages.length === 0) return command.fail(scsi.SENSE_CDB_FIELD, 2);
  if (subpage !== 0 && !(isAll && subpage === 0xff)) return command.fail(scsi.SENSE_CDB_FIELD, 3);
  const isLongLba = isLong && (command.u8(1) & 0x10) !== 0;
  const descriptor = (command.u8(1) & 0x08) !== 0 ? [] : blockDescriptor(unit, isLongLba);
  const body = [...descriptor, ...pages.flatMap((code) => modePage(unit, code, control))];
  const parameter = DPOFUA | (unit.readOnly === 0 ? 0 : WRITE_PROTECTED);
  const head = isLong
    ? [...u16(body.length + 6), 0, parameter, isLongLba ? 1 : 0, 0, ...u16(descriptor.length)]
    : [body.length + 3, 0, parameter, descriptor.length];
  command.answer(Uint8Array.from([...head, ...body]), isLong ? command.u16(7) : command.u8(4));
}

export function modeSelect(command: Command): void {
  const isLong = command.u8(0) === scsi.MODE_SELECT_10;
  const length = isLong ? command.u16(7) : command.u8(4);
  if ((command.u8(1) & 0x10) === 0) return command.fail(scsi.SENSE_CDB_FIELD, 1); // PF
  if (length === 0) return;
  const list = command.parameters(length);
  if (list === null) return;
  const headBytes = isLong ? 8 : 4;
  if (length < headBytes) return command.fail(scsi.SENSE_PARAMETER_LENGTH);
  const descriptorBytes = isLong ? (list[6]! << 8) | list[7]! : list[3]!;
  const isLongLba = isLong && (list[4]! & 1) !== 0;
  const wanted = blockDescriptor(command.unit, isLongLba);
  if (descriptorBytes !== 0 && descriptorBytes !== wanted.length) {
    return command.fail(scsi.SENSE_PARAMETER, IN_PARAMETERS | (isLong ? 6 : 3));
  }
  const start = headBytes + descriptorBytes;
  if (start > length) return command.fail(scsi.SENSE_PARAMETER_LENGTH);
  // The last three bytes say how long a block is; how many there are may be given as anything.
  for (let i = descriptorBytes - 3; i > 0 && i < descriptorBytes; i++) {
    if (list[headBytes + i] !== wanted[i]) {
      return command.fail(scsi.SENSE_PARAMETER, IN_PARAMETERS | (headBytes + i));
    }
  }
  selectPages(command, list, start);
}

/** All pages are judged first: the command is carried out or it is not. */
function selectPages(command: Command, list: Uint8Array, start: number): void {
  const { unit } = command;
  const found: [code: number, at: number][] = [];
  for (let at = start; at < list.length;) {
    const code = list[at]! & 0x3f;
    const present = code === list[at] ? modePage(unit, code, CURRENT) : [];
    if (present.length === 0) return command.fail(scsi.SENSE_PARAMETER, IN_PARAMETERS | at);
    if (at + present.length > list.length) return command.fail(scsi.SENSE_PARAMETER_LENGTH);
    const changeable = modePage(unit, code, CHANGEABLE);
    for (let i = 1; i < present.length; i++) {
      const fixed = i === 1 ? 0xff : ~changeable[i]! & 0xff;
      if ((list[at + i]! & fixed) !== (present[i]! & fixed)) {
        return command.fail(scsi.SENSE_PARAMETER, IN_PARAMETERS | (at + i));
      }
    }
    found.push([code, at]);
    at += present.length;
  }
  for (const [code, at] of found) {
    if (code === scsi.MODE_CACHING) {
      setCache(command, (list[at + 2]! & WCE) === 0 ? 0 : 1);
    } else {
      unit.descriptorSense = (list[at + 2]! & D_SENSE) === 0 ? 0 : 1;
      unit.protect((list[at + 4]! & SWP) === 0 ? 0 : 1);
    }
  }
}

/** What is in the cache when it is switched off must become durable as well. */
function setCache(command: Command, writeCache: number): void {
  const { unit } = command;
  if (unit.writeCache === 1 && writeCache === 0) command.flush();
  unit.writeCache = writeCache;
}

/** Empty for a page that there is none of. */
function modePage(lun: Lun, code: number, control: number): number[] {
  const isMask = control === CHANGEABLE;
  if (code === scsi.MODE_CACHING) {
    const page = Array.from({ length: 20 }, () => 0);
    [page[0], page[1]] = [scsi.MODE_CACHING, 18];
    page[2] = isMask || control !== CURRENT || lun.writeCache === 1 ? WCE : 0;
    return page;
  }
  if (code !== scsi.MODE_CONTROL) return [];
  const page = Array.from({ length: 12 }, () => 0);
  [page[0], page[1]] = [scsi.MODE_CONTROL, 10];
  if (isMask) {
    [page[2], page[4]] = [D_SENSE, SWP];
    return page;
  }
  page[3] = 0x10; // QUEUE ALGORITHM MODIFIER: commands may be carried out in any order
  if (control !== CURRENT) return page;
  page[2] = lun.descriptorSense === 1 ? D_SENSE : 0;
  page[4] = lun.softwareProtect === 1 ? SWP : 0;
  return page;
}

function blockDescriptor(lun: Lun, isLongLba: boolean): number[] {
  const blocks = lun.blocks[0]!;
  const bytes = new Uint8Array(isLongLba ? 16 : 8);
  const view = new DataView(bytes.buffer);
  if (isLongLba) view.setBigUint64(0, BigInt(blocks));
  else view.setUint32(0, Math.min(blocks, 0xffff_ffff));
  const at = isLongLba ? 12 : 4;
  view.setUint32(at, lun.blockBytes); // the upper byte is another field, and 0
  return [...bytes];
}

function u16(value: number): [number, number] {
  return [value >> 8, value & 0xff];
}
