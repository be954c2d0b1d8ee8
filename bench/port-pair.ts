/**
 * Two ports of a switch whose guests send to each other, on one thread, without sessions and
 * clients: what benches of single paths measure. Several pairs take turns of some milliseconds
 * within one process, and only figures of the same round are compared.
 */
import { assert } from '../src/base/assert.ts';
import {
  type FixtureOptions,
  type FixtureRing,
  PortFixture,
} from '../src/devices/net/port-fixture.ts';
import { PrivateMemory } from '../src/memory/index.ts';
import { MacTable, SWITCH_SCRATCH_BYTES, Switch } from '../src/switch/index.ts';
import { arena } from '../src/sys/index.ts';
import { setAddressMap } from '../src/virtqueue/device-queue.ts';
import { addChains, enableCalls, publish, reapUsed } from '../src/virtqueue/driver/index.ts';

export const HEADER = 12;
const BATCH = 64;
const BUFFERS = 256;
/** Turns of each pair are that long; frames are counted in whole batches. */
const TURN_MS = 4;
const WARM_TURNS = 40;

export type PairOptions = FixtureOptions & {
  readonly name: string;
  /** Bytes of what is sent in a first descriptor, the virtio-net header among them; 0: all. */
  readonly cut?: number;
  /** Indirect tables instead of lists; of one entry, where the frame is not cut. */
  readonly tables?: boolean;
  /** Memory of the guest is in that many regions, and each buffer in another one than the last. */
  readonly regions?: number;
  /** Frames are sent with checksums left to the receiver, as TCP of Linux does. */
  readonly needsCsum?: boolean;
};

export class PortPair {
  readonly name: string;
  readonly #options: PairOptions;
  readonly #fixtures: PortFixture[];
  readonly #switch: Switch;
  readonly #frameBytes: number;

  constructor(options: PairOptions, frameBytes: number) {
    const { name, tables = false, iommuPageBytes = 0, regions = 1 } = options;
    this.name = name;
    this.#options = options;
    this.#frameBytes = frameBytes;
    const extra = tables ? { tableEntries: 2 } : {};
    this.#fixtures = [0, 1].map(() => new PortFixture({ ...options, ...extra }));
    const scratch = PrivateMemory.allocate(SWITCH_SCRATCH_BYTES);
    const { view, bytes } = arena();
    const macTable = MacTable.create();
    this.#switch = new Switch({ view, bytes, scratchAt: scratch.offset, macTable });
    for (const [i, fixture] of this.#fixtures.entries()) {
      if (iommuPageBytes > 0) fixture.translateAll();
      if (regions > 1) cutMemory(fixture, regions);
      const vlan = { mode: 'access', vid: 1 } as const;
      this.#switch.addPort(i, fixture.port, { vlan, macLimit: 1024, reflect: false });
      for (let n = 0; n < BUFFERS; n++) fixture.write(fixture.buffer(BUFFERS + n), this.#frame(i));
    }
  }

  #frame(from: number): Uint8Array {
    const frame = new Uint8Array(HEADER + this.#frameBytes);
    // Flags NEEDS_CSUM, csum_start behind Ethernet and IPv4, csum_offset of TCP.
    if (this.#options.needsCsum === true) frame.set([1, 0, 0, 0, 0, 0, 34, 0, 16, 0]);
    frame.set([2, 0, 0, 0, 0, 1 - from, 2, 0, 0, 0, 0, from, 8, 0], HEADER);
    return frame;
  }

  /** Nanoseconds per frame in one turn. */
  turn(): number {
    const end = performance.now() + TURN_MS;
    for (const { log } of this.#fixtures) {
      if (log !== null) arena().bytes.fill(0, log.offset, log.offset + log.sizeBytes);
    }
    let frames = 0;
    let spent = 0;
    do {
      for (const fixture of this.#fixtures) {
        this.#refill(fixture, fixture.rings[0]!, true);
        this.#refill(fixture, fixture.rings[1]!, false);
      }
      const from = performance.now();
      for (let i = 0; i < 2; i++) frames += this.#switch.forward(i);
      this.#switch.flush();
      spent += performance.now() - from;
    } while (performance.now() < end);
    assert(frames > 0, 'frames were forwarded');
    return (spent * 1e6) / frames;
  }

  #refill(fixture: PortFixture, ring: FixtureRing, receive: boolean): void {
    const { batch, used, queue } = ring;
    const perFrame = receive ? Math.ceil((HEADER + this.#frameBytes) / fixture.bufferBytes) : 1;
    // Every frame arrives, or the figures are of something else.
    const whole = 2 * BATCH * perFrame;
    let count = queue.outstanding === 0 ? (receive ? whole : BATCH) : 0;
    for (;;) {
      const reaped = reapUsed(queue, used, BATCH);
      assert(reaped >= 0, 'the ring is sound');
      count += reaped;
      if (reaped < BATCH) break;
    }
    assert(receive || count === BATCH, 'all that was sent is taken');
    if (queue.eventIdx !== 0) enableCalls(queue); // Linux' NAPI, when it has seen all
    for (let done = 0; done < count; done += BATCH) {
      batch.clear();
      for (let i = 0; i < Math.min(BATCH, count - done); i++) {
        // An odd factor: neighbours of the ring are in different regions.
        const n = ((done + i) * 129) % BUFFERS;
        this.#addRow(fixture, ring, (receive ? 0 : BUFFERS) + n, receive);
      }
      const added = addChains(queue, batch, 0, batch.count);
      assert(added === batch.count, 'the ring has room');
      if (!receive && this.#options.tables === true && this.#cut === 0) shorten(ring);
      publish(queue);
    }
  }

  get #cut(): number {
    return this.#options.cut ?? 0;
  }

  #addRow(fixture: PortFixture, ring: FixtureRing, slot: number, receive: boolean): void {
    const { batch } = ring;
    const { tables = false } = this.#options;
    const row = batch.count++;
    const at = fixture.iova(fixture.buffer(slot));
    const len = receive ? fixture.bufferBytes : HEADER + this.#frameBytes;
    const cut = receive ? 0 : this.#cut;
    const segs = !receive && (cut > 0 || tables) ? 2 : 1;
    batch.segFirst[row] = batch.segments;
    batch.readSegs[row] = receive ? 0 : segs;
    batch.writeSegs[row] = receive ? segs : 0;
    batch.indirect[row] = tables ? 1 : 0;
    batch.segGpa[batch.segments] = at;
    batch.segLen[batch.segments++] = cut > 0 ? cut : len;
    if (segs === 1) return;
    batch.segGpa[batch.segments] = at + cut;
    batch.segLen[batch.segments++] = len - cut;
  }

  close(): void {
    for (const fixture of this.#fixtures) {
      assert(fixture.misses.length === 0 && fixture.events.length === 0);
      fixture.close();
    }
  }
}

/** Ends each table of the batch behind its first entry; before it is published. */
function shorten({ queue, batch }: FixtureRing): void {
  const { desc, arena: view, size, packed, tableBase, tableEntries } = queue;
  for (let i = 0; i < batch.count; i++) {
    const id = batch.id[i]!;
    const slot = packed === 0 ? id : (queue.nextAvail - batch.count + i + size) % size;
    desc[4 * slot + 2] = 16;
    view.setInt32(tableBase[0]! + 16 * tableEntries * id + 12, 0);
  }
}

/** Regions of equal size through the buffers that are sent, and through those that are received. */
function cutMemory(fixture: PortFixture, regions: number): void {
  const start = [fixture.map.start[0]!];
  for (let n = 1; n < regions; n++) start.push(fixture.buffer((n * 2 * BUFFERS) / regions));
  const end = [...start.slice(1), fixture.map.end[0]!];
  for (const { vring } of fixture.rings) {
    setAddressMap(vring.queue, {
      count: regions,
      start: new Float64Array(start),
      end: new Float64Array(end),
      delta: new Float64Array(regions),
    });
  }
}

/** Turns of each pair, round by round; [pair][round]. Closes the pairs. */
export function takeTurns(pairs: readonly PortPair[], rounds: number): number[][] {
  for (let warm = 0; warm < WARM_TURNS; warm++) for (const pair of pairs) pair.turn();
  const turns = pairs.map((): number[] => []);
  for (let round = 0; round < rounds; round++) {
    const order = pairs.map((_, i) => (i + round) % pairs.length);
    for (const i of order) turns[i]!.push(pairs[i]!.turn());
  }
  for (const pair of pairs) pair.close();
  return turns;
}
