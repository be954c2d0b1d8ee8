import assert from 'node:assert/strict';
import { test } from 'node:test';
import { VringError } from '../base/errors.ts';
import { VIRTIO_BLK_F_RO, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_T_OUT } from '../wire/virtio-blk.ts';
import { featureSet } from '../wire/virtio.ts';
import { TOY_FEATURES, startToyGuest } from './blk-testing.ts';
import { runBlkWorkload, type BlkReport } from './blk-workload.ts';

const MIX = {
  verify: true,
  readPercent: 40,
  discardPercent: 10,
  zeroPercent: 10,
  flushEvery: 20,
  minBytes: 4096,
  maxBytes: 16384,
  depth: 8,
  seed: 7,
} as const;

function nothingWrong(report: BlkReport): void {
  assert.deepEqual(report.verify?.examples, []);
  assert.equal(report.errors, 0);
  assert.equal(report.wrongLengths, 0);
}

for (const packed of [false, true]) {
  for (const random of [false, true]) {
    const name = `${packed ? 'packed' : 'split'}, ${random ? 'random' : 'sequential'}`;
    test(`a mix over two queues is counted and right: ${name}`, async () => {
      const options = { packed, queues: 2, ringSize: 32, requestBytes: 16384 };
      const toy = await startToyGuest({ queues: 2, holds: 5 }, options);
      const { guest } = toy;
      const report = await runBlkWorkload({ ...MIX, guest, random, requests: 1500, fill: true });
      nothingWrong(report);
      const kinds = Object.entries(report.ops);
      assert.deepEqual(kinds.map(([kind]) => kind).sort(), [
        'discard',
        'flush',
        'read',
        'write',
        'zero',
      ]);
      const counts = kinds.map(([, op]) => op.requests);
      assert.equal(
        counts.reduce((a, b) => a + b),
        1500,
      );
      const { read, write } = report.ops;
      assert.ok(read!.requests > 450 && read!.requests < 750, `${read!.requests} reads`);
      assert.ok(write!.bytes >= write!.requests * 4096);
      assert.ok(read!.latency!.p50Us <= read!.latency!.p99Us);
      assert.ok(read!.latency!.p999Us <= read!.latency!.maxUs);
      assert.ok(report.verify!.checked > 256, 'the last pass judges most of the disk');
      assert.equal(guest.outstanding, 0);
      await toy.close();
    });
  }
}

test('the same seed is the same work', async () => {
  const images: Buffer[] = [];
  for (let i = 0; i < 2; i++) {
    const toy = await startToyGuest();
    await runBlkWorkload({ guest: toy.guest, depth: 1, requests: 300, seed: 99, verify: true });
    images.push(Buffer.from(toy.disk.bytes));
    await toy.close();
  }
  assert.equal(Buffer.compare(images[0]!, images[1]!), 0);
  assert.ok(images[0]!.some((byte) => byte !== 0));
});

test('only the region that was asked for is written', async () => {
  const toy = await startToyGuest();
  const region = { offset: 65536, sizeBytes: 131072 };
  const work = { ...MIX, ...region, random: false, readPercent: 0, requests: 300 };
  nothingWrong(await runBlkWorkload({ ...work, guest: toy.guest }));
  const { bytes } = toy.disk;
  assert.ok(bytes.subarray(0, 65536).every((byte) => byte === 0));
  assert.ok(bytes.subarray(65536 + 131072).every((byte) => byte === 0));
  await toy.close();
});

/** Runs writes only, then breaks the disk, and returns what a pass over it finds. */
async function damaged(harm: (bytes: Uint8Array) => void) {
  let writes = 0;
  const toy = await startToyGuest({
    sizeBytes: 65536,
    onRequest: ({ type }) => {
      // The fill is 4 requests; the harm is done before the pass that reads everything.
      if (type === VIRTIO_BLK_T_OUT) writes++;
      else if (writes > 0) {
        writes = -1e9;
        harm(toy.disk.bytes);
      }
      return null;
    },
  });
  const { guest } = toy;
  const work = { readPercent: 0, requests: 40, verify: true, fill: true, depth: 4, seed: 5 };
  const { verify } = await runBlkWorkload({ ...work, guest });
  await toy.close();
  return verify!;
}

test('a lost, a torn, a misplaced and a corrupt block are found, and told apart', async () => {
  let old: Uint8Array | null = null;
  const found = await damaged((bytes) => {
    old = bytes.slice(0, 4096);
    bytes.copyWithin(4096, 8192, 12288); // misplaced: block 2 at 1
    bytes.fill(0, 12288, 16384); //         lost: block 3 reads as zeroes
    bytes.copyWithin(16384 + 512, 512, 1024); // torn: sector 1 of block 4 is another write's
    bytes[24576 + 2000]! ^= 1; //           corrupt: a bit of block 6
    bytes.fill(0x55, 28672, 32768); //      corrupt: block 7
  });
  assert.ok(old !== null);
  assert.deepEqual(found.wrong, { lost: 1, stray: 0, torn: 1, misplaced: 1, corrupt: 2 });
  const at = Object.fromEntries(found.examples.map(({ kind, offset }) => [offset, kind]));
  assert.deepEqual(at, {
    4096: 'misplaced',
    12288: 'lost',
    16384: 'torn',
    24576: 'corrupt',
    28672: 'corrupt',
  });
  const torn = found.examples.find(({ kind }) => kind === 'torn')!;
  assert.equal(torn.wrongAt, 512);
  assert.match(torn.found, /^write \d+ up to byte 512, and something else/);
});

test('a disk that forgets what it acknowledged is found out', async () => {
  const toy = await startToyGuest({ sizeBytes: 65536 });
  const { guest } = toy;
  setTimeout(() => (toy.disk.forgets = true), 30);
  const work = { readPercent: 30, seconds: 0.2, verify: true, fill: true, depth: 4 };
  const { verify } = await runBlkWorkload({ ...work, guest });
  assert.ok(verify!.wrong.lost > 0);
  assert.equal(verify!.wrong.corrupt + verify!.wrong.torn + verify!.wrong.misplaced, 0);
  assert.match(verify!.examples[0]!.found, /^write \d+$/);
  await toy.close();
});

test('errors are counted, and what they leave is not judged', async () => {
  let seen = 0;
  const onRequest = ({ type }: { type: number }): number | null =>
    type === VIRTIO_BLK_T_OUT && seen++ % 3 === 2 ? VIRTIO_BLK_S_IOERR : null;
  const toy = await startToyGuest({ onRequest });
  const work = { readPercent: 0, requests: 300, verify: true };
  const report = await runBlkWorkload({ ...work, guest: toy.guest });
  assert.deepEqual(report.ops.write!.errors, { ioerr: 100, unsupported: 0, other: 0 });
  assert.deepEqual(report.verify!.examples, []);
  assert.ok(report.verify!.unjudged > 0);
  await toy.close();
});

for (const packed of [false, true]) {
  for (const inflight of [false, true]) {
    const name = `${packed ? 'packed' : 'split'}, ${inflight ? 'inflight region' : 'none'}`;
    test(`nothing is lost when the disk is killed again and again: ${name}`, async () => {
      const options = { packed, queues: 2, ringSize: 32, requestBytes: 16384 };
      const toy = await startToyGuest({ queues: 2, holds: 6, inflight }, options, true);
      const { guest } = toy;
      const stop = new AbortController();
      const timer = setInterval(() => {
        if (guest.reconnects >= 8) stop.abort();
        else if (!guest.searching) toy.kill();
      }, 25);
      const report = await runBlkWorkload({ ...MIX, guest, signal: stop.signal });
      clearInterval(timer);
      nothingWrong(report);
      assert.equal(report.reconnects, 8);
      if (inflight) assert.equal(report.repeated, 0);
      else assert.ok(report.repeated > 0, 'requests were given to another disk again');
      await toy.close();
    });
  }
}

test('limits: requests, bytes, rate, time, a signal', async () => {
  const toy = await startToyGuest();
  const { guest } = toy;
  const total = ({ ops }: BlkReport): number =>
    Object.values(ops).reduce((sum, { requests }) => sum + requests, 0);
  assert.equal(total(await runBlkWorkload({ guest, requests: 33 })), 33);
  assert.equal(total(await runBlkWorkload({ guest, bytes: 40960 })), 10);
  const paced = await runBlkWorkload({ guest, seconds: 0.4, rate: 200, depth: 1 });
  assert.ok(total(paced) >= 40 && total(paced) <= 81, `${total(paced)} requests`);
  const stop = new AbortController();
  setTimeout(() => stop.abort(), 50);
  const ended = await runBlkWorkload({ guest, signal: stop.signal, poll: true });
  assert.ok(ended.seconds < 5);
  await toy.close();
});

test('a disk that does not answer is no hang', async () => {
  const toy = await startToyGuest({ holds: Infinity });
  const stalled = runBlkWorkload({ guest: toy.guest, requests: 1, stallSeconds: 0.2 });
  await assert.rejects(stalled, (error: VringError) => error.code === 'ERR_VRING_GUEST_STALLED');
  await toy.close();
});

test('sizes that do not fit are refused with what is expected', async () => {
  const toy = await startToyGuest({ config: { blkSize: 4096 } });
  const { guest } = toy;
  const cases: [object, RegExp][] = [
    [{ minBytes: 512 }, /--block-size: 512 is no multiple of the disk's blocks of 4096 bytes/],
    [{ minBytes: 8192, maxBytes: 12288 }, /--block-size: 12288 is no multiple/],
    [{ minBytes: 1 << 20 }, /--block-size: 1048576 is more than a request holds, 65536/],
    [{ offset: 100 }, /--offset: 100 is not a multiple of 4096/],
    [{ offset: 1 << 20 }, /--offset: 1048576 is not/],
    [{ sizeBytes: 2 << 20 }, /--size: 2097152 is more than the disk has/],
    [{ sizeBytes: 4095 }, /--size: 4095 is less than one request/],
    [{ readPercent: 90, zeroPercent: 20 }, /--reads: .* more than 100 %/],
  ];
  for (const [options, message] of cases) {
    await assert.rejects(runBlkWorkload({ guest, requests: 1, ...options }), message);
  }
  await toy.close();
  const readOnly = await startToyGuest({ features: TOY_FEATURES | featureSet(VIRTIO_BLK_F_RO) });
  const write = runBlkWorkload({ guest: readOnly.guest, requests: 1 });
  await assert.rejects(write, /the disk is read-only, and only 100 fits it/);
  await runBlkWorkload({ guest: readOnly.guest, requests: 10, readPercent: 100 });
  await readOnly.close();
});
