/**
 * The data path of the switch without sessions, threads and clients: drivers of two ports fill
 * transmit queues, and only the switch's rounds are timed. `node bench/net-port.ts`
 */
import { assert } from '../src/base/assert.ts';
import { PrivateMemory } from '../src/memory/index.ts';
import { MacTable, SWITCH_SCRATCH_BYTES, Switch } from '../src/switch/index.ts';
import { arena } from '../src/sys/arena.ts';
import { addChains, publish, reapUsed } from '../src/virtqueue/driver/index.ts';
import { VIRTIO_NET_F_MRG_RXBUF } from '../src/wire/virtio-net.ts';
import { VIRTIO_F_RING_PACKED } from '../src/wire/virtio.ts';
import { type Case, fifthPercentile, runCases } from './cases.ts';
import { type FixtureRing, PortFixture } from '../src/devices/net/port-fixture.ts';

const BATCH = 64;
const HEADER = 12;

function refill(fixture: PortFixture, ring: FixtureRing, receive: boolean, len: number): void {
  const { batch, used, queue } = ring;
  const reaped = reapUsed(queue, used, BATCH);
  assert(reaped >= 0);
  const count = queue.outstanding === 0 ? (receive ? 128 : BATCH) : reaped;
  for (let done = 0; done < count; done += BATCH) {
    batch.clear();
    for (let i = 0; i < Math.min(BATCH, count - done); i++) {
      batch.segFirst[i] = i;
      batch.readSegs[i] = receive ? 0 : 1;
      batch.writeSegs[i] = receive ? 1 : 0;
      batch.segGpa[i] = fixture.buffer((receive ? 0 : 256) + ((done + i) & 255));
      batch.segLen[i] = receive ? fixture.bufferBytes : HEADER + len;
      batch.count++;
      batch.segments++;
    }
    addChains(queue, batch, 0, batch.count);
    publish(queue);
  }
}

function measure(packed: boolean, frameBytes: number, ports: 1 | 2, seconds: number): number {
  const features = [VIRTIO_NET_F_MRG_RXBUF, ...(packed ? [VIRTIO_F_RING_PACKED] : [])];
  const fixtures = Array.from({ length: ports }, () => new PortFixture({ features }));
  const scratch = PrivateMemory.allocate(SWITCH_SCRATCH_BYTES);
  const { view, bytes } = arena();
  const sw = new Switch({ view, bytes, scratchAt: scratch.offset, macTable: MacTable.create() });
  for (const [i, fixture] of fixtures.entries()) {
    const reflect = ports === 1;
    sw.addPort(i, fixture.port, { vlan: { mode: 'access', vid: 1 }, macLimit: 1024, reflect });
    for (let n = 0; n < 256; n++) {
      const frame = new Uint8Array(HEADER + frameBytes);
      frame.set([2, 0, 0, 0, 0, 1 - i, 2, 0, 0, 0, 0, i, 8, 0], HEADER);
      fixture.write(fixture.buffer(256 + n), frame);
    }
  }
  const samples: number[] = [];
  const end = performance.now() + seconds * 1000;
  let frames = 0;
  let spent = 0;
  while (performance.now() < end) {
    for (const fixture of fixtures) {
      refill(fixture, fixture.rings[0], true, 0);
      refill(fixture, fixture.rings[1], false, frameBytes);
    }
    const from = performance.now();
    for (let i = 0; i < ports; i++) frames += sw.forward(i);
    sw.flush();
    spent += performance.now() - from;
    if (frames > 10_000) {
      samples.push((spent * 1e6) / frames);
      frames = spent = 0;
    }
  }
  for (const fixture of fixtures) fixture.close();
  scratch.close();
  return fifthPercentile(samples);
}

const cases: Case[] = [];
for (const ports of [1, 2] as const) {
  for (const format of ['split', 'packed']) {
    for (const size of [64, 1500]) {
      const name = `${ports === 1 ? '1 port' : '2 ports'} ${format} ${size} bytes`;
      const packed = format === 'packed';
      cases.push({ name, measure: (seconds) => measure(packed, size, ports, seconds) });
    }
  }
}
runCases(import.meta.filename, cases);
