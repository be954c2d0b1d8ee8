/**
 * What the stack stands on: something that takes and gives whole Ethernet frames. `NetGuest` is
 * one (a virtio-net device over any back-end); `linkPair` is a wire in memory, for tests.
 */

/** The offload fields that travel beside a frame, as in the virtio-net header. */
export type FrameOffload = {
  /** The checksum from `csumStart` on is still to be filled in at `csumStart + csumOffset`. */
  readonly needsCsum: boolean;
  /** The sender vouches for the checksum. */
  readonly dataValid: boolean;
  /** Bytes from the start of the frame. */
  readonly csumStart: number;
  readonly csumOffset: number;
  /** VIRTIO_NET_HDR_GSO_*: 0 none, 1 TCPv4, 4 TCPv6, 5 UDP (USO). */
  readonly gsoType: number;
  /** Payload bytes of each segment. */
  readonly gsoSize: number;
  /** Bytes of all headers in front of the payload. */
  readonly headerBytes: number;
};

export const NO_OFFLOAD: FrameOffload = {
  needsCsum: false,
  dataValid: false,
  csumStart: 0,
  csumOffset: 0,
  gsoType: 0,
  gsoSize: 0,
  headerBytes: 0,
};

/** What the link finishes for the sender. */
export type LinkOffloads = { readonly csum: boolean; readonly uso: boolean };

export type FrameHandler = (frame: Uint8Array, offload: FrameOffload) => void;

export interface FrameLink {
  /** Our address, lower case. */
  readonly mac: string;
  /** Bytes of IP that fit one frame. */
  readonly mtu: number;
  readonly offloads: LinkOffloads;
  /** Takes a copy. False: no room, the frame is dropped. */
  send(frame: Uint8Array, offload: FrameOffload): boolean;
  /** The frame is the link's memory and valid during the call only. */
  onFrame: FrameHandler | null;
}

export type LinkPairOptions = {
  readonly mtu?: number;
  readonly offloads?: LinkOffloads;
  /** Sees every frame on its way (a copy that it may edit); false loses it. */
  readonly filter?: (frame: Uint8Array, from: 0 | 1) => boolean;
  /** Frames under way in one direction; more are dropped. */
  readonly capacity?: number;
};

/** Two ends of a wire in memory. Frames arrive in a later turn of the event loop, in order. */
export function linkPair(options: LinkPairOptions = {}): [FrameLink, FrameLink] {
  const ends: FrameLink[] = [];
  const end = (self: 0 | 1): FrameLink => {
    let underWay = 0;
    return {
      mac: `02:00:00:00:00:0${self + 1}`,
      mtu: options.mtu ?? 1500,
      offloads: options.offloads ?? { csum: false, uso: false },
      onFrame: null,
      send(frame, offload) {
        if (underWay >= (options.capacity ?? 4096)) return false;
        const copy = frame.slice();
        if (options.filter !== undefined && !options.filter(copy, self)) return true;
        underWay++;
        setImmediate(() => {
          underWay--;
          ends[1 - self].onFrame?.(copy, offload);
        });
        return true;
      },
    };
  };
  ends.push(end(0), end(1));
  return [ends[0], ends[1]];
}
