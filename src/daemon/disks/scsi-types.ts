/** The vocabulary of SCSI host adapters: what configuration, API and CLI speak of them. */
import { ConfigError } from '../../base/errors.ts';
import { MAX_LUN, MAX_TARGET } from '../../devices/scsi/index.ts';
import type {
  DiskOrigin,
  DiskReason,
  DiskState,
  MediumConfig,
  SocketConfig,
} from './disk-types.ts';
import type { ScsiShape } from './scsi-host.ts';

/** A unit is a disk, named after its place. */
export type UnitConfig = MediumConfig & { readonly target: number; readonly lun: number };

export type AdapterConfig = SocketConfig &
  ScsiShape & { readonly name: string; readonly units: readonly UnitConfig[] };

export type AdapterStatus = {
  readonly name: string;
  readonly socket: string;
  readonly origin: DiskOrigin;
  readonly state: DiskState;
  /** Why it does not work, or why its last session ended. */
  readonly reason: DiskReason | null;
  readonly queues: number;
  /** Names of its units, which are disks. */
  readonly units: readonly string[];
  readonly sessions: number;
  /** Times that the guest broke virtio. */
  readonly faults: number;
  /** Of all queues: chains, kicks, tasks, events, ... */
  readonly counters: Readonly<Record<string, number>>;
};

/** `vm0:0:1`: a name that no disk and no adapter has. */
export function unitName(adapter: string, target: number, lun: number): string {
  return `${adapter}:${target}:${lun}`;
}

/** `0:1`. @throws ConfigError at `path`. */
export function parseUnitPlace(text: string, path: string): { target: number; lun: number } {
  const match = /^(\d{1,3}):(\d{1,3})$/.exec(text);
  const [target, lun] = [Number(match?.[1]), Number(match?.[2])];
  if (target <= MAX_TARGET && lun <= MAX_LUN) return { target, lun };
  const expected = `TARGET:LUN, from 0:0 to ${MAX_TARGET}:${MAX_LUN}`;
  throw new ConfigError(path, `'${text}' is no unit; expected is ${expected}`);
}
