/**
 * A disk's data path without sessions, threads and clients: the driver adds a batch of requests,
 * and only the plane's round is timed. `node bench/disk-plane.ts`
 */
import { createMemoryImage, createNullImage } from '../src/storage/index.ts';
import { addChains, publish, reapUsed } from '../src/virtqueue/driver/index.ts';
import { type Case, fifthPercentile, runCases } from './cases.ts';
import { DiskFixture } from '../src/devices/blk/disk-fixture.ts';

const DISK_BYTES = 16 << 20;
const DATA_BYTES = 4096;
const DEPTH = 16;

/** ns per request, of rounds of 8 batches. */
function measure(
  kind: 'null' | 'memory',
  packed: boolean,
  write: boolean,
  seconds: number,
): number {
  const image = kind === 'null' ? createNullImage(DISK_BYTES) : createMemoryImage(DISK_BYTES);
  const fixture = new DiskFixture({ image, packed, ringSize: 256 });
  const queue = fixture.queues[0]!;
  const { batch, used, pair } = queue;
  batch.clear();
  for (let i = 0; i < DEPTH; i++) {
    const header = queue.header(write ? 1 : 0, BigInt(i * 8));
    const data = { gpa: queue.alloc(DATA_BYTES), len: DATA_BYTES };
    const status = queue.status();
    if (write) batch.addChain([header, data], [status], true);
    else batch.addChain([header], [data, status], true);
  }
  const samples: number[] = [];
  const end = performance.now() + seconds * 1000;
  while (performance.now() < end) {
    let spent = 0;
    for (let i = 0; i < 8; i++) {
      addChains(pair.driver, batch, 0, DEPTH);
      publish(pair.driver);
      const from = performance.now();
      fixture.plane.poll(from);
      spent += performance.now() - from;
      reapUsed(pair.driver, used, used.capacity);
    }
    samples.push((spent * 1e6) / (8 * DEPTH));
  }
  fixture.close();
  return fifthPercentile(samples);
}

const cases: Case[] = [];
for (const kind of ['null', 'memory'] as const) {
  for (const format of ['split', 'packed']) {
    for (const op of ['read', 'write']) {
      const [packed, write] = [format === 'packed', op === 'write'];
      const name = `${kind} ${format} ${op}`;
      cases.push({ name, measure: (seconds) => measure(kind, packed, write, seconds) });
    }
  }
}
runCases(import.meta.filename, cases);
