/** Sense data in bytes, and what an error number of the medium means to a SCSI driver. */
import * as scsi from '../../wire/scsi.ts';
import { EINVAL, EIO, EOPNOTSUPP, EROFS } from '../../sys/index.ts';

/** The longer of the two formats with both descriptors. */
export const SENSE_BYTES = 28;

const ENOSPC = 28; // uapi/asm-generic/errno-base.h, errno.h
const ETIMEDOUT = 110;

/** No information, no field. */
export const NONE = -1;

/** `field` of `encodeSense`: in the parameter list, not in the CDB. */
export const IN_PARAMETERS = 0x10000;

/**
 * Sense data of a code of wire/scsi.ts. `information` is an LBA, `field` the number of a byte of
 * the CDB, or of the parameter list with IN_PARAMETERS; NONE for neither.
 */
export function encodeSense(
  code: number,
  information: number,
  field: number,
  asDescriptors: boolean,
): Uint8Array {
  const [key, asc, ascq] = [code >> 16, (code >> 8) & 0xff, code & 0xff];
  const pointer = fieldPointer(field);
  if (!asDescriptors) {
    const bytes = new Uint8Array(18);
    const fits = information >= 0 && information <= 0xffff_ffff; // SBC-3 4.18.1
    bytes.set([scsi.SENSE_FIXED | (fits ? 0x80 : 0), 0, key]);
    if (fits) new DataView(bytes.buffer).setUint32(3, information);
    bytes[7] = 10;
    bytes.set([asc, ascq], 12);
    bytes.set(pointer, 15);
    return bytes;
  }
  const bytes = new Uint8Array(SENSE_BYTES);
  bytes.set([scsi.SENSE_DESCRIPTOR, key, asc, ascq]);
  let end = 8;
  if (information >= 0) {
    bytes.set([0, 10, 0x80, 0], end);
    new DataView(bytes.buffer).setBigUint64(end + 4, BigInt(information));
    end += 12;
  }
  if (field !== NONE) {
    bytes.set([2, 6, 0, 0, ...pointer, 0], end);
    end += 8;
  }
  bytes[7] = end - 8;
  return bytes.subarray(0, end);
}

/** SPC-4 4.5.2.4.2: SKSV, C/D, and the byte. */
function fieldPointer(field: number): number[] {
  if (field === NONE) return [0, 0, 0];
  const byte = field & 0xffff;
  return [(field & IN_PARAMETERS) === 0 ? 0xc0 : 0x80, byte >> 8, byte & 0xff];
}

/** `errno` is negative, as in `IoDone.status`. */
export function senseOfErrno(errno: number, isRead: boolean): number {
  switch (-errno) {
    case EIO:
      return isRead ? scsi.SENSE_READ_ERROR : scsi.SENSE_WRITE_ERROR;
    case ENOSPC:
      return scsi.SENSE_SPACE;
    case EROFS:
      return scsi.SENSE_WRITE_PROTECTED;
    case EINVAL:
      return scsi.SENSE_LBA; // outside of the disk, which became smaller
    case EOPNOTSUPP:
      return scsi.SENSE_OPCODE;
    case ETIMEDOUT:
      return scsi.SENSE_TIMEOUT;
    default:
      return scsi.SENSE_TARGET_FAILURE;
  }
}
