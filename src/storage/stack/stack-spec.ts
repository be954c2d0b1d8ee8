/**
 * What a disk is made of: a list from the top (what the guest sees) to the bottom (what holds the
 * bytes). The last one is a source, all others stand on what follows them. Plain data, as in a
 * configuration; `parse-part.ts` reads the text form.
 */

/** The bottom of a stack. */
export type SourceSpec = FileSpec | MemorySpec | NullSpec | NbdSpec | HttpSpec | S3Spec;

/** What stands on something. */
export type LayerSpec = LimitSpec | FaultSpec | CryptSpec | OverlaySpec | Qcow2Spec | ZonedSpec;

export type PartSpec = LayerSpec | SourceSpec;

/** From top to bottom. */
export type StackSpec = readonly PartSpec[];

export type FileSpec = {
  readonly kind: 'file';
  readonly path: string;
  /** O_DIRECT; `auto`: where the file and the device's blocks allow it. */
  readonly direct?: 'off' | 'auto' | 'on';
  /** `off`: by system calls, one after the other. `auto`: io_uring where this kernel has it. */
  readonly uring?: 'off' | 'auto' | 'on';
  /** False: others may open the image meanwhile. */
  readonly lock?: boolean;
};
export type MemorySpec = { readonly kind: 'memory'; readonly sizeBytes: number };
/** Forgets what is written. A read leaves the buffer as it was; under layers it gives zeros. */
export type NullSpec = { readonly kind: 'null'; readonly sizeBytes: number };

/** `nbd://host:port/export`, `nbd+unix:///export?socket=/path`, `nbds://...`. */
export type NbdSpec = {
  readonly kind: 'nbd';
  readonly uri: string;
  /** How long a request may take, reconnecting included; 30 when left out. */
  readonly timeoutSeconds?: number;
};
/** Read-only, by ranges. */
export type HttpSpec = {
  readonly kind: 'http';
  readonly url: string;
  readonly cache?: CacheSpec;
  /** How long a read may take, further attempts included; 30 when left out. */
  readonly timeoutSeconds?: number;
};
export type S3Spec = {
  readonly kind: 's3';
  readonly endpoint: string;
  readonly region: string;
  readonly bucket: string;
  readonly key: string;
  /** Two lines, access key and secret; else the environment of AWS tools; else unsigned. */
  readonly credentialsFile?: string;
  /** `https://endpoint/bucket/key`, or `https://bucket.endpoint/key`; `path` when left out. */
  readonly addressing?: 'path' | 'virtual-host';
  readonly cache?: CacheSpec;
  readonly timeoutSeconds?: number;
};
/** Where blocks that were read are kept; without a path in memory. */
export type CacheSpec = {
  readonly path?: string;
  readonly sizeBytes: number;
  /** What is fetched at once, a power of two from 64 KiB to 1 MiB; 256 KiB when left out. */
  readonly blockBytes?: number;
};

export type LimitSpec = {
  readonly kind: 'limit';
  readonly iops?: number;
  readonly bytesPerSecond?: number;
  /** How much may be done at once after a pause, in seconds of the rate; 1 when left out. */
  readonly burstSeconds?: number;
};
/** For tests; see fault/. */
export type FaultSpec = {
  readonly kind: 'fault';
  readonly seed?: number;
  readonly rules?: readonly FaultRule[];
  /** `volatile`: what is not flushed is in memory only, and `control('cut')` loses some of it. */
  readonly cache?: 'none' | 'volatile';
};
export type FaultRule = {
  readonly op: 'read' | 'write' | 'flush' | 'discard' | 'zero' | 'any';
  /** Bytes; everywhere when left out. */
  readonly at?: number;
  readonly sizeBytes?: number;
  /** 0 to 1; 1 when left out. */
  readonly probability?: number;
  /** How many times; no limit when left out. */
  readonly times?: number;
} & (
  | { readonly action: 'error'; readonly errno: string }
  | { readonly action: 'delay'; readonly ms: number }
  /** Write a part of it only, and fail. */
  | { readonly action: 'torn' }
  /** The storage thread of the disk ends, as by a mistake of ours. */
  | { readonly action: 'crash' }
);
/** LUKS2, AES-XTS. */
export type CryptSpec = {
  readonly kind: 'crypt';
  /** All of it is the passphrase, as for `cryptsetup --key-file`. */
  readonly keyFile: string;
  /** `pass`: what is given back is seen by who sees the medium. Default: discards end here. */
  readonly discard?: 'pass' | 'keep';
};
/** Copy on write: changes go to qcow2 files in a folder. */
export type OverlaySpec = { readonly kind: 'overlay'; readonly folder: string };
/** The format of what is below. `follow` opens backing files that the image names. */
export type Qcow2Spec = { readonly kind: 'qcow2'; readonly backing?: 'refuse' | 'follow' };
/**
 * A host-managed zoned disk; below nothing but a limit. A blank medium becomes one, which needs
 * `zoneBytes`; of one that is there, what is given must be right.
 */
export type ZonedSpec = {
  readonly kind: 'zoned';
  /** A power of two from 64 KiB on. */
  readonly zoneBytes?: number;
  /** Writable bytes of each zone; all when left out. */
  readonly capacityBytes?: number;
  /** Zones at the beginning that are written anywhere; none when left out. */
  readonly conventional?: number;
  /** Limits; 0, or left out: none. */
  readonly maxOpen?: number;
  readonly maxActive?: number;
  /** What writes are multiples of; 4096 when left out. */
  readonly granularityBytes?: number;
};
