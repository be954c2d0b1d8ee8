/** A data path that can be compared: what it is, whether this machine has it, and how it opens. */

/** What the comparison says of a path in words; the rows of the table. */
export type PathDescription = {
  /** `vhost-net`. */
  readonly name: string;
  /** Where the back-end runs: the first row of every comparison of vhost's kinds. */
  readonly backend: string;
  /** Who moves a frame between ring and wire. */
  readonly dataPlane: string;
  /** How front-end and back-end agree. */
  readonly controlPlane: string;
  readonly kick: string;
  readonly mechanism: string;
  readonly fits: string;
};

export type PathId =
  | 'in-process'
  | 'vhost-net'
  | 'vhost-user'
  | 'vdpa-vduse'
  | 'vdpa-sim'
  | 'vdpa-device';

/** The path stands, and waits for a front-end. */
export type OpenPath = {
  /** As `vring guest net --backend` takes it. */
  readonly backend: string;
  /** Processes of ours that do the device's work. */
  readonly devicePids: readonly number[];
  /** Idempotent. Everything that `open` made is gone. */
  close(): Promise<void>;
};

export interface ComparedPath {
  readonly id: PathId;
  readonly description: PathDescription;
  /** Null: a TAP, as the others. Else where frames turn round instead, and why. */
  readonly exception: string | null;
  /** Null, or what this machine lacks and what brings it. */
  why(): Promise<string | null>;
  /** @param tap the interface that the path has to end in; unused where `exception` says so. */
  open(tap: string, folder: string): Promise<OpenPath>;
}
