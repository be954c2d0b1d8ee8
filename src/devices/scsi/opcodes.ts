/**
 * Which commands there are, which bits of their CDBs mean something, and what carries them out. A
 * CDB with another bit set is refused, and its sense data say where. SPC-4 6.35 makes the same
 * table an answer of the device.
 */
import * as scsi from '../../wire/scsi.ts';
import { compareAndWrite, unmap, verify, writeAndVerify, writeSame } from './block-commands.ts';
import { readBuffer, writeBuffer } from './buffer-commands.ts';
import type { Command } from './command.ts';
import { getLbaStatus } from './lba-status.ts';
import { logSense } from './log-pages.ts';
import { inquiry, requestSense } from './inquiry.ts';
import { isParked, isStopped, type Lun } from './lun.ts';
import { modeSelect, modeSense } from './mode-pages.ts';
import {
  fullStatus,
  persistentReserve,
  readKeys,
  readReservation,
  release,
  reportCapabilities,
  reserve,
} from './reserve-commands.ts';
import * as unit from './unit-commands.ts';

export type Opcode = {
  readonly opcode: number;
  /** Service action, where the opcode has them. */
  readonly action: number | null;
  /** Bits that may be set, byte by byte: CDB USAGE DATA. */
  readonly usage: Uint8Array;
  /** Null: READ and WRITE, which are carried out before (read-commands.hot.ts). */
  readonly run: ((command: Command) => void) | null;
  /** When it is answered: by a unit that is ready; also when stopped; also without a unit. */
  readonly answers: 'ready' | 'stopped' | 'no unit';
};

type Row = readonly [
  opcode: number,
  usage: string,
  run: ((command: Command) => void) | null,
  answers?: Opcode['answers'],
];

// Bits that may be set, without byte 0; the last byte is CONTROL. Group numbers mean nothing here.
const MOVE_6 = '1f ff ff ff 00';
const MOVE_10 = 'f8 ff ff ff ff 1f ff ff 00';
const MOVE_12 = 'f8 ff ff ff ff ff ff ff ff 1f 00';
const MOVE_16 = 'f8 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00';
const CHECK_10 = 'f6 ff ff ff ff 1f ff ff 00';
const CHECK_12 = 'f6 ff ff ff ff ff ff ff ff 1f 00';
const CHECK_16 = 'f6 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00';
const FLUSH_10 = '06 ff ff ff ff 1f ff ff 00';
const FLUSH_16 = '06 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00';
const SAME_16 = 'f9 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00';
const CAPACITY_10 = '00 ff ff ff ff 00 00 01 00';
const CAPACITY_16 = '10 00 00 00 00 00 00 00 00 ff ff ff ff 00 00';
const LBA_STATUS = '12 ff ff ff ff ff ff ff ff ff ff ff ff 00 00';
const COMPARE = 'f8 ff ff ff ff ff ff ff ff 00 00 00 ff 1f 00';
const OPCODES_IN = '0c 87 ff ff ff ff ff ff ff 00 00';
const TASKS_IN = '0d 80 00 00 00 ff ff ff ff 00 00';

const BUFFER = '1f ff ff ff ff ff ff ff 00';
const NOTHING_6 = '00 00 00 00 00';
const NOTHING_10 = '00 00 00 00 00 00 00 00 00';
const reserveIn = (action: number): string => `0${action} 00 00 00 00 00 ff ff 00`;
const reserveOut = (action: number): string => `0${action} ff 00 00 ff ff ff ff 00`;
const RESERVE_ACTIONS = [
  scsi.PR_REGISTER,
  scsi.PR_RESERVE,
  scsi.PR_RELEASE,
  scsi.PR_CLEAR,
  scsi.PR_PREEMPT,
  scsi.PR_PREEMPT_AND_ABORT,
  scsi.PR_REGISTER_AND_IGNORE,
];

const ROWS: readonly Row[] = [
  [scsi.TEST_UNIT_READY, NOTHING_6, unit.testUnitReady],
  [scsi.REQUEST_SENSE, '01 00 00 ff 00', requestSense, 'no unit'],
  [scsi.READ_6, MOVE_6, null],
  [scsi.WRITE_6, MOVE_6, null],
  [scsi.INQUIRY, '01 ff ff ff 00', inquiry, 'no unit'],
  [scsi.MODE_SELECT_6, '10 00 00 ff 00', modeSelect, 'stopped'],
  [scsi.RESERVE_6, NOTHING_6, reserve, 'stopped'],
  [scsi.RELEASE_6, NOTHING_6, release, 'stopped'],
  [scsi.MODE_SENSE_6, '08 ff ff ff 00', modeSense, 'stopped'],
  [scsi.START_STOP_UNIT, '01 00 0f f7 00', unit.startStop, 'stopped'],
  [scsi.SEND_DIAGNOSTIC, 'f7 00 ff ff 00', unit.sendDiagnostic, 'stopped'],
  [scsi.PREVENT_ALLOW, '00 00 00 03 00', unit.preventAllow, 'stopped'],
  [scsi.READ_CAPACITY_10, CAPACITY_10, unit.readCapacity10],
  [scsi.READ_10, MOVE_10, null],
  [scsi.WRITE_10, MOVE_10, null],
  [scsi.WRITE_AND_VERIFY_10, CHECK_10, writeAndVerify],
  [scsi.VERIFY_10, CHECK_10, verify],
  [scsi.SYNCHRONIZE_CACHE_10, FLUSH_10, unit.synchronizeCache],
  [scsi.WRITE_BUFFER, BUFFER, writeBuffer, 'stopped'],
  [scsi.READ_BUFFER, BUFFER, readBuffer, 'stopped'],
  [scsi.WRITE_SAME_10, MOVE_10, writeSame],
  [scsi.UNMAP, '01 00 00 00 00 1f ff ff 00', unmap],
  [scsi.LOG_SENSE, '00 ff ff 00 ff ff ff ff 00', logSense, 'stopped'],
  [scsi.MODE_SELECT_10, '10 00 00 00 00 00 ff ff 00', modeSelect, 'stopped'],
  [scsi.RESERVE_10, NOTHING_10, reserve, 'stopped'],
  [scsi.RELEASE_10, NOTHING_10, release, 'stopped'],
  [scsi.MODE_SENSE_10, '18 ff ff 00 00 00 ff ff 00', modeSense, 'stopped'],
  [scsi.PERSISTENT_RESERVE_IN, reserveIn(scsi.PR_READ_KEYS), readKeys, 'stopped'],
  [scsi.PERSISTENT_RESERVE_IN, reserveIn(scsi.PR_READ_RESERVATION), readReservation, 'stopped'],
  [
    scsi.PERSISTENT_RESERVE_IN,
    reserveIn(scsi.PR_REPORT_CAPABILITIES),
    reportCapabilities,
    'stopped',
  ],
  [scsi.PERSISTENT_RESERVE_IN, reserveIn(scsi.PR_READ_FULL_STATUS), fullStatus, 'stopped'],
  ...RESERVE_ACTIONS.map((action): Row => {
    return [scsi.PERSISTENT_RESERVE_OUT, reserveOut(action), persistentReserve, 'stopped'];
  }),
  [scsi.READ_16, MOVE_16, null],
  [scsi.COMPARE_AND_WRITE, COMPARE, compareAndWrite],
  [scsi.WRITE_16, MOVE_16, null],
  [scsi.WRITE_AND_VERIFY_16, CHECK_16, writeAndVerify],
  [scsi.VERIFY_16, CHECK_16, verify],
  [scsi.SYNCHRONIZE_CACHE_16, FLUSH_16, unit.synchronizeCache],
  [scsi.WRITE_SAME_16, SAME_16, writeSame],
  [scsi.SERVICE_ACTION_IN_16, CAPACITY_16, unit.readCapacity16],
  [scsi.SERVICE_ACTION_IN_16, LBA_STATUS, getLbaStatus],
  [scsi.REPORT_LUNS, '00 ff 00 00 00 ff ff ff ff 00 00', unit.reportLuns, 'no unit'],
  [scsi.MAINTENANCE_IN, OPCODES_IN, reportOpcodes, 'stopped'],
  [scsi.MAINTENANCE_IN, TASKS_IN, unit.reportTaskFunctions, 'stopped'],
  [scsi.READ_12, MOVE_12, null],
  [scsi.WRITE_12, MOVE_12, null],
  [scsi.WRITE_AND_VERIFY_12, CHECK_12, writeAndVerify],
  [scsi.VERIFY_12, CHECK_12, verify],
];

/** Opcodes whose byte 1 has a service action, which is in `usage` as it is. */
const WITH_ACTIONS = new Set([
  scsi.SERVICE_ACTION_IN_16,
  scsi.MAINTENANCE_IN,
  scsi.PERSISTENT_RESERVE_IN,
  scsi.PERSISTENT_RESERVE_OUT,
]);

export const OPCODES: readonly Opcode[] = ROWS.map(([opcode, text, run, answers = 'ready']) => {
  const usage = Uint8Array.from([opcode, ...text.split(' ').map((byte) => Number(`0x${byte}`))]);
  const action = WITH_ACTIONS.has(opcode) ? usage[1]! : null;
  return { opcode, action, usage, run, answers };
});

const BY_OPCODE = new Map<number, Opcode[]>();
for (const entry of OPCODES) {
  BY_OPCODE.set(entry.opcode, [...(BY_OPCODE.get(entry.opcode) ?? []), entry]);
}

/**
 * Carries the command out, or begins to; whatever comes of it is in the row. False: it is a READ or
 * WRITE of a unit that has nothing to say.
 */
export function execute(command: Command): boolean {
  const { lun } = command;
  const entries = BY_OPCODE.get(command.u8(0)) ?? [];
  const action = command.u8(1) & 0x1f;
  const entry = entries.find((one) => one.action === null || one.action === action);
  if (lun !== null && isParked(lun)) {
    command.refuse();
    return true;
  }
  const attention = lun === null || entry?.answers === 'no unit' ? 0 : lun.takeAttention();
  if (lun === null && entry?.answers !== 'no unit') command.fail(scsi.SENSE_LUN);
  else if (attention !== 0) command.fail(attention);
  else if (entries.length === 0) command.fail(scsi.SENSE_OPCODE, 0);
  else if (entry === undefined) command.fail(scsi.SENSE_CDB_FIELD, 1);
  else if (entry.answers === 'ready' && isStopped(lun as Lun)) command.fail(scsi.SENSE_STOPPED);
  else if (entry.run === null) return false;
  else if (hasOnly(command, entry)) entry.run(command);
  return true;
}

function hasOnly(command: Command, { usage, action }: Opcode): boolean {
  for (let i = action === null ? 1 : 2; i < usage.length; i++) {
    if ((command.u8(i) & ~usage[i]!) === 0) continue;
    command.fail(scsi.SENSE_CDB_FIELD, i);
    return false;
  }
  return true;
}

/** SPC-4 6.35: all of them, or one. */
function reportOpcodes(command: Command): void {
  const options = command.u8(2) & 7;
  const hasTimeouts = (command.u8(2) & 0x80) !== 0;
  const opcode = command.u8(3);
  const action = command.u16(4);
  const allocated = command.u32(6);
  if (options === 0) return command.answer(allOpcodes(hasTimeouts), allocated);
  const entries = BY_OPCODE.get(opcode) ?? [];
  const hasActions = entries.some((one) => one.action !== null);
  if (options > 3) return command.fail(scsi.SENSE_CDB_FIELD, 2);
  if (options === 1 && hasActions) return command.fail(scsi.SENSE_CDB_FIELD, 3);
  if (options === 2 && entries.length > 0 && !hasActions) {
    return command.fail(scsi.SENSE_CDB_FIELD, 3);
  }
  const found = entries.find((one) => (hasActions ? one.action === action : action === 0));
  const usage = found?.usage ?? new Uint8Array(0);
  const support = found === undefined ? 1 : 3; // not at all; as the standard has it
  const head = [0, support | (found !== undefined && hasTimeouts ? 0x80 : 0), 0, usage.length];
  const tail = found !== undefined && hasTimeouts ? timeouts() : [];
  command.answer(Uint8Array.from([...head, ...usage, ...tail]), allocated);
}

function allOpcodes(hasTimeouts: boolean): Uint8Array {
  const entries = OPCODES.flatMap(({ opcode, action, usage }) => {
    const flags = (action === null ? 0 : 1) | (hasTimeouts ? 2 : 0);
    const code = action ?? 0;
    const entry = [opcode, 0, code >> 8, code & 0xff, 0, flags, 0, usage.length];
    return hasTimeouts ? [...entry, ...timeouts()] : entry;
  });
  const bytes = Uint8Array.from([0, 0, 0, 0, ...entries]);
  new DataView(bytes.buffer).setUint32(0, entries.length);
  return bytes;
}

/** Of SPC-4 6.35.4: neither a usual nor a longest time is known. */
function timeouts(): number[] {
  return [0, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
}
