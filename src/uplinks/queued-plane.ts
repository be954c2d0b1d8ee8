import { BATCH_SEGMENTS } from '../base/limits.ts';
import type { FrameBatch } from '../switch/index.ts';
import { CopyPlan } from '../sys/arena.ts';
import { ETH_HEADER_BYTES } from '../wire/ethernet.ts';
import { type AttachedPlane, newUplinkCounters } from './uplink-plane.ts';

/**
 * What uplinks share whose queues are sockets with rings in our memory: queues that come and go
 * with the interface, and take turns when frames are received. `Place` is where a queue lies.
 */
export abstract class QueuedPlane<
  Place,
  Queue extends { readonly fd: number },
> implements AttachedPlane<Place> {
  abstract readonly accepts: number;
  readonly counters = newUplinkCounters();
  readonly spins = true;
  linkUp: boolean;
  mtu: number;

  protected queues: readonly Queue[] = [];
  protected readonly plan = new CopyPlan(BATCH_SEGMENTS + 256);
  protected readonly one = new Int32Array(1);
  /** The queue that the last `receive` found frames in. */
  protected current: Queue | null = null;
  /** The one that the next looks at first. */
  #next = 0;

  constructor(options: { readonly mtu: number; readonly linkUp: boolean }) {
    this.mtu = options.mtu;
    this.linkUp = options.linkUp;
  }

  protected abstract open(place: Place): Queue;
  protected abstract receiveFrom(queue: Queue, batch: FrameBatch): number;
  abstract readKernelCounters(): void;
  abstract transmit(batch: FrameBatch, list: Int32Array, count: number): number;
  abstract release(batch: FrameBatch): void;
  abstract flush(): void;
  abstract close(): void;

  get fds(): readonly number[] {
    return this.queues.map((queue) => queue.fd);
  }

  get ready(): boolean {
    return this.linkUp && this.queues.length > 0;
  }

  get maxFrameBytes(): number {
    return this.mtu + ETH_HEADER_BYTES;
  }

  attach(places: readonly Place[]): void {
    this.queues = places.map((place) => this.open(place));
    this.#next = 0;
  }

  detach(): void {
    this.readKernelCounters();
    this.queues = [];
    this.current = null;
  }

  receive(batch: FrameBatch): number {
    batch.count = 0;
    batch.segments = 0;
    const { length } = this.queues;
    for (let tried = 0; tried < length; tried++) {
      const queue = this.queues[this.#next]!;
      this.#next = this.#next + 1 === length ? 0 : this.#next + 1;
      const count = this.receiveFrom(queue, batch);
      if (count > 0) return count;
    }
    return 0;
  }
}
