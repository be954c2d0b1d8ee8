/** A guest of the scale bench: rings with buffers of one size, attached to a data plane. */
import { assert } from '../src/base/assert.ts';
import type { NetPlane } from '../src/devices/net/net-plane.ts';
import { PrivateMemory } from '../src/memory/index.ts';
import { arena } from '../src/sys/index.ts';
import {
  addChains,
  DriverBatch,
  DriverQueue,
  publish,
  reapUsed,
  ringLayout,
  UsedBatch,
} from '../src/virtqueue/driver/index.ts';
import { VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF } from '../src/wire/virtio-net.ts';
import { VIRTIO_F_VERSION_1, featureSet } from '../src/wire/virtio.ts';

export const BATCH = 64;
export const HEADER_BYTES = 12;
export const FRAME_BYTES = 64;
export const RING_SIZE = 256;
const RING_BYTES = 16 * 1024;
const BUFFER_BYTES = 2048;
const FEATURES = featureSet(VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MQ);

/** A driver's view of one ring whose buffers all have the same size. */
export class GuestRing {
  readonly queue: DriverQueue;
  readonly #batch = new DriverBatch();
  readonly #used = new UsedBatch();
  readonly #buffersAt: number;
  readonly #receive: boolean;
  #next = 0;

  constructor(queue: DriverQueue, buffersAt: number, receive: boolean) {
    this.queue = queue;
    this.#buffersAt = buffersAt;
    this.#receive = receive;
  }

  buffer(n: number): number {
    return this.#buffersAt + (n % RING_SIZE) * BUFFER_BYTES;
  }

  /** The arena offset of the frame that `add` adds next but `ahead`. */
  frameAt(ahead: number): number {
    return this.buffer(this.#next + ahead) + HEADER_BYTES;
  }

  /** How many chains the device took. */
  get at(): number {
    return this.#next - this.queue.outstanding;
  }

  /** The buffer of the next chain that the device takes but `ahead`. */
  deviceBuffer(ahead: number): number {
    return this.buffer(this.at + ahead);
  }

  /** Takes everything back; returns how many buffers that were. */
  reap(): number {
    let total = 0;
    for (;;) {
      const count = reapUsed(this.queue, this.#used, BATCH);
      assert(count >= 0, 'the device keeps to the rules of the ring');
      total += count;
      if (count < BATCH) return total;
    }
  }

  add(count: number): void {
    const batch = this.#batch;
    for (let done = 0; done < count; done += BATCH) {
      batch.clear();
      for (let i = 0; i < Math.min(BATCH, count - done); i++) {
        batch.segFirst[i] = i;
        batch.readSegs[i] = this.#receive ? 0 : 1;
        batch.writeSegs[i] = this.#receive ? 1 : 0;
        batch.segGpa[i] = this.buffer(this.#next++);
        batch.segLen[i] = this.#receive ? BUFFER_BYTES : HEADER_BYTES + FRAME_BYTES;
        batch.count++;
        batch.segments++;
      }
      addChains(this.queue, batch, 0, batch.count);
      publish(this.queue);
    }
  }
}

export class Guest {
  readonly port: number;
  readonly receive: GuestRing[] = [];
  readonly transmit: GuestRing[] = [];
  readonly #memory: PrivateMemory;

  constructor(plane: NetPlane, port: number, pairs: number) {
    this.port = port;
    const rings = 2 * pairs;
    const bytes = RING_BYTES + RING_SIZE * BUFFER_BYTES;
    this.#memory = PrivateMemory.allocate(rings * bytes);
    const settings = {
      vlan: { mode: 'access', vid: 1 },
      macLimit: 131072,
      reflect: false,
    } as const;
    plane.command('addNetPort', {
      port,
      settings,
      queuePairs: pairs,
      mtu: 1500,
      mac: null,
      linkUp: true,
    });
    for (let index = 0; index < rings; index++) {
      this.#attach(plane, index, this.#memory.offset + index * bytes);
    }
    if (pairs === 1) return;
    // What the driver would say by VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET.
    const state = plane.command('saveState', { port }) as object;
    const payload = { port, state: { ...state, activePairs: pairs }, switchCounters: {} };
    plane.command('loadState', payload);
  }

  #attach(plane: NetPlane, index: number, at: number): void {
    const layout = ringLayout(RING_SIZE, false);
    assert(layout.totalBytes <= RING_BYTES);
    const config = {
      size: RING_SIZE,
      packed: false,
      eventIdx: false,
      indirect: false,
      inOrder: false,
      descOffset: at,
      availOffset: at + layout.availAt,
      usedOffset: at + layout.usedAt,
    };
    const ring = new GuestRing(
      new DriverQueue(config, arena().buffer),
      at + RING_BYTES,
      index % 2 === 0,
    );
    if (index % 2 === 0) ring.add(RING_SIZE);
    (index % 2 === 0 ? this.receive : this.transmit).push(ring);
    const { offset, sizeBytes } = this.#memory;
    plane.attachVring({
      device: this.port,
      index,
      config: { ...config, base: 0 },
      map: {
        count: 1,
        start: Float64Array.of(offset),
        end: Float64Array.of(offset + sizeBytes),
        delta: Float64Array.of(0),
      },
      regions: [],
      features: FEATURES,
      kickFd: 1, // watched by nobody: a ring that kicks may sleep
      callFd: -1,
      injectedQueue: -1,
      errFd: -1,
      enabled: true,
      iotlb: false,
      log: null,
      inflight: null,
      drain: true,
    });
  }

  close(): void {
    this.#memory.close();
  }
}
