/** PERSISTENT RESERVE IN and OUT, SPC-4 6.15 and 6.16; RESERVE and RELEASE, SPC-2 7.18 to 7.22. */
import * as scsi from '../../wire/scsi.ts';
import { VIRTIO_SCSI_S_ABORTED } from '../../wire/virtio-scsi.ts';
import type { Command } from './command.ts';
import { IN_PARAMETERS } from './sense.ts';

const PARAMETER_BYTES = 24;
const DESCRIPTOR_BYTES = 24;
const TRANSPORT_ID_BYTES = 24;
/** PROTOCOL IDENTIFIER of SPC-4 7.6.1: no specific protocol. */
const NO_PROTOCOL = 0x0f;

const [ALL_TG_PT, APTPL, SPEC_I_PT] = [0x04, 0x01, 0x08];

export function reserve(command: Command): void {
  if (!command.unit.reservation.reserve(true)) command.conflict();
}

export function release(command: Command): void {
  if (!command.unit.reservation.reserve(false)) command.conflict();
}

export function readKeys(command: Command): void {
  if (isReserved(command)) return;
  const { key } = command.unit.reservation;
  const bytes = new Uint8Array(key === 0n ? 0 : 8);
  if (key !== 0n) new DataView(bytes.buffer).setBigUint64(0, key);
  answer(command, bytes);
}

export function readReservation(command: Command): void {
  if (isReserved(command)) return;
  const { key, type, isOfAll } = command.unit.reservation;
  const bytes = new Uint8Array(type === 0 ? 0 : 16);
  if (type !== 0) {
    new DataView(bytes.buffer).setBigUint64(0, isOfAll ? 0n : key);
    bytes[13] = type; // and LU_SCOPE
  }
  answer(command, bytes);
}

export function reportCapabilities(command: Command): void {
  if (isReserved(command)) return;
  // TMV, and all six types: no APTPL, no other ports, no other initiators (6.15.4).
  const bytes = Uint8Array.of(0, 8, 0, 0x80, 0xea, 0x01, 0, 0);
  command.answer(bytes, command.u16(7));
}

export function fullStatus(command: Command): void {
  if (isReserved(command)) return;
  const { key, type } = command.unit.reservation;
  const bytes = new Uint8Array(key === 0n ? 0 : DESCRIPTOR_BYTES + TRANSPORT_ID_BYTES);
  if (key !== 0n) {
    const view = new DataView(bytes.buffer);
    view.setBigUint64(0, key);
    bytes[12] = type === 0 ? 0 : 1; // R_HOLDER
    bytes[13] = type;
    view.setUint16(18, 1); // RELATIVE TARGET PORT IDENTIFIER: the only one
    view.setUint32(20, TRANSPORT_ID_BYTES);
    bytes[DESCRIPTOR_BYTES] = NO_PROTOCOL; // virtio has no names of initiators
  }
  answer(command, bytes);
}

export function persistentReserve(command: Command): void {
  if (isReserved(command)) return;
  const { reservation } = command.unit;
  if (command.u32(5) !== PARAMETER_BYTES) return command.fail(scsi.SENSE_PARAMETER_LENGTH);
  const list = command.parameters(PARAMETER_BYTES);
  if (list === null) return;
  // Not there: survival of power loss, other target ports, other initiators.
  if ((list[20]! & (ALL_TG_PT | APTPL | SPEC_I_PT)) !== 0) {
    return command.fail(scsi.SENSE_PARAMETER, IN_PARAMETERS | 20);
  }
  const view = new DataView(list.buffer);
  const outcome = reservation.carryOut({
    action: command.u8(1) & 0x1f,
    scope: command.u8(2) >> 4,
    type: command.u8(2) & 0xf,
    key: view.getBigUint64(0),
    actionKey: view.getBigUint64(8),
  });
  if (outcome === 'conflict') command.conflict();
  else if (outcome === 'wrong scope or type') command.fail(scsi.SENSE_CDB_FIELD, 2);
  else if (outcome === 'wrong action key') command.fail(scsi.SENSE_PARAMETER, IN_PARAMETERS | 8);
  else if (outcome === 'wrong release') command.fail(scsi.SENSE_RELEASE);
  else if (outcome === 'preempted') abortOthers(command);
}

/** It is answered when they have ended, each as if ABORT TASK had been called. */
function abortOthers(command: Command): void {
  const { flight: own, row: ownRow } = command;
  const others = command.work
    .tasks(command.unit)
    .filter(({ flight, row }) => flight !== own || row !== ownRow);
  for (const { flight, row } of others) flight.aborted[row] = VIRTIO_SCSI_S_ABORTED;
  command.begin({ after: others });
}

/** By RESERVE: then nothing persistent is looked at either (SPC-2 5.5.1). */
function isReserved(command: Command): boolean {
  if (!command.unit.reservation.isReserved) return false;
  command.conflict();
  return true;
}

function answer(command: Command, body: Uint8Array): void {
  const bytes = new Uint8Array(8 + body.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, command.unit.reservation.generation);
  view.setUint32(4, body.length);
  bytes.set(body, 8);
  command.answer(bytes, command.u16(7));
}
