/** virtio-scsi: feature bits, configuration space, requests, events. Pure; virtio 1.2, 5.6. */
import { bytes, struct, u16, u32, u64, u8, type Value } from './struct.ts';

// 5.6.2: virtqueues; request queues from 2 on.
export const VIRTIO_SCSI_CONTROLQ = 0;
export const VIRTIO_SCSI_EVENTQ = 1;
export const VIRTIO_SCSI_REQUESTQ = 2;

// 5.6.3: feature bits.
export const VIRTIO_SCSI_F_INOUT = 0;
export const VIRTIO_SCSI_F_HOTPLUG = 1;
export const VIRTIO_SCSI_F_CHANGE = 2;
export const VIRTIO_SCSI_F_T10_PI = 3;

/** Name of each feature bit, for status displays. */
export const SCSI_FEATURE_NAMES: Readonly<Record<number, string>> = {
  0: 'INOUT',
  1: 'HOTPLUG',
  2: 'CHANGE',
  3: 'T10_PI',
};

/** `struct virtio_scsi_config`, 5.6.4. The driver may write `senseSize` and `cdbSize`. */
export const ScsiConfig = struct('virtio_scsi_config', 36, {
  numQueues: u32(0), //     request queues
  segMax: u32(4), //        data segments of one command
  maxSectors: u32(8), //    of 512 bytes, of one command; a hint
  cmdPerLun: u32(12), //    linked commands that a LUN takes
  eventInfoSize: u32(16), // bytes that the device writes into a buffer of the event queue
  senseSize: u32(20),
  cdbSize: u32(24),
  maxChannel: u16(28),
  maxTarget: u16(30),
  maxLun: u32(32),
});
export type ScsiConfig = Value<typeof ScsiConfig.fields>;

/** Defaults of `senseSize` and `cdbSize`. */
export const VIRTIO_SCSI_SENSE_DEFAULT_SIZE = 96;
export const VIRTIO_SCSI_CDB_DEFAULT_SIZE = 32;

/**
 * `struct virtio_scsi_cmd_req`, 5.6.6.1, up to the CDB, which has `cdbSize` bytes; then data-out.
 */
export const ScsiCommandRequest = struct('virtio_scsi_cmd_req', 19, {
  lun: bytes(0, 8),
  tag: u64(8),
  taskAttr: u8(16), // VIRTIO_SCSI_S_SIMPLE and its neighbours
  prio: u8(17),
  crn: u8(18),
});
export type ScsiCommandRequest = Value<typeof ScsiCommandRequest.fields>;

/**
 * `struct virtio_scsi_cmd_resp` up to the sense data, which have `senseSize` bytes; then data-in.
 */
export const ScsiCommandResponse = struct('virtio_scsi_cmd_resp', 12, {
  senseLen: u32(0),
  resid: u32(4), //            bytes of the data buffers that were not used
  statusQualifier: u16(8),
  status: u8(10), //           of SCSI
  response: u8(11), //         VIRTIO_SCSI_S_*
});
export type ScsiCommandResponse = Value<typeof ScsiCommandResponse.fields>;

/** `struct virtio_scsi_ctrl_tmf_req`, 5.6.6.2; answered with one byte, VIRTIO_SCSI_S_*. */
export const ScsiTaskRequest = struct('virtio_scsi_ctrl_tmf_req', 24, {
  type: u32(0), //    VIRTIO_SCSI_T_TMF
  subtype: u32(4), // VIRTIO_SCSI_T_TMF_*
  lun: bytes(8, 8),
  tag: u64(16),
});
export type ScsiTaskRequest = Value<typeof ScsiTaskRequest.fields>;

/** `struct virtio_scsi_ctrl_an_req`, 5.6.6.2: query and subscription of notifications. */
export const ScsiNotifyRequest = struct('virtio_scsi_ctrl_an_req', 16, {
  type: u32(0),
  lun: bytes(4, 8),
  eventRequested: u32(12),
});

/** `struct virtio_scsi_ctrl_an_resp`. */
export const ScsiNotifyResponse = struct('virtio_scsi_ctrl_an_resp', 5, {
  eventActual: u32(0),
  response: u8(4),
});

/** `struct virtio_scsi_event`, 5.6.6.3. */
export const ScsiEvent = struct('virtio_scsi_event', 16, {
  event: u32(0), //  VIRTIO_SCSI_T_*, with VIRTIO_SCSI_T_EVENTS_MISSED
  lun: bytes(4, 8),
  reason: u32(12), // TRANSPORT_RESET: VIRTIO_SCSI_EVT_*. PARAM_CHANGE: ASC, then ASCQ << 8
});
export type ScsiEvent = Value<typeof ScsiEvent.fields>;

// 5.6.6.1, 5.6.6.2: response codes.
export const VIRTIO_SCSI_S_OK = 0; // of a TMF: FUNCTION_COMPLETE
export const VIRTIO_SCSI_S_OVERRUN = 1;
export const VIRTIO_SCSI_S_ABORTED = 2;
export const VIRTIO_SCSI_S_BAD_TARGET = 3;
export const VIRTIO_SCSI_S_RESET = 4;
export const VIRTIO_SCSI_S_BUSY = 5;
export const VIRTIO_SCSI_S_TRANSPORT_FAILURE = 6;
export const VIRTIO_SCSI_S_TARGET_FAILURE = 7;
export const VIRTIO_SCSI_S_NEXUS_FAILURE = 8;
export const VIRTIO_SCSI_S_FAILURE = 9;
export const VIRTIO_SCSI_S_FUNCTION_SUCCEEDED = 10;
export const VIRTIO_SCSI_S_FUNCTION_REJECTED = 11;
export const VIRTIO_SCSI_S_INCORRECT_LUN = 12;

// 5.6.6.2: types of control requests.
export const VIRTIO_SCSI_T_TMF = 0;
export const VIRTIO_SCSI_T_AN_QUERY = 1;
export const VIRTIO_SCSI_T_AN_SUBSCRIBE = 2;

export const VIRTIO_SCSI_T_TMF_ABORT_TASK = 0;
export const VIRTIO_SCSI_T_TMF_ABORT_TASK_SET = 1;
export const VIRTIO_SCSI_T_TMF_CLEAR_ACA = 2;
export const VIRTIO_SCSI_T_TMF_CLEAR_TASK_SET = 3;
export const VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET = 4;
export const VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET = 5;
export const VIRTIO_SCSI_T_TMF_QUERY_TASK = 6;
export const VIRTIO_SCSI_T_TMF_QUERY_TASK_SET = 7;

// 5.6.6.3: events.
export const VIRTIO_SCSI_T_EVENTS_MISSED = 0x8000_0000;
export const VIRTIO_SCSI_T_NO_EVENT = 0;
export const VIRTIO_SCSI_T_TRANSPORT_RESET = 1;
export const VIRTIO_SCSI_T_ASYNC_NOTIFY = 2;
export const VIRTIO_SCSI_T_PARAM_CHANGE = 3;

export const VIRTIO_SCSI_EVT_RESET_HARD = 0;
export const VIRTIO_SCSI_EVT_RESET_RESCAN = 1;
export const VIRTIO_SCSI_EVT_RESET_REMOVED = 2;

/**
 * 5.6.6.1: byte 0 is 1, byte 1 the target, then a single-level LUN of SAM: peripheral below 256,
 * flat space above.
 */
export function encodeScsiLun(target: number, lun: number): Uint8Array {
  const flat = lun < 256 ? 0 : 0x40;
  return Uint8Array.of(1, target, flat | (lun >> 8), lun & 0xff, 0, 0, 0, 0);
}
