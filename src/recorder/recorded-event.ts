/**
 * What a recording consists of: JSON lines, the first a header, then one event each. The schema
 * for readers is docs/recorder.md; whoever changes these types changes it and the version.
 */

export const RECORDING_FORMAT = 'vring-recording';
export const RECORDING_VERSION = 1;

export type RecordingHeader = {
  readonly format: typeof RECORDING_FORMAT;
  readonly version: typeof RECORDING_VERSION;
  /** Of the program that recorded. */
  readonly program: string;
  /** Wall clock of time 0, ISO 8601. */
  readonly started: string;
  readonly socket: string;
  readonly upstream: string;
  /** Who connected to `socket`. */
  readonly connects: Side;
  readonly rings: boolean;
};

export type Side = 'front-end' | 'back-end';
export type ChannelName = 'control' | 'backend';

/** What an fd led to when it was sent. */
export type FdDescription = {
  readonly kind:
    | 'eventfd'
    | 'memfd'
    | 'hugetlbfs'
    | 'file'
    | 'socket'
    | 'pipe'
    | 'userfaultfd'
    | 'char'
    | 'other';
  /** Two fds of one recording with the same identity lead to the same thing. */
  readonly identity: string;
  readonly inode: number;
  /** Of files. */
  readonly sizeBytes?: number;
  readonly pageSizeBytes?: number;
  /** Counter of an eventfd. */
  readonly count?: number;
};

export type Json =
  | string
  | number
  | boolean
  | null
  | readonly Json[]
  | { readonly [key: string]: Json };

export type FlagsDescription = {
  readonly raw: number;
  readonly version: number;
  readonly reply: boolean;
  readonly needReply: boolean;
  /** The bits without a meaning, in hexadecimal; only there when one is set. */
  readonly reserved?: string;
};

export type MessageEvent = {
  readonly event: 'message';
  readonly channel: ChannelName;
  readonly from: Side;
  readonly kind: 'request' | 'reply';
  readonly id: number;
  readonly name: string;
  readonly flags: FlagsDescription;
  /** Payload bytes. */
  readonly size: number;
  /** Field by field; null when the table knows no layout that fits. */
  readonly payload: { readonly [field: string]: Json } | null;
  /** What is wrong with it, when something is. */
  readonly problem?: string;
  /** Header and payload. */
  readonly hex: string;
  readonly fds: readonly FdDescription[];
  /** Of replies: `seq` of the request, null when there is none. */
  readonly replyTo?: number | null;
};

/** Bytes without framing, passed on as they came. */
export type RawEvent = {
  readonly event: 'raw';
  readonly channel: ChannelName;
  readonly from: Side;
  readonly reason: string;
  readonly hex: string;
  readonly fds: readonly FdDescription[];
};

/** A signal of an eventfd. */
export type RingEvent = {
  readonly event: 'kick' | 'call' | 'err';
  readonly ring: number;
  /** Signals since the last event. */
  readonly count: number;
  /** Free-running 16-bit indexes of a split ring; null where they cannot be read. */
  readonly available: number | null;
  readonly used: number | null;
};

export type LifeEvent =
  | { readonly event: 'connected' }
  | {
      readonly event: 'channel-closed';
      readonly channel: 'backend';
      readonly by: Side | 'recorder';
      readonly reason: string;
    }
  | {
      readonly event: 'closed';
      readonly by: Side | 'recorder';
      readonly reason: string;
      /** Ring events that are not in the file, because the disk was too slow. */
      readonly lostRingEvents: number;
    }
  /** Something that the reader should know: a region that could not be mapped, and so on. */
  | { readonly event: 'note'; readonly text: string };

export type EventBody = MessageEvent | RawEvent | RingEvent | LifeEvent;

export type RecordedEvent = EventBody & {
  /** Number of the line, from 1. */
  readonly seq: number;
  /** Nanoseconds since `started`, monotonic. */
  readonly time: number;
  /** From 1. */
  readonly session: number;
};
