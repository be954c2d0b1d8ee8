/** READ BUFFER and WRITE BUFFER, SPC-4 6.18, 6.49: of data and echo; no microcode is loaded. */
import * as scsi from '../../wire/scsi.ts';
import type { Command } from './command.ts';
import { BUFFER_BYTES, ECHO_BYTES } from './limits.ts';

/** OFFSET BOUNDARY is 0: at every byte. */
const DESCRIPTOR = Uint8Array.of(0, BUFFER_BYTES >> 16, (BUFFER_BYTES >> 8) & 0xff, 0);
const ECHO_DESCRIPTOR = Uint8Array.of(0, 0, ECHO_BYTES >> 8, 0);

export function readBuffer(command: Command): void {
  const { mode, id, offset, sizeBytes } = fields(command);
  const { buffers } = command.unit;
  switch (mode) {
    case scsi.BUFFER_DATA:
      if (id !== 0) return command.fail(scsi.SENSE_CDB_FIELD, 2);
      if (offset > BUFFER_BYTES) return command.fail(scsi.SENSE_CDB_FIELD, 3);
      return command.answer(buffers.read(offset, sizeBytes), sizeBytes);
    case scsi.BUFFER_DESCRIPTOR: // of a buffer that is none: all zeros
      return command.answer(id === 0 ? DESCRIPTOR : new Uint8Array(4), sizeBytes);
    case scsi.BUFFER_ECHO:
      if (buffers.echo === null) return command.fail(scsi.SENSE_SEQUENCE);
      return command.answer(buffers.echo, sizeBytes);
    case scsi.BUFFER_ECHO_DESCRIPTOR:
      return command.answer(ECHO_DESCRIPTOR, sizeBytes);
    default:
      return command.fail(scsi.SENSE_CDB_FIELD, 1);
  }
}

export function writeBuffer(command: Command): void {
  const { mode, id, offset, sizeBytes } = fields(command);
  const isEcho = mode === scsi.BUFFER_ECHO;
  if (!isEcho && mode !== scsi.BUFFER_DATA) return command.fail(scsi.SENSE_CDB_FIELD, 1);
  if (!isEcho && id !== 0) return command.fail(scsi.SENSE_CDB_FIELD, 2);
  if (!isEcho && offset > BUFFER_BYTES) return command.fail(scsi.SENSE_CDB_FIELD, 3);
  const room = isEcho ? ECHO_BYTES : BUFFER_BYTES - offset;
  if (sizeBytes > room) return command.fail(scsi.SENSE_CDB_FIELD, 6);
  if (sizeBytes === 0) return;
  const bytes = command.parameters(sizeBytes);
  if (bytes === null) return;
  if (isEcho) command.unit.buffers.echo = bytes;
  else command.unit.buffers.write(offset, bytes);
}

type Fields = { mode: number; id: number; offset: number; sizeBytes: number };

function fields(command: Command): Fields {
  const [mode, id] = [command.u8(1) & 0x1f, command.u8(2)];
  const offset = command.u32(2) & 0xff_ffff;
  return { mode, id, offset, sizeBytes: command.u32(5) & 0xff_ffff };
}
