/**
 * What it costs a frame that its ports log dirty pages, or translate by an IOTLB: the switch's
 * rounds between two ports, on one thread, without sessions and clients. Variants take turns of
 * some milliseconds within one process, and only ratios of the same round are compared.
 *
 *   npm run bench:dirty-log                a log of buffers and used rings, cleared all the time
 *   npm run bench:iotlb                    one entry for all, and entries of single pages
 *   node bench/tracking.ts all --rounds 400
 */
import { readOptions, wholeNumber, wrongUsage } from '../scripts/options.ts';
import { assert } from '../src/base/assert.ts';
import { type FixtureRing, PortFixture } from '../src/devices/net/port-fixture.ts';
import { PrivateMemory } from '../src/memory/index.ts';
import { MacTable, SWITCH_SCRATCH_BYTES, Switch } from '../src/switch/index.ts';
import { arena } from '../src/sys/index.ts';
import { addChains, publish, reapUsed } from '../src/virtqueue/driver/index.ts';
import { VIRTIO_NET_F_MRG_RXBUF } from '../src/wire/virtio-net.ts';
import { VIRTIO_F_RING_PACKED } from '../src/wire/virtio.ts';

const USAGE = `npm run bench:dirty-log -- [options], npm run bench:iotlb -- [options]
  --rounds N   rounds, in which each variant has a turn (300)`;

const { values, positionals } = readOptions(USAGE, {
  options: { rounds: { type: 'string', default: '300' } },
  allowPositionals: true,
});

const BATCH = 64;
const HEADER = 12;
const BUFFERS = 256;
/** Turns of each variant are that long; frames are counted in whole batches. */
const TURN_MS = 4;

type Variant = {
  readonly name: string;
  readonly bench: 'plain' | 'dirty-log' | 'iotlb';
  readonly log?: boolean;
  readonly iommuPageBytes?: number;
};

const VARIANTS: readonly Variant[] = [
  { name: 'plain', bench: 'plain' },
  { name: 'dirty log', bench: 'dirty-log', log: true },
  { name: 'IOTLB, large entry', bench: 'iotlb', iommuPageBytes: 2 ** 30 },
  { name: 'IOTLB, 2 MiB pages', bench: 'iotlb', iommuPageBytes: 2 ** 21 },
  { name: 'IOTLB, 4 KiB pages', bench: 'iotlb', iommuPageBytes: 4096 },
];

/** Two ports whose guests send to each other. */
class World {
  readonly name: string;
  readonly #fixtures: PortFixture[];
  readonly #switch: Switch;
  readonly #frameBytes: number;

  constructor(variant: Variant, packed: boolean, frameBytes: number) {
    const features = [VIRTIO_NET_F_MRG_RXBUF, ...(packed ? [VIRTIO_F_RING_PACKED] : [])];
    const { log = false, iommuPageBytes = 0 } = variant;
    this.name = variant.name;
    this.#frameBytes = frameBytes;
    this.#fixtures = [0, 1].map(() => new PortFixture({ features, log, iommuPageBytes }));
    const scratch = PrivateMemory.allocate(SWITCH_SCRATCH_BYTES);
    const { view, bytes } = arena();
    const macTable = MacTable.create();
    this.#switch = new Switch({ view, bytes, scratchAt: scratch.offset, macTable });
    for (const [i, fixture] of this.#fixtures.entries()) {
      if (iommuPageBytes > 0) fixture.translateAll();
      const vlan = { mode: 'access', vid: 1 } as const;
      this.#switch.addPort(i, fixture.port, { vlan, macLimit: 1024, reflect: false });
      for (let n = 0; n < BUFFERS; n++) {
        const frame = new Uint8Array(HEADER + frameBytes);
        frame.set([2, 0, 0, 0, 0, 1 - i, 2, 0, 0, 0, 0, i, 8, 0], HEADER);
        fixture.write(fixture.buffer(BUFFERS + n), frame);
      }
    }
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
        refill(fixture, fixture.rings[0]!, true, 0);
        refill(fixture, fixture.rings[1]!, false, this.#frameBytes);
      }
      const from = performance.now();
      for (let i = 0; i < 2; i++) frames += this.#switch.forward(i);
      this.#switch.flush();
      spent += performance.now() - from;
    } while (performance.now() < end);
    assert(frames > 0 && this.#fixtures.every(({ misses }) => misses.length === 0));
    return (spent * 1e6) / frames;
  }

  close(): void {
    for (const fixture of this.#fixtures) fixture.close();
  }
}

function refill(fixture: PortFixture, ring: FixtureRing, receive: boolean, len: number): void {
  const { batch, used, queue } = ring;
  const reaped = reapUsed(queue, used, BATCH);
  assert(reaped >= 0);
  const count = queue.outstanding === 0 ? (receive ? 2 * BATCH : BATCH) : reaped;
  for (let done = 0; done < count; done += BATCH) {
    batch.clear();
    for (let i = 0; i < Math.min(BATCH, count - done); i++) {
      const buffer = fixture.buffer((receive ? 0 : BUFFERS) + ((done + i) % BUFFERS));
      batch.segFirst[i] = i;
      batch.readSegs[i] = receive ? 0 : 1;
      batch.writeSegs[i] = receive ? 1 : 0;
      batch.segGpa[i] = fixture.iova(buffer);
      batch.segLen[i] = receive ? fixture.bufferBytes : HEADER + len;
      batch.count++;
      batch.segments++;
    }
    addChains(queue, batch, 0, batch.count);
    publish(queue);
  }
}

function median(numbers: readonly number[]): number {
  const sorted = [...numbers].sort((a, b) => a - b);
  return sorted[Math.trunc(sorted.length / 2)]!;
}

function compare(variants: readonly Variant[], packed: boolean, frameBytes: number): void {
  const worlds = variants.map((variant) => new World(variant, packed, frameBytes));
  for (let warm = 0; warm < 40; warm++) for (const world of worlds) world.turn();
  const turns = worlds.map((): number[] => []);
  const rounds = wholeNumber(USAGE, '--rounds', values.rounds, 1);
  for (let round = 0; round < rounds; round++) {
    const order = worlds.map((_, i) => (i + round) % worlds.length);
    for (const i of order) turns[i]!.push(worlds[i]!.turn());
  }
  for (const world of worlds) world.close();
  const what = `${packed ? 'packed' : 'split'} ${frameBytes}`;
  for (const [i, world] of worlds.entries()) {
    const ratio = median(turns[i]!.map((ns, round) => turns[0]![round]! / ns));
    const cells = [median(turns[i]!).toFixed(1).padStart(7), ratio.toFixed(3)];
    console.log(`${what.padEnd(12)} ${world.name.padEnd(20)} ${cells.join(' ns  rate ')}`);
  }
}

const wanted = positionals[0] ?? 'all';
if (!['all', 'dirty-log', 'iotlb'].includes(wanted)) {
  wrongUsage(USAGE, `"${wanted}" is not one of dirty-log, iotlb, all`);
}
const chosen = VARIANTS.filter(
  ({ bench }) => ['plain', wanted].includes(bench) || wanted === 'all',
);
for (const packed of [false, true]) {
  for (const frameBytes of [64, 1500]) compare(chosen, packed, frameBytes);
}
