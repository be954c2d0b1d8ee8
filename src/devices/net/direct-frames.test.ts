/**
 * `readDirect`, `readParts` and `writeDirect` do what the general loops do: the same drivers,
 * buffers and frames through two pairs of ports, of which one may not go the direct way.
 */
import assert from 'node:assert/strict';
import { afterEach, test } from 'node:test';
import { arena } from '../../sys/arena.ts';
import { setAddressMap } from '../../virtqueue/device-queue.ts';
import * as net from '../../wire/virtio-net.ts';
import {
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_RING_PACKED,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
} from '../../wire/virtio.ts';
import type { NetVring } from './net-vring.ts';
import { type FixtureOptions, type FixtureRing, PortFixture, frameBatch } from './port-fixture.ts';

const RECEIVEQ = 0;
const TRANSMITQ = 1;
const HEADER = 12;
const RING = 128;
const STEPS = 150;

const open: PortFixture[] = [];
afterEach(() => {
  for (const made of open.splice(0)) made.close();
});

/** One sender, one receiver, and everything that came out of them. */
class World {
  readonly from: PortFixture;
  readonly to: PortFixture;
  readonly seen: unknown[] = [];
  readonly #batch = frameBatch();
  /** Frames so far. */
  #frames = 0;
  readonly #isDirect: boolean;

  readonly isMergeable: boolean;

  /** What is damaged may be a miss, and the ring waits, where it would break. */
  readonly isTranslated: boolean;

  readonly #extra: FixtureOptions;

  constructor(features: number[], isDirect: boolean, extra: FixtureOptions) {
    this.isMergeable = features.includes(net.VIRTIO_NET_F_MRG_RXBUF);
    this.#isDirect = isDirect;
    this.#extra = extra;
    this.isTranslated = extra.iommuPageBytes !== undefined;
    this.from = this.#fixture(features);
    this.to = this.#fixture(features);
  }

  #fixture(features: number[]): PortFixture {
    const tableEntries = this.isTranslated ? 2 : 4; // within a page
    const made = new PortFixture({ features, ringSize: RING, tableEntries, ...this.#extra });
    open.push(made);
    if (this.isTranslated) {
      made.translateAll();
      if (!this.#isDirect) for (const { vring } of made.rings) noDirect(vring);
      return made;
    }
    // Two ranges that meet in the middle of the buffers: half of them are not where the last was.
    const { start, end } = made.map;
    const middle = made.buffer(RING);
    for (const { vring } of made.rings) {
      if (!this.#isDirect) noDirect(vring);
      setAddressMap(vring.queue, {
        count: 2,
        start: new Float64Array([start[0]!, middle]),
        end: new Float64Array([middle, end[0]!]),
        delta: new Float64Array(2),
      });
    }
    return made;
  }

  send(slot: number, bytes: Uint8Array, shape: Shape): void {
    const at = this.from.buffer(slot);
    this.from.write(at, bytes);
    const ends = [...shape.cuts.filter((cut) => cut < bytes.length), bytes.length];
    const parts = ends.map((end, i): [number, number] => {
      const start = i === 0 ? 0 : ends[i - 1]!;
      return [this.from.iova(at + start), end - start];
    });
    const ring = this.from.rings[TRANSMITQ]!;
    const { nextAvail } = ring.queue;
    if (shape.writable) ring.add([], parts, shape.indirect);
    else ring.add(parts, [], shape.indirect);
    if (shape.damage !== null) damage(ring, nextAvail, shape.damage);
  }

  post(slot: number, len: number, cut: number): void {
    const at = this.to.buffer(slot);
    this.to.write(at, new Uint8Array(len).fill(0xee));
    const parts: [number, number][] = cut === 0 ? [[at, len]] : [[at, cut], [at + cut, len - cut]]; // prettier-ignore
    for (const part of parts) part[0] = this.to.iova(part[0]);
    this.to.rings[RECEIVEQ]!.add([], parts);
  }

  /** Moves everything that is there, skipping every `skip`-th frame. */
  run(skip: number, slots: readonly number[], lens: readonly number[]): void {
    const batch = this.#batch;
    for (;;) {
      const before = this.from.rings[TRANSMITQ]!.vring.queue.chainsTaken;
      batch.plain = 0;
      const count = this.from.port.receive(batch);
      if (count === 0 && this.from.rings[TRANSMITQ]!.vring.queue.chainsTaken === before) break;
      const all = Int32Array.from({ length: count }, (_, i) => i);
      const list = all.filter((i) => (this.#frames + i) % skip !== 1);
      this.#frames += count;
      for (const i of list) this.seen.push(['frame', batch.frameLen[i], batch.offload[i]]);
      if (list.length > 0) {
        this.seen.push(['delivered', this.to.port.transmit(batch, list, list.length)]);
      }
      this.from.port.release();
    }
    this.from.port.flush();
    this.to.port.flush();
    const id = ([, len]: [number, number]): number => len;
    this.seen.push(['sent', this.from.rings[TRANSMITQ]!.reap().map(id)]);
    this.seen.push(['received', this.to.rings[RECEIVEQ]!.reap().map(id)]);
    if (this.#extra.log === true)
      this.seen.push(['dirty', dirtyPages(this.from), dirtyPages(this.to)]);
    this.seen.push(slots.map((slot, i) => hash(this.to.bytes(this.to.buffer(slot), lens[i]!))));
  }

  get faults(): unknown[] {
    return [...this.from.events, ...this.to.events].map(({ index, code }) => [index, code]);
  }

  get counters(): unknown {
    return { from: { ...this.from.port.counters }, to: { ...this.to.port.counters } };
  }
}

/** What is sent is in parts that end there, and in a table where there are several. */
type Shape = {
  readonly cuts: readonly number[];
  readonly indirect: boolean;
  readonly writable: boolean;
  readonly damage: Damage | null;
};

/** One word of the chain's first descriptor, or of one entry of its table. */
type Damage = { readonly entry: number; readonly flags: boolean; readonly word: number };

function damage({ queue, batch }: FixtureRing, slot: number, { entry, flags, word }: Damage): void {
  const { packed, desc, tableBase, tableEntries, arena: view } = queue;
  const id = batch.id[0]!;
  const at = 4 * (packed === 0 ? id : slot);
  if (entry < 0) {
    if (!flags) desc[at + 2] = word;
    else if (packed === 0) desc[at + 3] = word;
    else if ((desc[at + 3]! & (1 << 16)) !== 0) desc[at + 3]! ^= 1; // the id of a list is in its last
    else desc[at + 3]! ^= word < 0 ? 0x8000 : (word & 6) << 16; // the driver counts slots
    return;
  }
  const of = tableBase[0]! + 16 * (tableEntries * id + entry);
  view.setInt32(of + (flags ? 12 : 8), packed === 1 && flags ? word << 16 : word, true);
}

function noDirect(vring: NetVring): void {
  (vring as { direct: number }).direct = 0;
}

/** Pages of the memory that are marked since the last time. */
function dirtyPages(fixture: PortFixture): number[] {
  const { memory, log } = fixture;
  const bits = arena().bytes.subarray(log!.offset, log!.offset + log!.sizeBytes);
  const first = memory.offset / 4096;
  const pages = Array.from({ length: memory.sizeBytes / 4096 }, (_, i) => i);
  const dirty = pages.filter((i) => ((bits[(first + i) >> 3]! >> ((first + i) & 7)) & 1) !== 0);
  bits.fill(0);
  return dirty;
}

function hash(bytes: Uint8Array): number {
  let sum = 0;
  for (const byte of bytes) sum = (Math.imul(sum, 31) + byte) | 0;
  return sum;
}

/** xorshift32. */
function randomOf(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % below;
  };
}

/** One step of both worlds; the same numbers for each. */
function step(worlds: readonly World[], random: (below: number) => number, n: number): void {
  const odd = random(3) === 0; // with chains of every shape, else as drivers do it
  const posted: number[] = [];
  const lens: number[] = [];
  for (let k = random(60); k > 0; k--) {
    const slot = (n * 64 + k) % (2 * RING);
    // Where buffers are merged, a frame that lacks some takes the rest of its batch with it, and
    // batches are cut elsewhere: there every buffer holds a frame.
    const short = odd && !worlds[0]!.isMergeable && random(4) === 0;
    const len = short ? 13 + random(200) : 1600;
    const cut = odd && random(5) === 0 ? 1 + random(len - 1) : 0;
    if (worlds[0]!.to.rings[RECEIVEQ]!.queue.free < 2) break;
    posted.push(slot);
    lens.push(len);
    for (const world of worlds) world.post(slot, len, cut);
  }
  for (let k = 1 + random(60); k > 0; k--) {
    if (worlds[0]!.from.rings[TRANSMITQ]!.queue.free < 4) break;
    const len = random(3) === 0 ? 14 + random(1500) : 14 + random(70);
    const bytes = new Uint8Array(HEADER + len);
    for (let i = HEADER; i < bytes.length; i++) bytes[i] = random(256);
    if (odd && random(6) === 0) bytes[0] = 1 + random(3); // NEEDS_CSUM, DATA_VALID
    const shape = shapeOf(random, odd, bytes.length, n);
    const slot = (n * 64 + k) % (2 * RING);
    const sound = worlds[0]!.isTranslated ? { ...shape, damage: null } : shape;
    for (const world of worlds) world.send(slot, bytes, sound);
  }
  const skip = 2 + random(60);
  for (const world of worlds) world.run(skip, posted, lens);
}

/** Lengths, and flags with what is next. */
const DAMAGE = [0, 1, 2, 4, 11, 15, 24, 4096, 65560, 70000, -1].concat(
  [1, 2, RING - 1, RING, 0xffff].map((next) => 1 | (next << 16)),
);

/** In a third of the steps of any shape; half of the others as drivers do it that send parts. */
function shapeOf(random: (below: number) => number, odd: boolean, len: number, n: number): Shape {
  const usual = n % 2 === 0 ? [] : random(3) === 0 ? [HEADER, HEADER + 66] : [HEADER + 66];
  const cuts = new Set(odd ? [] : usual);
  if (odd && random(3) === 0) {
    for (let k = 1 + random(3); k > 0; k--) cuts.add(1 + random(random(2) === 0 ? len - 1 : 80));
  }
  const late = n > STEPS - 40;
  const word = DAMAGE[random(DAMAGE.length)]!;
  const damaged = { entry: random(4) - 1, flags: random(2) === 0, word };
  return {
    cuts: [...cuts].sort((a, b) => a - b),
    indirect: odd ? random(2) === 0 : n % 4 === 1,
    writable: n === STEPS || (n > STEPS - 10 && random(40) === 0), // a chain that may only be written
    damage: late && random(20) === 0 ? damaged : null,
  };
}

const SHAPES: [string, number[]][] = [
  ['split', []],
  ['split, mergeable, in order', [net.VIRTIO_NET_F_MRG_RXBUF, VIRTIO_F_IN_ORDER]],
  ['packed', [VIRTIO_F_RING_PACKED]],
  ['packed, mergeable', [VIRTIO_F_RING_PACKED, net.VIRTIO_NET_F_MRG_RXBUF]],
  ['packed, in order', [VIRTIO_F_RING_PACKED, VIRTIO_F_IN_ORDER]],
  ['split, tables', [VIRTIO_RING_F_INDIRECT_DESC]],
  [
    'split, mergeable, tables',
    [VIRTIO_RING_F_INDIRECT_DESC, net.VIRTIO_NET_F_MRG_RXBUF, VIRTIO_RING_F_EVENT_IDX],
  ],
  ['packed, tables', [VIRTIO_F_RING_PACKED, VIRTIO_RING_F_INDIRECT_DESC]],
  [
    'packed, in order, tables',
    [VIRTIO_F_RING_PACKED, VIRTIO_RING_F_INDIRECT_DESC, VIRTIO_F_IN_ORDER],
  ],
];

const EXTRAS: [string, number[], FixtureOptions][] = [
  ['', [], {}],
  [', checksums', [net.VIRTIO_NET_F_CSUM, net.VIRTIO_NET_F_GUEST_CSUM], {}],
  [', a dirty log', [], { log: true }],
  [', an IOMMU', [], { iommuPageBytes: 4096 }],
];

for (const [name, features] of SHAPES) {
  for (const [what, more, extra] of EXTRAS) {
    test(`${name}${what}: the direct way changes nothing`, () => {
      for (let seed = 1; seed <= 2; seed++) {
        const worlds = [true, false].map(
          (direct) => new World([...features, ...more], direct, extra),
        );
        const [direct, general] = worlds as [World, World];
        const random = randomOf(seed * 7919);
        for (let n = 0; n <= STEPS; n++) {
          step(worlds, random, n);
          if (general.faults.length > 0) break;
          const [a, b] = worlds.map((world) => joined(world.seen.splice(0)));
          assert.deepEqual(a, b, `seed ${seed}, step ${n}`);
          assert.deepEqual(direct.counters, general.counters);
        }
        assert.equal(general.faults.length, 1, 'a chain was broken on purpose');
        assert.deepEqual(direct.faults, general.faults);
        // What is good before it goes out; the general way gives up the batch that it is in.
        const [a, b] = worlds.map((world) =>
          world.seen.filter((e) => Array.isArray(e) && e[0] === 'frame'),
        );
        assert.deepEqual(a!.slice(0, b!.length), b);
      }
    });
  }
}

/** Batches may be cut elsewhere: how many were delivered counts as a sum. */
function joined(seen: unknown[]): unknown {
  const delivered = seen.filter((e) => Array.isArray(e) && e[0] === 'delivered');
  const sum = delivered.reduce((a: number, e) => a + (e as [string, number])[1], 0);
  return { sum, rest: seen.filter((e) => !delivered.includes(e)) };
}

for (const [name, features] of [
  ['split', []],
  ['packed', [VIRTIO_F_RING_PACKED]],
] as [string, number[]][]) {
  test(`${name}: what an IOMMU forbids is not done the direct way`, () => {
    const fixture = new PortFixture({ features, ringSize: RING, iommuPageBytes: 4096 });
    open.push(fixture);
    const batch = frameBatch();
    const [receiveq, transmitq] = fixture.rings as [FixtureRing, FixtureRing];
    const page = (slot: number) => ({
      iova: fixture.iova(fixture.buffer(slot)),
      sizeBytes: 4096,
      offset: fixture.buffer(slot),
    });
    const lens: number[] = [];
    // Of a page with two buffers the first is allowed when it is met; then the page is not.
    for (const [ring, slot, forbidden] of [
      [receiveq, 0, 1],
      [transmitq, 2, 2],
    ] as const) {
      fixture.translateAll();
      const isReceive = ring === receiveq;
      for (const [n, permissions] of [3, forbidden].entries()) {
        fixture.port.iotlb.update({ ...page(slot), permissions });
        const at = fixture.buffer(slot + n);
        fixture.write(at, new Uint8Array(100));
        const buffer: [number, number][] = [[fixture.iova(at), 100]];
        if (isReceive) {
          ring.add([], buffer);
          batch.count = 1;
          batch.segments = 0;
          batch.plain = 1;
          batch.headerAt[0] = 16;
          batch.headerLen[0] = batch.frameLen[0] = 60;
          batch.segCount[0] = batch.offload[0] = batch.gsoType[0] = 0;
          fixture.port.transmit(batch, Int32Array.of(0), 1);
        } else {
          ring.add(buffer, []);
          ring.vring.directAfter = 0;
          fixture.port.receive(batch);
          fixture.port.release();
        }
        lens.push(ring.reap().length);
      }
      assert.equal(fixture.misses.length, isReceive ? 1 : 2, 'the forbidden one is a miss');
    }
    assert.deepEqual(lens, [1, 0, 1, 0]);
  });
}

test('where loads pass each other, a packed ring goes the general way, which fences', (t) => {
  const arch = Object.getOwnPropertyDescriptor(process, 'arch')!;
  Object.defineProperty(process, 'arch', { ...arch, value: 'arm64' });
  t.after(() => Object.defineProperty(process, 'arch', arch));
  const directOf = (features: number[]): number[] => {
    const made = new PortFixture({ features });
    open.push(made);
    return made.rings.map(({ vring }) => vring.direct);
  };
  assert.deepEqual(directOf([VIRTIO_F_RING_PACKED]), [0, 0, 0]);
  assert.deepEqual(directOf([]), [1, 1, 1], 'avail.idx is read in order');
});
