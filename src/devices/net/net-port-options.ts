import type { PlaneEvent } from '../../runtime/data-plane.ts';
import type { PortScratch } from './port-scratch.ts';

/** What a `NetPort` is made with. */
export type NetPortOptions = {
  readonly device: number;
  readonly queuePairs: number;
  /** Bytes of IP per frame. */
  readonly mtu: number;
  readonly linkUp: boolean;
  /** The address in the configuration space, for receive filtering; null: none. */
  readonly mac: Uint8Array | null;
  readonly emit: (event: PlaneEvent) => void;
  /** Arena offset of PARKED_FRAMES_BYTES of our own, for a guest behind an IOMMU; -1: none. */
  readonly parkedAt?: number;
  /** Shared by the ports of a thread, and settled by who gave it; default: one of its own. */
  readonly scratch?: PortScratch;
  /** This worker's number and how many serve the port: see `queuesOf`. */
  readonly worker?: number;
  readonly workers?: number;
};
