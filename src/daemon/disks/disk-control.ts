/** What the control plane asks of disks. `StorageTarget` implements it. */
import { VringError } from '../../base/errors.ts';
import type { CutResult, FaultRule } from '../../storage/index.ts';
import type { AdapterConfig, AdapterStatus, UnitConfig } from './scsi-types.ts';
import type {
  DiskConfig,
  DiskExport,
  DiskStatus,
  DiskUpdate,
  RollbackOptions,
} from './disk-types.ts';

/** What an overlay says of a snapshot, and whatever else a layer answers: plain data. */
export type LayerAnswer = unknown;

export interface DiskControl {
  disks(): Promise<DiskStatus[]>;
  disk(name: string): Promise<DiskStatus>;
  addDisk(config: DiskConfig): Promise<DiskStatus>;
  updateDisk(name: string, update: DiskUpdate): Promise<DiskStatus>;
  /** Ends its session; the image stays. */
  removeDisk(name: string): Promise<void>;
  reopenDisk(name: string): Promise<DiskStatus>;
  /** Null ends it. */
  exportDisk(name: string, wanted: DiskExport | null): Promise<DiskStatus>;
  snapshots(name: string): Promise<LayerAnswer>;
  snapshot(name: string, snapshot: string): Promise<LayerAnswer>;
  rollback(name: string, options: RollbackOptions): Promise<LayerAnswer>;
  /** In the background; `to: 'base'` into what is below the overlay. */
  commit(name: string, to?: 'base'): Promise<LayerAnswer>;
  commitStatus(name: string): Promise<LayerAnswer>;
  deleteSnapshot(name: string, snapshot: string): Promise<LayerAnswer>;
  setFaults(name: string, rules: readonly FaultRule[]): Promise<void>;
  /** Of a disk with a volatile cache; it fails from then on, until it is reopened. */
  cutPower(name: string, seed?: number): Promise<CutResult>;
  /** Units of adapters are disks: all of the above is theirs, too, by their name. */
  adapters(): Promise<AdapterStatus[]>;
  adapter(name: string): Promise<AdapterStatus>;
  addAdapter(config: AdapterConfig): Promise<AdapterStatus>;
  /** Ends its session; the images of its units stay. */
  removeAdapter(name: string): Promise<void>;
  /** `removeDisk` detaches it. */
  attachUnit(adapter: string, config: UnitConfig): Promise<DiskStatus>;
}

/** No disk has this name. */
export const ERR_DISK_NOT_FOUND = 'ERR_VRING_DISK_NOT_FOUND';
/** No SCSI adapter has this name. */
export const ERR_SCSI_NOT_FOUND = 'ERR_VRING_SCSI_NOT_FOUND';
/** The name or socket belongs to another disk. */
export const ERR_DISK_EXISTS = 'ERR_VRING_DISK_EXISTS';
/** There are MAX_DISKS. */
export const ERR_DISK_LIMIT = 'ERR_VRING_DISK_LIMIT';
/** The image cannot be opened. */
export const ERR_DISK_OPEN = 'ERR_VRING_DISK_OPEN';

export function diskNotFound(name: string): VringError {
  return new VringError(ERR_DISK_NOT_FOUND, `there is no disk named ${JSON.stringify(name)}`);
}
