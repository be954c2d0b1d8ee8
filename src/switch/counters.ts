import { MAX_PORTS } from '../base/limits.ts';

/**
 * The counters of every port: one row of doubles per port in shared memory, written by the worker
 * that runs the switch, read live by anybody. A frame that dies is counted once per death, in
 * exactly one DROP column: of the ingress port while it is judged, of the egress port afterwards.
 */
export const RX_FRAMES = 0; //        frames that the port sent us
export const RX_BYTES = 1; //         their bytes, Ethernet header and tag included
export const TX_FRAMES = 2; //        frames delivered to the port
export const TX_BYTES = 3;
export const RX_MULTICAST = 4; //     of rxFrames: to a group address
export const FLOOD_COPIES = 5; //     copies made of frames from this port to several ports
export const LEARNED = 6; //          addresses learned from this port
export const MOVED = 7; //            addresses that moved to this port
export const LEARN_LIMIT = 8; //      not learned: the port is at its limit
export const LEARN_OVERFLOW = 9; //   not learned: table full, or no free slot in reach
export const CSUM_COMPLETED = 10; //  frames to this port whose checksum we filled in
export const GSO_SEGMENTED = 11; //   large frames to this port that we cut up
export const GSO_SEGMENTS = 12; //    frames that came out of that

/** Ingress: the frame was never sent anywhere. */
export const DROP_SHORT = 13; //            shorter than an Ethernet header
export const DROP_LONG = 14; //             longer than any frame of ours (MAX_FRAME_BYTES)
export const DROP_OFFLOAD_HEADER = 15; //   offload fields contradict the frame
export const DROP_VLAN_TAGGED = 16; //      tagged frame on an access port
export const DROP_VLAN_UNTAGGED = 17; //    untagged frame on a trunk without a native VLAN
export const DROP_VLAN_NOT_ALLOWED = 18; // VLAN not allowed on the trunk
export const DROP_SOURCE_GROUP = 19; //     source address is a group address
export const DROP_RESERVED = 20; //         to 01:80:c2:00:00:00-0f, which bridges do not forward
export const DROP_SAME_PORT = 21; //        the destination is behind the port it came from
export const DROP_NO_PORT = 22; //          no other port is in the VLAN
/** Egress: the frame was not delivered to this port. */
export const DROP_NOT_READY = 23; //        unicast to a port that takes nothing now
export const DROP_MTU = 24; //              longer than the port's frames may be
export const DROP_GSO_HEADERS = 25; //      to be cut up, but headers do not parse or fit
export const DROP_GSO_SIZE = 26; //         to be cut up, but into zero-sized or too many pieces
export const DROP_GSO_TYPE = 27; //         a kind of segmentation that we do not do (UFO)
export const DROP_RECEIVER = 28; //         the port's receiver did not take it; it says why

export const COUNTER_NAMES = [
  'rxFrames',
  'rxBytes',
  'txFrames',
  'txBytes',
  'rxMulticast',
  'floodCopies',
  'learned',
  'moved',
  'learnLimit',
  'learnOverflow',
  'csumCompleted',
  'gsoSegmented',
  'gsoSegments',
  'dropShort',
  'dropLong',
  'dropOffloadHeader',
  'dropVlanTagged',
  'dropVlanUntagged',
  'dropVlanNotAllowed',
  'dropSourceGroup',
  'dropReserved',
  'dropSamePort',
  'dropNoPort',
  'dropNotReady',
  'dropMtu',
  'dropGsoHeaders',
  'dropGsoSize',
  'dropGsoType',
  'dropReceiver',
] as const;

export type CounterName = (typeof COUNTER_NAMES)[number];

/** Columns of one row. */
export const COUNTER_COLUMNS = COUNTER_NAMES.length;

/** Bytes of shared memory that the counters of all ports take. */
export const COUNTERS_BYTES = MAX_PORTS * COUNTER_COLUMNS * Float64Array.BYTES_PER_ELEMENT;

/** One port's counters as an object, for status displays. Any thread. */
export function readCounters(cells: Float64Array, port: number): Record<CounterName, number> {
  const base = port * COUNTER_COLUMNS;
  const entries = COUNTER_NAMES.map((name, column) => [name, cells[base + column]]);
  return Object.fromEntries(entries) as Record<CounterName, number>;
}
