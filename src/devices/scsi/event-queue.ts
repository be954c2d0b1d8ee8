/**
 * Events for the driver: virtio 1.2, 5.6.6.3. The driver's buffers stay in the ring until there is
 * something to say, so that they are still there for who continues with it. Without a buffer an
 * event waits; over MAX_EVENTS it is lost, and the next one says that some were.
 */
import { arena } from '../../sys/index.ts';
import { ChainBatch } from '../../virtqueue/chain-batch.ts';
import { putUsed, takeChains } from '../../virtqueue/device.hot.ts';
import { FAULT_CHAIN_SHORT } from '../../virtqueue/faults.ts';
import {
  encodeScsiLun,
  ScsiEvent,
  VIRTIO_SCSI_T_EVENTS_MISSED,
  VIRTIO_SCSI_T_NO_EVENT,
} from '../../wire/virtio-scsi.ts';
import { scatter } from './respond-slowly.ts';
import { COUNT_EVENTS, type ScsiVring } from './scsi-vring.ts';

const MAX_EVENTS = 64;

export type UnitEvent = {
  readonly event: number;
  readonly target: number;
  readonly lun: number;
  readonly reason: number;
};

export class EventQueue {
  readonly #events: UnitEvent[] = [];
  #missed = false;
  readonly #chains = new ChainBatch(1);
  readonly #arena = arena();

  get isWaiting(): boolean {
    return this.#events.length > 0 || this.#missed;
  }

  add(event: UnitEvent): void {
    if (this.#events.length < MAX_EVENTS) this.#events.push(event);
    else this.#missed = true;
  }

  /** Some were lost: the driver looks at everything when it is told. */
  miss(): void {
    this.#missed = true;
  }

  /** Another driver: it looks at everything by itself. */
  clear(): void {
    this.#events.length = 0;
    this.#missed = false;
  }

  /** Writes what there is buffers for. Returns how many, or a FAULT_*. */
  deliver(vring: ScsiVring): number {
    let count = 0;
    while (this.isWaiting) {
      const taken = takeChains(vring.queue, this.#chains, 1);
      if (taken < 0) return taken;
      if (taken === 0) {
        // Nothing wakes us but a kick for the buffer that is missing.
        if (vring.queue.missed !== 0 || !vring.requestKicks()) return count;
        continue;
      }
      if (this.#chains.writeBytes[0]! < ScsiEvent.size) return FAULT_CHAIN_SHORT;
      this.#write();
      putUsed(vring.queue, this.#chains, 0, 1);
      vring.counts[COUNT_EVENTS]!++;
      vring.touched = true;
      count++;
    }
    return count;
  }

  #write(): void {
    const none = { event: VIRTIO_SCSI_T_NO_EVENT, target: 0, lun: 0, reason: 0 };
    const { event, target, lun, reason } = this.#events.shift() ?? none;
    const isNone = event === VIRTIO_SCSI_T_NO_EVENT;
    const bytes = ScsiEvent.encode({
      event: (event | (this.#missed ? VIRTIO_SCSI_T_EVENTS_MISSED : 0)) >>> 0,
      lun: isNone ? new Uint8Array(8) : encodeScsiLun(target, lun),
      reason,
    });
    this.#missed = false;
    const chains = this.#chains;
    const first = chains.segFirst[0]! + chains.readSegs[0]!;
    scatter(chains, first, 0, bytes, bytes.length, this.#arena.view);
    chains.written[0] = bytes.length;
  }
}
