/**
 * What the runner knows about a device type: how many vrings to bring up, and one harmless
 * request that the device completes by itself, so that a processed ring can be told from an idle
 * one.
 */
import { VIRTIO_BLK_F_ZONED } from '../wire/virtio-blk.ts';
import { VIRTIO_NET_F_MRG_RXBUF } from '../wire/virtio-net.ts';
import {
  encodeScsiLun,
  ScsiCommandRequest,
  ScsiCommandResponse,
  ScsiConfig,
  VIRTIO_SCSI_CDB_DEFAULT_SIZE,
  VIRTIO_SCSI_REQUESTQ,
  VIRTIO_SCSI_S_BAD_TARGET,
  VIRTIO_SCSI_SENSE_DEFAULT_SIZE,
} from '../wire/virtio-scsi.ts';
import { VIRTIO_ID_BLOCK, VIRTIO_ID_FS, VIRTIO_ID_NET, VIRTIO_ID_SCSI } from '../wire/virtio.ts';
import type { Rig, Segment } from './rig.ts';

export type Request = {
  readonly readable: readonly Segment[];
  readonly writable: readonly Segment[];
  /** What is wrong with the answer, or null. `len`: bytes that the device says it wrote. */
  verify(len: number): string | null;
};

export type DeviceProfile = {
  readonly name: string;
  /** Virtio device id, 0 for any. */
  readonly deviceId: number;
  /** Vrings that a check sets up. */
  readonly rings: number;
  /** The ring of `request`. */
  readonly workRing: number;
  /** Virtio features of the device to ack where offered, for the runner's requests to work. */
  readonly virtio: readonly number[];
  /** A started but disabled work ring discards (net's transmit) or waits (everything else). */
  readonly disabled: 'discards' | 'waits';
  /** Bytes of configuration space that surely exist, and a range that is read-only. */
  readonly configBytes: number;
  readonly readOnly: { readonly offset: number; readonly bytes: number } | null;
  /** Null: no request is known for the device. */
  readonly request: ((rig: Rig) => Request) | null;
};

const NET_HEADER_BYTES = 12;

const OUR_MAC = [0x02, 0x00, 0x00, 0xc0, 0x4f, 0x01] as const;

/**
 * From a local address, of the type for local experiments; broadcast, or to ourselves: switches
 * that reflect frames do so for addresses that they have learned.
 */
export function testFrame(bytes = 64, toUs = false): Uint8Array {
  const frame = new Uint8Array(bytes);
  if (toUs) frame.set(OUR_MAC, 0);
  else frame.fill(0xff, 0, 6);
  frame.set(OUR_MAC, 6);
  frame.set([0x88, 0xb5], 12);
  for (let i = 14; i < bytes; i++) frame[i] = i & 0xff;
  return frame;
}

function netRequest(rig: Rig): Request {
  const frame = testFrame();
  const gpa = rig.alloc(NET_HEADER_BYTES + frame.length);
  rig.write(gpa + NET_HEADER_BYTES, frame);
  const len = NET_HEADER_BYTES + frame.length;
  return { readable: [{ gpa, len }], writable: [], verify: () => null };
}

export const BLK_IN = 0;
export const BLK_GET_ID = 8;
export const BLK_S_OK = 0;
export const BLK_S_IOERR = 1;
export const BLK_S_UNSUPP = 2;
const BLK_UNTOUCHED = 0xa5;

/** One request of a block device. Virtio 1.2, 5.2.6. */
export function blkRequest(
  rig: Rig,
  type: number,
  sector: bigint,
  dataBytes: number,
  status = BLK_S_OK,
): Request & { readonly data: number; readonly statusGpa: number } {
  const header = rig.alloc(16);
  const words = new DataView(new ArrayBuffer(16));
  words.setUint32(0, type, true);
  words.setBigUint64(8, sector, true);
  rig.write(header, new Uint8Array(words.buffer));
  const data = rig.alloc(Math.max(dataBytes, 1));
  const statusGpa = rig.alloc(1);
  rig.write(statusGpa, Uint8Array.of(BLK_UNTOUCHED));
  const writable = [{ gpa: statusGpa, len: 1 }];
  if (dataBytes > 0) writable.unshift({ gpa: data, len: dataBytes });
  return {
    readable: [{ gpa: header, len: 16 }],
    writable,
    data,
    statusGpa,
    verify(len) {
      const got = rig.read(statusGpa, 1)[0];
      if (got === BLK_UNTOUCHED) return 'the status byte was not written';
      if (got !== status) return `status ${got}, expected ${status}`;
      if (status === BLK_S_OK && len !== dataBytes + 1) {
        return `used.len is ${len}, ${dataBytes + 1} bytes were to be written`;
      }
      return null;
    },
  };
}

const INQUIRY = 0x12;
const INQUIRY_BYTES = 36;

/**
 * INQUIRY of target 0, LUN 0, which is answered whether they are there or not: virtio 1.2, 5.6.6.1.
 */
function scsiInquiry(rig: Rig): Request {
  const headerBytes = ScsiCommandRequest.size + VIRTIO_SCSI_CDB_DEFAULT_SIZE;
  const answerBytes = ScsiCommandResponse.size + VIRTIO_SCSI_SENSE_DEFAULT_SIZE;
  const header = new Uint8Array(headerBytes);
  const fields = { lun: encodeScsiLun(0, 0), tag: 1n, taskAttr: 0, prio: 0, crn: 0 };
  ScsiCommandRequest.write(new DataView(header.buffer), 0, fields);
  header.set([INQUIRY, 0, 0, 0, INQUIRY_BYTES, 0], ScsiCommandRequest.size);
  const [headerGpa, answer, data] = [headerBytes, answerBytes, INQUIRY_BYTES].map((bytes) => {
    return rig.alloc(bytes);
  }) as [number, number, number];
  rig.write(headerGpa, header);
  rig.write(answer, new Uint8Array(answerBytes).fill(BLK_UNTOUCHED));
  return {
    readable: [{ gpa: headerGpa, len: headerBytes }],
    writable: [
      { gpa: answer, len: answerBytes },
      { gpa: data, len: INQUIRY_BYTES },
    ],
    verify(len) {
      const { response, status } = ScsiCommandResponse.decode(rig.read(answer, answerBytes));
      if (response === VIRTIO_SCSI_S_BAD_TARGET) return null;
      if (response !== 0 || status !== 0) return `response ${response}, status ${status}`;
      if (len >= answerBytes + INQUIRY_BYTES) return null;
      return `used.len is ${len}, ${answerBytes + INQUIRY_BYTES} bytes were to be written`;
    },
  };
}

const FUSE_INIT = 26;
const FUSE_IN_BYTES = 40;

/** One FUSE request: header, arguments; the answer's header is checked. Virtio 1.2, 5.11.6. */
export function fuseRequest(
  rig: Rig,
  opcode: number,
  unique: bigint,
  body: Uint8Array,
): Request & { error(): number; readonly answer: number } {
  const bytes = FUSE_IN_BYTES + body.length;
  const gpa = rig.alloc(bytes);
  const view = new DataView(new ArrayBuffer(FUSE_IN_BYTES));
  view.setUint32(0, bytes, true);
  view.setUint32(4, opcode, true);
  view.setBigUint64(8, unique, true);
  view.setBigUint64(16, 1n, true); // the root's node id
  rig.write(gpa, new Uint8Array(view.buffer));
  rig.write(gpa + FUSE_IN_BYTES, body);
  const answer = rig.alloc(256);
  const header = (): DataView => {
    return new DataView(rig.read(answer, 16).buffer);
  };
  return {
    readable: [
      { gpa, len: FUSE_IN_BYTES },
      { gpa: gpa + FUSE_IN_BYTES, len: body.length },
    ],
    writable: [
      { gpa: answer, len: 16 },
      { gpa: answer + 16, len: 240 },
    ],
    answer,
    error: () => header().getInt32(4, true),
    verify(len) {
      if (len < 16) return `used.len is ${len}, a FUSE header has 16 bytes`;
      if (header().getUint32(0, true) !== len) {
        return `the FUSE header says ${header().getUint32(0, true)} bytes, used.len ${len}`;
      }
      const echoed = header().getBigUint64(8, true);
      return echoed === unique ? null : `the answer is for request ${echoed}, not ${unique}`;
    },
  };
}

let fuseUnique = 1n;

/** FUSE_INIT, protocol 7.31 without any flag. */
export function fuseInit(rig: Rig): ReturnType<typeof fuseRequest> {
  const body = new DataView(new ArrayBuffer(16));
  body.setUint32(0, 7, true);
  body.setUint32(4, 31, true);
  body.setUint32(8, 65536, true);
  return fuseRequest(rig, FUSE_INIT, fuseUnique++, new Uint8Array(body.buffer));
}

export const PROFILES: Readonly<Record<string, DeviceProfile>> = {
  net: {
    name: 'net',
    deviceId: VIRTIO_ID_NET,
    rings: 2,
    workRing: 1,
    virtio: [],
    disabled: 'discards',
    configBytes: 6,
    readOnly: { offset: 6, bytes: 2 },
    request: netRequest,
  },
  blk: {
    name: 'blk',
    deviceId: VIRTIO_ID_BLOCK,
    rings: 1,
    workRing: 0,
    virtio: [VIRTIO_BLK_F_ZONED], // a host-managed disk refuses drivers without it
    disabled: 'waits',
    configBytes: 8,
    readOnly: { offset: 0, bytes: 8 },
    request: (rig) => blkRequest(rig, BLK_IN, 0n, 512),
  },
  scsi: {
    name: 'scsi',
    deviceId: VIRTIO_ID_SCSI,
    rings: VIRTIO_SCSI_REQUESTQ + 1,
    workRing: VIRTIO_SCSI_REQUESTQ,
    virtio: [],
    disabled: 'waits',
    configBytes: ScsiConfig.size,
    readOnly: { offset: 0, bytes: 4 },
    request: scsiInquiry,
  },
  fs: {
    name: 'fs',
    deviceId: VIRTIO_ID_FS,
    rings: 2,
    workRing: 1,
    virtio: [],
    disabled: 'waits',
    configBytes: 36,
    readOnly: { offset: 0, bytes: 36 },
    request: fuseInit,
  },
  generic: {
    name: 'generic',
    deviceId: 0,
    rings: 1,
    workRing: 0,
    virtio: [],
    disabled: 'waits',
    configBytes: 1,
    readOnly: null,
    request: null,
  },
};

/** Net with frames that come back needs these for the header's meaning. */
export const NET_MERGEABLE = VIRTIO_NET_F_MRG_RXBUF;
export { NET_HEADER_BYTES };
