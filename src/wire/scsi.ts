/**
 * SCSI as disks speak it: operation codes, status, sense, vital product data. Pure. SPC-4
 * (T10/1731-D) for what all devices have, SBC-3 (T10/1799-D) for disks, SAM-5 for status and task
 * management. Everything in CDBs and answers is big-endian.
 */

// Operation codes; service actions below.
export const TEST_UNIT_READY = 0x00;
export const REQUEST_SENSE = 0x03;
export const READ_6 = 0x08;
export const WRITE_6 = 0x0a;
export const INQUIRY = 0x12;
export const MODE_SELECT_6 = 0x15;
export const RESERVE_6 = 0x16;
export const RELEASE_6 = 0x17;
export const MODE_SENSE_6 = 0x1a;
export const START_STOP_UNIT = 0x1b;
export const SEND_DIAGNOSTIC = 0x1d;
export const PREVENT_ALLOW = 0x1e;
export const READ_CAPACITY_10 = 0x25;
export const READ_10 = 0x28;
export const WRITE_10 = 0x2a;
export const WRITE_AND_VERIFY_10 = 0x2e;
export const VERIFY_10 = 0x2f;
export const SYNCHRONIZE_CACHE_10 = 0x35;
export const WRITE_BUFFER = 0x3b;
export const READ_BUFFER = 0x3c;
export const WRITE_SAME_10 = 0x41;
export const UNMAP = 0x42;
export const LOG_SENSE = 0x4d;
export const MODE_SELECT_10 = 0x55;
export const RESERVE_10 = 0x56;
export const RELEASE_10 = 0x57;
export const MODE_SENSE_10 = 0x5a;
export const PERSISTENT_RESERVE_IN = 0x5e;
export const PERSISTENT_RESERVE_OUT = 0x5f;
export const READ_16 = 0x88;
export const COMPARE_AND_WRITE = 0x89;
export const WRITE_16 = 0x8a;
export const WRITE_AND_VERIFY_16 = 0x8e;
export const VERIFY_16 = 0x8f;
export const SYNCHRONIZE_CACHE_16 = 0x91;
export const WRITE_SAME_16 = 0x93;
export const SERVICE_ACTION_IN_16 = 0x9e;
export const REPORT_LUNS = 0xa0;
export const MAINTENANCE_IN = 0xa3;
export const READ_12 = 0xa8;
export const WRITE_12 = 0xaa;
export const WRITE_AND_VERIFY_12 = 0xae;
export const VERIFY_12 = 0xaf;

// Service actions of SERVICE ACTION IN (16) and of MAINTENANCE IN.
export const SA_READ_CAPACITY_16 = 0x10;
export const SA_GET_LBA_STATUS = 0x12;
export const SA_REPORT_OPCODES = 0x0c;
export const SA_REPORT_TASK_FUNCTIONS = 0x0d;

// Service actions of PERSISTENT RESERVE IN and OUT, SPC-4 6.15, 6.16.
export const PR_READ_KEYS = 0;
export const PR_READ_RESERVATION = 1;
export const PR_REPORT_CAPABILITIES = 2;
export const PR_READ_FULL_STATUS = 3;
export const PR_REGISTER = 0;
export const PR_RESERVE = 1;
export const PR_RELEASE = 2;
export const PR_CLEAR = 3;
export const PR_PREEMPT = 4;
export const PR_PREEMPT_AND_ABORT = 5;
export const PR_REGISTER_AND_IGNORE = 6;

// Types of persistent reservations, SPC-4 6.15.3.4.
export const PR_WRITE_EXCLUSIVE = 1;
export const PR_EXCLUSIVE_ACCESS = 3;
export const PR_WRITE_EXCLUSIVE_REGISTRANTS = 5;
export const PR_EXCLUSIVE_ACCESS_REGISTRANTS = 6;
export const PR_WRITE_EXCLUSIVE_ALL = 7;
export const PR_EXCLUSIVE_ACCESS_ALL = 8;

// Status, SAM-5 5.3.1.
export const STATUS_GOOD = 0x00;
export const STATUS_CHECK_CONDITION = 0x02;
export const STATUS_BUSY = 0x08;
export const STATUS_RESERVATION_CONFLICT = 0x18;
export const STATUS_TASK_SET_FULL = 0x28;

// Sense keys, SPC-4 4.5.6.
export const KEY_NO_SENSE = 0x0;
export const KEY_NOT_READY = 0x2;
export const KEY_MEDIUM_ERROR = 0x3;
export const KEY_HARDWARE_ERROR = 0x4;
export const KEY_ILLEGAL_REQUEST = 0x5;
export const KEY_UNIT_ATTENTION = 0x6;
export const KEY_DATA_PROTECT = 0x7;
export const KEY_ABORTED_COMMAND = 0xb;
export const KEY_MISCOMPARE = 0xe;

const KEY_NAMES: Readonly<Record<number, string>> = {
  0x0: 'NO SENSE',
  0x1: 'RECOVERED ERROR',
  0x2: 'NOT READY',
  0x3: 'MEDIUM ERROR',
  0x4: 'HARDWARE ERROR',
  0x5: 'ILLEGAL REQUEST',
  0x6: 'UNIT ATTENTION',
  0x7: 'DATA PROTECT',
  0x8: 'BLANK CHECK',
  0xb: 'ABORTED COMMAND',
  0xd: 'VOLUME OVERFLOW',
  0xe: 'MISCOMPARE',
};

export function senseKeyName(key: number): string {
  return KEY_NAMES[key] ?? `KEY_${key}`;
}

/** A sense in one number: key, additional code, its qualifier. */
export function senseCode(key: number, asc: number, ascq = 0): number {
  return (key << 16) | (asc << 8) | ascq;
}

// SPC-4, annex F: the additional sense codes that a disk of ours gives.
export const SENSE_NONE = senseCode(KEY_NO_SENSE, 0);
export const SENSE_STOPPED = senseCode(KEY_NOT_READY, 0x04, 0x02);
export const SENSE_READ_ERROR = senseCode(KEY_MEDIUM_ERROR, 0x11);
export const SENSE_WRITE_ERROR = senseCode(KEY_MEDIUM_ERROR, 0x0c);
export const SENSE_TIMEOUT = senseCode(KEY_HARDWARE_ERROR, 0x08, 0x01);
export const SENSE_TARGET_FAILURE = senseCode(KEY_HARDWARE_ERROR, 0x44);
export const SENSE_PARAMETER_LENGTH = senseCode(KEY_ILLEGAL_REQUEST, 0x1a);
export const SENSE_OPCODE = senseCode(KEY_ILLEGAL_REQUEST, 0x20);
export const SENSE_LBA = senseCode(KEY_ILLEGAL_REQUEST, 0x21);
export const SENSE_CDB_FIELD = senseCode(KEY_ILLEGAL_REQUEST, 0x24);
export const SENSE_LUN = senseCode(KEY_ILLEGAL_REQUEST, 0x25);
export const SENSE_PARAMETER = senseCode(KEY_ILLEGAL_REQUEST, 0x26);
export const SENSE_RELEASE = senseCode(KEY_ILLEGAL_REQUEST, 0x26, 0x04);
export const SENSE_SEQUENCE = senseCode(KEY_ILLEGAL_REQUEST, 0x2c);
export const SENSE_SAVING = senseCode(KEY_ILLEGAL_REQUEST, 0x39);
export const SENSE_POWER_ON = senseCode(KEY_UNIT_ATTENTION, 0x29);
export const SENSE_RESET = senseCode(KEY_UNIT_ATTENTION, 0x29, 0x03);
export const SENSE_NEXUS_LOSS = senseCode(KEY_UNIT_ATTENTION, 0x29, 0x07);
export const SENSE_CAPACITY_CHANGED = senseCode(KEY_UNIT_ATTENTION, 0x2a, 0x09);
export const SENSE_LUNS_CHANGED = senseCode(KEY_UNIT_ATTENTION, 0x3f, 0x0e);
export const SENSE_WRITE_PROTECTED = senseCode(KEY_DATA_PROTECT, 0x27);
export const SENSE_SPACE = senseCode(KEY_DATA_PROTECT, 0x27, 0x07);
export const SENSE_MISCOMPARE = senseCode(KEY_MISCOMPARE, 0x1d);

// Vital product data, SPC-4 7.8 and SBC-3 6.6.
export const VPD_SUPPORTED = 0x00;
export const VPD_SERIAL = 0x80;
export const VPD_IDENTIFICATION = 0x83;
export const VPD_EXTENDED = 0x86;
export const VPD_BLOCK_LIMITS = 0xb0;
export const VPD_BLOCK_CHARACTERISTICS = 0xb1;
export const VPD_PROVISIONING = 0xb2;

// Mode pages, SBC-3 6.5.5 and SPC-4 7.5.8.
export const MODE_CACHING = 0x08;
export const MODE_CONTROL = 0x0a;
export const MODE_ALL = 0x3f;

// Log pages, SPC-4 7.3.
export const LOG_SUPPORTED = 0x00;
export const LOG_WRITE_ERRORS = 0x02;
export const LOG_READ_ERRORS = 0x03;
export const LOG_START_STOP = 0x0e;

// Modes of READ BUFFER and WRITE BUFFER, SPC-4 6.18, 6.49.
export const BUFFER_DATA = 0x02;
export const BUFFER_DESCRIPTOR = 0x03;
export const BUFFER_ECHO = 0x0a;
export const BUFFER_ECHO_DESCRIPTOR = 0x0b;

/** The REPORT LUNS well-known logical unit, SAM-5 4.7.10: bytes 2 and 3 of an address. */
export const WELL_KNOWN_REPORT_LUNS = 0xc101;

/** Fixed and descriptor format, current errors: SPC-4 4.5.2, 4.5.3. */
export const SENSE_FIXED = 0x70;
export const SENSE_DESCRIPTOR = 0x72;

export type Sense = {
  readonly key: number;
  readonly asc: number;
  readonly ascq: number;
  /** Where it applies; a LBA as a rule. */
  readonly information: number | null;
  /** Byte of the CDB, or of the parameter list, that is wrong. */
  readonly field: { readonly inCdb: boolean; readonly byte: number } | null;
};

/** Sense data of either format; null for what is neither. */
export function decodeSense(bytes: Uint8Array): Sense | null {
  const kind = (bytes[0] ?? 0) & 0x7f;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (kind === SENSE_FIXED && bytes.length >= 18) {
    const isValid = (bytes[0]! & 0x80) !== 0;
    return {
      key: bytes[2]! & 0xf,
      asc: bytes[12]!,
      ascq: bytes[13]!,
      information: isValid ? view.getUint32(3) : null,
      field: fieldOf(bytes[15]!, view.getUint16(16)),
    };
  }
  if (kind !== SENSE_DESCRIPTOR || bytes.length < 8) return null;
  let [information, field]: [number | null, Sense['field']] = [null, null];
  const end = Math.min(bytes.length, 8 + bytes[7]!);
  for (let at = 8; at + 2 <= end && at + 2 + bytes[at + 1]! <= end; at += 2 + bytes[at + 1]!) {
    if (bytes[at] === 0 && bytes[at + 1] === 10) information = Number(view.getBigUint64(at + 4));
    else if (bytes[at] === 2 && bytes[at + 1] === 6) {
      field = fieldOf(bytes[at + 4]!, view.getUint16(at + 5));
    }
  }
  return { key: bytes[1]! & 0xf, asc: bytes[2]!, ascq: bytes[3]!, information, field };
}

function fieldOf(first: number, byte: number): Sense['field'] {
  return (first & 0x80) === 0 ? null : { inCdb: (first & 0x40) !== 0, byte };
}
