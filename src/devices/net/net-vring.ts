import type { VringAttach } from '../../runtime/data-plane.ts';
import { PlaneVring } from '../../runtime/plane-vring.ts';

/** One virtqueue of a net device as its worker sees it. */
export class NetVring extends PlaneVring {
  /** Receive queue: frames for which the buffers behind it are still looked at ahead of time. */
  lookAhead = 0;

  constructor(attach: VringAttach, arenaBuffer: ArrayBuffer) {
    super(attach, arenaBuffer, true); // frames leave a ring in its order
  }
}
