/**
 * A switch's data plane with many guests, on one thread: drivers fill transmit queues, and only
 * the plane's rounds are timed. Between rounds every driver takes back what was used.
 */
import { assert } from '../src/base/assert.ts';
import { type NetPlane, createPlane } from '../src/devices/net/net-plane.ts';
import { PrivateMemory } from '../src/memory/index.ts';
import { Floor } from './scale-floor.ts';
import { COUNTER_COLUMNS, RX_FRAMES, TX_FRAMES } from '../src/switch/counters.ts';
import { COUNTERS_BYTES, MacTable, SWITCH_SCRATCH_BYTES } from '../src/switch/index.ts';
import { arena } from '../src/sys/index.ts';
import {
  BATCH,
  FRAME_BYTES,
  Guest,
  type GuestRing,
  HEADER_BYTES,
  RING_SIZE,
} from './scale-guest.ts';

/** Address 02:00:pp:nn:nn:nn is number n of port p. */
const ADDRESSES_OF_PORT = 2 ** 24;

/** A worker that is busy peeks so often (EVENT_CHECK_MS of src/runtime/worker.ts). */
export const PEEK_MS = 0.05;

export type Load = {
  /** Ports that send in every round. */
  readonly busy: number;
  /** Ports with buffers posted that nobody sends to. */
  readonly idle?: number;
  readonly pairs?: number;
  /** Queue pairs that are sent on; default: all. */
  readonly sendPairs?: number;
  /** pair: all frames of a port go to its neighbour. all: each goes to a random other port. */
  readonly pattern: 'pair' | 'all';
  /** Addresses of all busy ports together; frames come from and go to random ones of them. */
  readonly addresses?: number;
  /** So many of a port's addresses are used; default: all. */
  readonly used?: number;
  /** Distinct 5-tuples of a port's frames. */
  readonly flows?: number;
  readonly macCapacity?: number;
  /** Frames of a ring and round, at most BATCH (the default). */
  readonly batch?: number;
};

export class World {
  readonly name: string;
  readonly guests: Guest[];
  readonly plane: NetPlane;
  readonly macTable: MacTable;
  readonly counters: Float64Array;
  readonly floor: Floor;
  readonly #load: Load;
  readonly #pairs: number;
  readonly #busy: Guest[];
  readonly #scratch: PrivateMemory;
  readonly #random = xorshift32(0x2545f491);
  #nowMs = 0;
  /** Samples, ns per frame: every round of a turn. */
  readonly samples: number[] = [];
  readonly bareSamples: number[] = [];
  /** Nanoseconds of a look at sleeping queues. */
  readonly peekSamples: number[] = [];
  #unpeekedMs = 0;

  constructor(name: string, load: Load) {
    this.name = name;
    this.#load = load;
    this.#pairs = load.pairs ?? 1;
    this.#scratch = PrivateMemory.allocate(SWITCH_SCRATCH_BYTES);
    this.macTable = MacTable.create({ capacity: load.macCapacity ?? 16384, ageingSeconds: 0 });
    const counters = new SharedArrayBuffer(COUNTERS_BYTES);
    this.counters = new Float64Array(counters);
    this.plane = createPlane({
      watch: () => undefined,
      unwatch: () => undefined,
      emit: (event) => assert(false, () => `no ring breaks, but ${JSON.stringify(event)}`),
      spinMs: 1,
      options: { macTable: this.macTable.memory, counters, scratchAt: this.#scratch.offset },
    }) as NetPlane;
    const { busy, idle = 0 } = load;
    this.guests = Array.from(
      { length: busy + idle },
      (_, i) => new Guest(this.plane, i, this.#pairs),
    );
    this.#busy = this.guests.slice(0, busy);
    this.#learn();
    this.floor = new Floor(this.macTable);
    for (const { transmit } of this.#busy) {
      for (const ring of transmit) this.#prepare(ring);
    }
    // Idle rings are looked at for spinMs and then sleep, as in a worker.
    while (this.plane.awake > 0) this.plane.poll((this.#nowMs += 1));
  }

  /** Nanoseconds per frame of a turn of at least `millis`; bare: of the floor. */
  turn(millis: number, bare = false): number {
    const end = performance.now() + millis;
    let frames = 0;
    let spent = 0;
    do {
      const sent = this.send();
      const from = performance.now();
      if (bare) this.floor.pass(this.#busy, this.#load.sendPairs ?? this.#pairs);
      const between = performance.now();
      const done = this.plane.poll(this.#nowMs);
      const took = bare ? between - from : performance.now() - between;
      assert(done === sent, () => `${done} of ${sent} frames were taken`);
      (bare ? this.bareSamples : this.samples).push((took * 1e6) / done);
      frames += done;
      spent += took;
      this.#unpeekedMs += took;
      if (this.#unpeekedMs >= PEEK_MS) this.#peek();
    } while (performance.now() < end);
    return (spent * 1e6) / frames;
  }

  /** As often as a worker does, so it finds what it looks at as cold as there. */
  #peek(): void {
    const from = performance.now();
    this.plane.peek(this.#nowMs);
    this.peekSamples.push((performance.now() - from) * 1e6);
    this.#unpeekedMs = 0;
  }

  /** Every busy ring gets a batch and is awake; returns how many frames that are. */
  send(): number {
    let frames = 0;
    const { busy, sendPairs = this.#pairs, batch = BATCH } = this.#load;
    for (const guest of this.#busy) {
      for (const ring of guest.receive) ring.add(ring.reap());
      for (let q = 0; q < sendPairs; q++) {
        const ring = guest.transmit[q]!;
        const room = ring.queue.outstanding === 0 ? batch : ring.reap();
        this.#fill(guest.port, ring, room);
        ring.add(room);
        frames += room;
      }
    }
    if (this.plane.awake < busy * sendPairs) this.#kick(sendPairs);
    return frames;
  }

  /** Token n is that of the n-th ring that was attached. */
  #kick(sendPairs: number): void {
    for (const { port } of this.#busy) {
      for (let q = 0; q < sendPairs; q++) {
        this.plane.ready((port * this.#pairs + q) * 2 + 1, this.#nowMs);
      }
    }
  }

  /** Frames that the switch took, and did not deliver. */
  lost(): number {
    let lost = 0;
    for (const { port } of this.guests) {
      const row = port * COUNTER_COLUMNS;
      lost += this.counters[row + RX_FRAMES]! - this.counters[row + TX_FRAMES]!;
    }
    return lost;
  }

  close(): void {
    for (const guest of this.guests) guest.close();
    this.floor.close();
    this.#scratch.close();
  }

  #addressesOfPort(): number {
    return Math.max(1, Math.trunc((this.#load.addresses ?? 0) / this.#load.busy));
  }

  #learn(): void {
    const perPort = this.#addressesOfPort();
    const words = new Int32Array(4 * perPort);
    for (const { port } of this.guests) {
      for (let n = 0; n < perPort; n++) {
        words.set([address(port, n), 0x0200 | (1 << 16), port, 0], 4 * n);
      }
      const entered = this.macTable.enter(words, () => perPort);
      // A key that finds no slot within reach stays unknown: one in some ten thousand.
      assert(entered >= perPort * 0.999, () => `${entered} of ${perPort} addresses were learned`);
    }
  }

  /** What stays the same of all frames: Ethernet and IPv4 with UDP behind the addresses. */
  #prepare(ring: GuestRing): void {
    for (let n = 0; n < RING_SIZE; n++) {
      const frame = new Uint8Array(FRAME_BYTES);
      frame.set([2, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 8, 0, 0x45, 0, 0, 50, 0, 0, 0, 0, 64, 17]);
      arena().bytes.set(frame, ring.buffer(n) + HEADER_BYTES);
    }
  }

  #fill(port: number, ring: GuestRing, count: number): void {
    const { view } = arena();
    const { busy, pattern, flows = 1, used = this.#addressesOfPort() } = this.#load;
    const random = this.#random;
    for (let i = 0; i < count; i++) {
      const at = ring.frameAt(i);
      const other = pattern === 'pair' ? port ^ 1 : (port + 1 + random(busy - 1)) % busy;
      view.setInt32(at + 2, address(other, random(used)));
      view.setInt32(at + 8, address(port, random(used)));
      const flow = random(flows);
      view.setInt32(at + 26, 0x0a000000 + (flow >>> 8)); // source address
      view.setInt32(at + 30, 0x0b000000 + other);
      view.setInt32(at + 34, ((1024 + (flow & 0xff)) << 16) | 53); // ports
    }
  }
}

function address(port: number, n: number): number {
  return (port * ADDRESSES_OF_PORT + n) | 0;
}

/** A whole number below `limit`, the same sequence in every run. */
export function xorshift32(seed: number): (limit: number) => number {
  let state = seed | 0;
  return (limit) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return limit === 1 ? 0 : (state >>> 0) % limit;
  };
}
