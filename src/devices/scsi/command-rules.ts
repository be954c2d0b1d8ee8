import { BATCH } from '../../base/limits.ts';
import {
  ScsiCommandRequest,
  ScsiCommandResponse,
  VIRTIO_SCSI_CDB_DEFAULT_SIZE,
  VIRTIO_SCSI_SENSE_DEFAULT_SIZE,
} from '../../wire/virtio-scsi.ts';
import { MAX_CDB_BYTES, MAX_LUN, MAX_LUNS, MAX_TARGET } from './limits.ts';
import type { Lun } from './lun.ts';

/** What commands are judged by: read by `readCommands`, kept current by the device. */
export class CommandRules {
  readonly luns: (Lun | null)[] = Array.from({ length: MAX_LUNS }, () => null);
  /** Index into `luns` by target and LUN, -1; and units of each target. */
  readonly table = new Int16Array((MAX_TARGET + 1) * (MAX_LUN + 1)).fill(-1);
  readonly unitsOfTarget = new Int32Array(MAX_TARGET + 1);
  /** Bytes in front of data-out: header and CDB. Bytes in front of data-in: response and sense. */
  headerBytes = ScsiCommandRequest.size + VIRTIO_SCSI_CDB_DEFAULT_SIZE;
  responseBytes = ScsiCommandResponse.size + VIRTIO_SCSI_SENSE_DEFAULT_SIZE;
  /** Header and CDB, copied from guest memory before they are judged. */
  readonly scratch = new DataView(new ArrayBuffer(ScsiCommandRequest.size + MAX_CDB_BYTES));

  /**
   * Rows of the present batch that are no READ or WRITE of a unit that is ready, their targets and
   * CDBs.
   */
  readonly deferredRow = new Int32Array(BATCH);
  readonly deferredTarget = new Int32Array(BATCH);
  readonly deferredCdb = new Uint8Array(BATCH * MAX_CDB_BYTES);
  deferredCount = 0;
  /** Units that have new rows in their `io`. */
  readonly touched = new Int32Array(MAX_LUNS);
  touchedCount = 0;

  /** What the driver wrote to the configuration space. */
  setSizes(cdbBytes: number, senseBytes: number): void {
    this.headerBytes = ScsiCommandRequest.size + cdbBytes;
    this.responseBytes = ScsiCommandResponse.size + senseBytes;
  }
}
