import type { VringAttach } from '../../runtime/data-plane.ts';
import { PlaneVring } from '../../runtime/plane-vring.ts';
import { RingCalls } from './call-hold.ts';

const BIG_ENDIAN = 2; // DeviceQueue.format

/** One virtqueue of a net device as its worker sees it. */
export class NetVring extends PlaneVring {
  /** Receive queue: frames for which the buffers behind it are still looked at ahead of time. */
  lookAhead = 0;
  /** 1: nothing goes with the ring that `readDirect` and `writeDirect` do not know of. */
  readonly direct: number;
  /** Batches until `readDirect` is tried again: it met chains of another shape. */
  directAfter = 0;
  /** Of a port that holds calls. */
  readonly held = new RingCalls();

  constructor(attach: VringAttach, arenaBuffer: ArrayBuffer) {
    super(attach, arenaBuffer, true); // frames leave a ring in its order
    const { format, iotlb, logged, tracked, packed, weakOrder } = this.queue;
    // Descriptors of a packed ring are read one by one without the fences of packed-device.hot.ts.
    const unfenced = packed & weakOrder;
    this.direct = format < BIG_ENDIAN && (tracked | (iotlb & logged) | unfenced) === 0 ? 1 : 0;
    const { callsHeld = 0, callsCoalesced = 0 } = attach.resumed?.counters ?? {};
    this.held.callsHeld = callsHeld;
    this.held.callsCoalesced = callsCoalesced;
  }

  override counters(): Record<string, number> {
    const { callsHeld, callsCoalesced } = this.held;
    if (callsHeld === 0) return super.counters();
    return { ...super.counters(), callsHeld, callsCoalesced };
  }
}
