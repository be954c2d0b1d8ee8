/** Requests of a driver of our own, over both ring formats, against a disk in memory. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PrivateMemory, reserveRange } from '../../memory/index.ts';
import { createMemoryImage, type DiskImage } from '../../storage/index.ts';
import { arena, createMemfd, mapRegionAt, releaseRegion, truncate } from '../../sys/index.ts';
import { faultName } from '../../virtqueue/faults.ts';
import * as blk from '../../wire/virtio-blk.ts';
import { featureSet, VIRTIO_F_VERSION_1 } from '../../wire/virtio.ts';
import type { Piece } from '../disk/fixture-queue.ts';
import { DiskFixture, UNTOUCHED } from './disk-fixture.ts';

const SECTORS = 2048;
const NOTHING = new Uint8Array(0);
const { VIRTIO_BLK_S_OK: OK, VIRTIO_BLK_S_IOERR: IOERR, VIRTIO_BLK_S_UNSUPP: UNSUPP } = blk;

const disk = (): DiskImage => createMemoryImage(SECTORS * 512);
const filled = (value: number, size: number): Uint8Array => new Uint8Array(size).fill(value);

/** Ranges of DISCARD and WRITE_ZEROES: [sector, sectors, flags] each. */
function ranges(...list: readonly (readonly [bigint, number, number])[]): Uint8Array {
  const view = new DataView(new ArrayBuffer(16 * list.length));
  for (const [i, [sector, numSectors, flags]] of list.entries()) {
    blk.BlkRange.write(view, 16 * i, { sector, numSectors, flags });
  }
  return new Uint8Array(view.buffer);
}

for (const packed of [false, true]) {
  const ring = packed ? 'packed' : 'split';

  test(`${ring}: every kind of request`, () => {
    const f = new DiskFixture({ image: disk(), packed });
    const written = f.request(blk.VIRTIO_BLK_T_OUT, 5n, filled(7, 1024), 0);
    assert.deepEqual([written.status, written.len], [OK, 1]);
    const read = f.request(blk.VIRTIO_BLK_T_IN, 5n, NOTHING, 1024);
    assert.deepEqual([read.status, read.len], [OK, 1025]);
    assert.deepEqual(read.data, filled(7, 1024));
    assert.equal(f.request(blk.VIRTIO_BLK_T_FLUSH, 0n, NOTHING, 0).status, OK);

    const id = f.request(blk.VIRTIO_BLK_T_GET_ID, 0n, NOTHING, 20);
    assert.equal(id.status, OK);
    assert.equal(Buffer.from(id.data).toString(), 'serial-0123'.padEnd(20, '\0'));
    const short = f.request(blk.VIRTIO_BLK_T_GET_ID, 0n, NOTHING, 6);
    assert.equal(Buffer.from(short.data).toString(), 'serial');

    const zeroes = ranges([5n, 1, blk.VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP], [9n, 1, 0]);
    assert.equal(f.request(blk.VIRTIO_BLK_T_WRITE_ZEROES, 0n, zeroes, 0).status, OK);
    const left = f.request(blk.VIRTIO_BLK_T_IN, 5n, NOTHING, 1024).data;
    assert.deepEqual(left, new Uint8Array(Buffer.concat([filled(0, 512), filled(7, 512)])));
    const discard = ranges([6n, 1, 0]);
    assert.equal(f.request(blk.VIRTIO_BLK_T_DISCARD, 0n, discard, 0).status, OK);
    const { counters } = f.status().vrings[0]!;
    const { reads, writes, flushes, discards, writeZeroes, others, readBytes } = counters;
    assert.deepEqual([reads, writes, flushes, discards, writeZeroes, others], [2, 1, 1, 1, 1, 2]);
    assert.equal(readBytes, 2048);
    f.close();
  });

  test(`${ring}: wrong requests get their status and change nothing`, () => {
    const f = new DiskFixture({ image: disk(), packed });
    f.request(blk.VIRTIO_BLK_T_OUT, 0n, filled(1, 512), 0);
    const last = BigInt(SECTORS - 1);
    const zeroes = blk.VIRTIO_BLK_T_WRITE_ZEROES;
    const discard = blk.VIRTIO_BLK_T_DISCARD;
    const seventeen = ranges(...Array.from({ length: 17 }, () => [0n, 1, 0] as const));
    const cases: [string, number, bigint, Uint8Array, number, number][] = [
      ['ends behind the disk', 0, last, NOTHING, 1024, IOERR],
      ['begins behind the disk', 0, last + 1n, NOTHING, 512, IOERR],
      ['position overflows in bytes', 0, 1n << 55n, NOTHING, 512, IOERR],
      ['position overflows in sectors', 1, (1n << 64n) - 1n, filled(9, 512), 0, IOERR],
      ['no whole sector to read', 0, 0n, NOTHING, 100, IOERR],
      ['no whole sector to write', 1, 0n, filled(9, 513), 0, IOERR],
      ['read with data to write', 0, 0n, filled(9, 512), 512, IOERR],
      ['write with room to read', 1, 0n, filled(9, 512), 512, IOERR],
      ['nothing to read', 0, 0n, NOTHING, 0, OK],
      ['nothing to write', 1, last + 1n, NOTHING, 0, OK],
      ['type that nobody knows', 0x7777, 0n, NOTHING, 512, UNSUPP],
      ['SCSI command', 2, 0n, NOTHING, 512, UNSUPP],
      ['barrier', 0x8000_0001, 0n, filled(9, 512), 0, UNSUPP],
      ['lifetime', blk.VIRTIO_BLK_T_GET_LIFETIME, 0n, NOTHING, 6, UNSUPP],
      ['secure erase', blk.VIRTIO_BLK_T_SECURE_ERASE, 0n, ranges([0n, 1, 0]), 0, UNSUPP],
      ['zone report', blk.VIRTIO_BLK_T_ZONE_REPORT, 0n, NOTHING, 512, UNSUPP],
      ['zeroes: no range', zeroes, 0n, NOTHING, 0, IOERR],
      ['zeroes: half a range', zeroes, 0n, filled(0, 24), 0, IOERR],
      ['zeroes: flag', zeroes, 0n, ranges([0n, 1, 2]), 0, UNSUPP],
      ['zeroes: behind the disk', zeroes, 0n, ranges([0n, 1, 0], [last, 2, 0]), 0, IOERR],
      ['zeroes: too many sectors', zeroes, 0n, ranges([0n, 0xffff_ffff, 0]), 0, IOERR],
      ['zeroes: 17 ranges', zeroes, 0n, seventeen, 0, IOERR],
      ['zeroes: no sectors', zeroes, 0n, ranges([0n, 0, 0]), 0, OK],
      ['discard: unmap flag', discard, 0n, ranges([0n, 1, 1]), 0, UNSUPP],
      ['discard: overflow', discard, 0n, ranges([(1n << 64n) - 1n, 2, 0]), 0, IOERR],
      ['discard: room to read', discard, 0n, ranges([0n, 1, 0]), 512, IOERR],
    ];
    for (const [what, type, sector, out, inBytes, status] of cases) {
      const answer = f.request(type, sector, out, inBytes);
      assert.equal(answer.status, status, what);
    }
    assert.deepEqual(f.request(0, 0n, NOTHING, 512).data, filled(1, 512));
    assert.deepEqual(f.events, []);
    f.close();
  });

  test(`${ring}: any framing`, () => {
    const f = new DiskFixture({ image: disk(), packed });
    const queue = f.queues[0]!;
    const block = Uint8Array.from({ length: 1024 }, (_, i) => i & 0xff);
    const header = queue.header(blk.VIRTIO_BLK_T_OUT, 3n);
    const bytes = queue.read(header.gpa, 16);
    const split = (all: Uint8Array, ...sizes: number[]): Piece[] => {
      let at = 0;
      return sizes.map((size) => queue.put(all.slice(at, (at += size))));
    };
    const all = Buffer.concat([bytes, block]);
    const framings = [
      [1040],
      [16, 1024],
      [1, 3, 12, 1024],
      [7, 8, 2, 1000, 23],
      [15, 1025],
      [...Array<number>(16).fill(1), 512, 512],
    ];
    for (const sizes of framings) {
      for (const indirect of [false, true]) {
        f.request(blk.VIRTIO_BLK_T_WRITE_ZEROES, 0n, ranges([3n, 2, 0]), 0);
        const status = queue.status();
        const id = queue.add(split(all, ...sizes), [status], indirect);
        f.poll();
        assert.equal(queue.reap().get(id), 1, String(sizes));
        assert.equal(queue.read(status.gpa, 1)[0], OK, String(sizes));
        const inHeader = queue.header(blk.VIRTIO_BLK_T_IN, 3n);
        // One buffer for data and status; and three, the last of which holds the end of both.
        const whole = { gpa: queue.alloc(1025), len: 1025 };
        queue.add([inHeader], [whole], indirect);
        const parts = [700, 300, 25].map((len) => ({ gpa: queue.alloc(len), len }));
        queue.add([inHeader], parts, indirect);
        f.poll();
        assert.deepEqual([...queue.reap().values()], [1025, 1025]);
        const expected = Buffer.concat([block, Uint8Array.of(OK)]);
        assert.deepEqual(Buffer.from(queue.read(whole.gpa, 1025)), expected);
        const read = Buffer.concat(parts.map(({ gpa, len }) => queue.read(gpa, len)));
        assert.deepEqual(read, expected);
      }
    }
    f.close();
  });

  test(`${ring}: chains that cannot be answered break their queue, and no other`, () => {
    const image = disk();
    const f = new DiskFixture({ image, packed, queues: 3 });
    const [first, second] = f.queues as [(typeof f.queues)[0], (typeof f.queues)[0]];
    const status = first.status();
    const good = first.header(blk.VIRTIO_BLK_T_FLUSH, 0n);
    const goodId = first.add([good], [status]);
    first.add([{ ...good, len: 15 }], [first.status()]); // no header
    const behind = first.status();
    first.add([good], [behind]);
    second.add([good], []); // no status
    f.poll();
    assert.deepEqual([...first.reap().keys()], [goodId], 'what came before it was answered');
    assert.equal(first.read(status.gpa, 1)[0], OK);
    assert.equal(first.read(behind.gpa, 1)[0], UNTOUCHED);
    const events = f.events.map((event) => [
      event.index,
      event.kind === 'fault' && faultName(event.code),
    ]);
    assert.deepEqual(events, [
      [1, 'CHAIN_SHORT'],
      [0, 'CHAIN_SHORT'],
    ]);
    assert.equal(f.request(blk.VIRTIO_BLK_T_IN, 0n, NOTHING, 512, 2).status, OK);
    assert.equal(f.status().vrings[0]!.busy, 0);
    f.close();
  });

  test(`${ring}: random requests leave what a byte array has, over several queues`, () => {
    const seed = Date.now() >>> 0;
    let state = seed;
    const next = (below: number): number => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return Math.floor((state / 2 ** 32) * below);
    };
    const f = new DiskFixture({ image: disk(), packed, queues: 3, ringSize: 128 });
    const model = new Uint8Array(SECTORS * 512);
    for (let round = 0; round < 100; round++) {
      // Requests of one round touch sectors of their own: their order is nobody's promise.
      const checks: (() => void)[] = [];
      for (let n = 0; n < 8; n++) {
        const queue = f.queues[next(3)]!;
        const span = SECTORS / 8;
        const sectors = next(16);
        const sector = n * span + next(span - sectors);
        const range = [sector * 512, (sector + sectors) * 512] as const;
        const text = `seed ${seed}, round ${round}: ${sectors} sectors at ${sector}`;
        const op = [0, 1, 1, blk.VIRTIO_BLK_T_WRITE_ZEROES][next(4)]!;
        const header = queue.header(op, op > 1 ? 0n : BigInt(sector));
        const status = queue.status();
        const indirect = next(2) === 0;
        const size = sectors * 512;
        if (op === 0) {
          const pieces: Piece[] = [];
          for (let left = size; left > 0;) {
            const len = pieces.length === 6 ? left : 1 + next(left);
            pieces.push({ gpa: queue.alloc(len), len });
            left -= len;
          }
          queue.add([header], [...pieces, status], indirect);
          const expected = model.slice(...range);
          checks.push(() => {
            const got = Buffer.concat(pieces.map(({ gpa, len }) => queue.read(gpa, len)));
            assert.deepEqual(new Uint8Array(got), expected, text);
          });
        } else if (op === 1) {
          const data = Uint8Array.from({ length: size }, () => next(256));
          queue.add([header, ...(size > 0 ? [queue.put(data)] : [])], [status], indirect);
          model.set(data, range[0]);
        } else {
          queue.add([header, queue.put(ranges([BigInt(sector), sectors, next(2)]))], [status]);
          model.fill(0, ...range);
        }
        checks.push(() => assert.equal(queue.read(status.gpa, 1)[0], OK, text));
      }
      f.poll();
      for (const check of checks) check();
      assert.equal(
        f.queues.reduce((sum, queue) => sum + queue.reap().size, 0),
        8,
      );
    }
    f.close();
  });
}

test('what was not negotiated is not supported', () => {
  const features = featureSet(VIRTIO_F_VERSION_1);
  const f = new DiskFixture({ image: disk(), features });
  const one = ranges([0n, 1, 0]);
  assert.equal(f.request(blk.VIRTIO_BLK_T_DISCARD, 0n, one, 0).status, UNSUPP);
  assert.equal(f.request(blk.VIRTIO_BLK_T_WRITE_ZEROES, 0n, one, 0).status, UNSUPP);
  f.close();
});

test('a read-only disk offers RO and refuses changes', () => {
  const f = new DiskFixture({ image: createMemoryImage(SECTORS * 512, true) });
  assert.equal((f.device.features >> BigInt(blk.VIRTIO_BLK_F_RO)) & 1n, 1n);
  assert.equal(f.request(blk.VIRTIO_BLK_T_OUT, 0n, filled(1, 512), 0).status, IOERR);
  assert.equal(f.request(blk.VIRTIO_BLK_T_IN, 0n, NOTHING, 512).status, OK);
  assert.equal(f.request(blk.VIRTIO_BLK_T_FLUSH, 0n, NOTHING, 0).status, OK);
  f.close();
});

test('a disk that shrinks and grows: requests are judged by its new size', () => {
  const f = new DiskFixture({ image: disk() });
  const resize = (sectors: number): void => {
    f.plane.command('resizeDisk', { device: 0, sizeBytes: sectors * 512 });
    f.device.sizeBytes = sectors * 512;
  };
  resize(8);
  assert.equal(f.request(blk.VIRTIO_BLK_T_IN, 8n, NOTHING, 512).status, IOERR);
  assert.equal(f.request(blk.VIRTIO_BLK_T_IN, 7n, NOTHING, 512).status, OK);
  assert.equal(new DataView(f.device.readConfig(0, 8)!.buffer).getBigUint64(0, true), 8n);
  resize(SECTORS);
  assert.equal(f.request(blk.VIRTIO_BLK_T_IN, 8n, NOTHING, 512).status, OK);
  f.close();
});

test('the driver may change the mode of the cache, and nothing else', () => {
  const f = new DiskFixture({ image: disk() });
  const { device } = f;
  const at = blk.BlkConfig.fields.writeback.at;
  assert.equal(device.readConfig(at, 1)![0], 1);
  assert.equal(device.writeConfig(at, Uint8Array.of(0)), true);
  assert.equal(device.readConfig(at, 1)![0], 0);
  assert.equal(f.request(blk.VIRTIO_BLK_T_OUT, 0n, filled(1, 512), 0).status, OK);
  for (const [offset, bytes] of [
    [0, Uint8Array.of(1)],
    [at, Uint8Array.of(2)],
    [at, Uint8Array.of(1, 0)],
    [at - 1, Uint8Array.of(0)],
  ] as const) {
    assert.equal(device.writeConfig(offset, bytes), false, `${bytes} at ${offset}`);
  }
  f.plane.resetDevice(0);
  assert.equal(device.readConfig(at, 1)![0], 1, 'the next driver finds a new device');
  assert.equal(device.readConfig(96, 1), null);
  assert.deepEqual([...device.readConfig(92, 8)!], [0, 0, 0, 0, 0, 0, 0, 0]);
  f.close();
});

test('a driver behind an IOMMU waits for translations, and asks once', () => {
  const f = new DiskFixture({ image: disk(), iotlb: true });
  const queue = f.queues[0]!;
  const status = queue.status();
  const id = queue.add([queue.header(blk.VIRTIO_BLK_T_IN, 0n)], [status]);
  f.poll();
  f.poll();
  assert.equal(queue.reap().size, 0);
  const [miss, ...more] = f.events;
  assert.ok(miss?.kind === 'iotlb-miss');
  assert.deepEqual(more, []);
  const { pair } = queue;
  const range = { iova: pair.map.start[0]!, sizeBytes: pair.sizeBytes, offset: pair.offset };
  f.plane.updateIotlb(0, { ...range, permissions: 1 });
  f.poll();
  assert.equal(queue.reap().size, 0, 'the status may not be written');
  assert.deepEqual(
    f.events.map((event) => event.kind === 'iotlb-miss' && event.write),
    [false, true],
  );
  f.plane.updateIotlb(0, { ...range, permissions: 3 });
  f.poll();
  assert.equal(queue.reap().get(id), 1);
  f.plane.invalidateIotlb(0, range.iova, range.sizeBytes);
  queue.add([queue.header(blk.VIRTIO_BLK_T_IN, 0n)], [queue.status()]);
  f.poll();
  assert.equal(queue.reap().size, 0);
  assert.equal(f.events.length, 3);
  f.close();
});

test('what a driver reads is marked in the dirty log, what it writes to the disk is not', () => {
  const log = PrivateMemory.allocate(1 << 18);
  const f = new DiskFixture({ image: disk(), log });
  const isMarked = (gpa: number): boolean => {
    const page = Math.trunc(gpa / 4096);
    return ((arena().bytes[log.offset + (page >> 3)]! >> (page & 7)) & 1) === 1;
  };
  const queue = f.queues[0]!;
  queue.alloc(64 * 1024); // away from the ring
  const pages = queue.alloc(8 * 4096);
  const at = (page: number): number => (Math.ceil(pages / 4096) + page) * 4096;
  const [into, out] = [
    { gpa: at(0), len: 4096 },
    { gpa: at(2), len: 4096 },
  ];
  const status = { gpa: at(4), len: 1 };
  queue.add([queue.header(blk.VIRTIO_BLK_T_IN, 0n)], [into, status]);
  queue.add([queue.header(blk.VIRTIO_BLK_T_OUT, 0n), out], [{ gpa: at(5), len: 1 }]);
  f.poll();
  const marked = [0, 1, 2, 3, 4, 5, 6].filter((page) => isMarked(at(page)));
  assert.deepEqual(marked, [0, 4, 5]);
  f.close();
  log.close();
});

test('memory that its owner truncated never reaches the disk', () => {
  const region = createMemfd('guest', 4096);
  const range = reserveRange(4096);
  const handle = mapRegionAt(range.offset, 4096, region.number, 0);
  const image = disk();
  const f = new DiskFixture({ image, regions: [handle], queues: 2 });
  assert.equal(f.request(blk.VIRTIO_BLK_T_OUT, 0n, filled(7, 512), 0).status, OK);
  truncate(region.number, 0);
  assert.equal(arena().bytes[range.offset], 0, 'the fault, and the zeros in its place');
  const queue = f.queues[0]!;
  const status = queue.status();
  const header = queue.header(blk.VIRTIO_BLK_T_OUT, 0n);
  queue.add([header, queue.put(filled(8, 512))], [status]);
  f.poll();
  assert.equal(queue.read(status.gpa, 1)[0], UNTOUCHED);
  const [event, ...more] = f.events;
  assert.ok(event?.kind === 'fault');
  assert.deepEqual([event.index, faultName(event.code), more], [-1, 'MEMORY_GONE', []]);
  // The next session has memory that is there.
  for (const index of [0, 1]) f.detach(index);
  releaseRegion(handle);
  range.close();
  region.close();
  const fresh = new DiskFixture({ image });
  assert.deepEqual(fresh.request(blk.VIRTIO_BLK_T_IN, 0n, NOTHING, 512).data, filled(7, 512));
  fresh.close();
  f.close();
});

test('whatever a driver makes available, a request gets a status or its queue breaks', () => {
  const seed = Date.now() >>> 0;
  let state = seed;
  const next = (below: number): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  const image = disk();
  for (let round = 0; round < 60; round++) {
    const packed = round % 2 === 1;
    const f = new DiskFixture({ image: unowned(image), packed });
    const queue = f.queues[0]!;
    let broken = false;
    for (let n = 0; n < 40 && !broken; n++) {
      const type = [0, 1, 4, 8, 11, 13, next(2 ** 31)][next(7)]!;
      const sector = [BigInt(next(SECTORS)), 2n ** 64n - 1n, 2n ** 55n][next(3)]!;
      const garbage = Uint8Array.from({ length: next(600) }, () => next(256));
      const all = Buffer.concat([queue.read(queue.header(type, sector).gpa, 16), garbage]);
      const readable: Piece[] = [];
      for (let at = 0; at < all.length && readable.length < 8;) {
        const len = 1 + next(readable.length === 7 ? all.length - at : 40);
        readable.push(queue.put(all.subarray(at, at + len)));
        at += len;
      }
      const writable = Array.from({ length: next(4) }, () => {
        const len = 1 + next(600);
        return queue.put(filled(UNTOUCHED, len));
      });
      if (next(20) === 0) readable.length = 0;
      if (readable.length + writable.length === 0) continue;
      const id = queue.add(readable, writable, next(2) === 0);
      f.poll();
      const text = `seed ${seed}, round ${round}, request ${n} of type ${type}`;
      const len = queue.reap().get(id);
      broken = f.events.length > 0;
      assert.equal(broken, len === undefined, text);
      if (broken) continue;
      const { gpa, len: lastLen } = writable.at(-1)!;
      assert.equal(
        len,
        writable.reduce((sum, piece) => sum + piece.len, 0),
        text,
      );
      assert.ok([OK, IOERR, UNSUPP].includes(queue.read(gpa + lastLen - 1, 1)[0]!), text);
    }
    f.close();
  }
  image.close();
});

/** The same image for one fixture after another, each of which closes its own. */
function unowned(image: DiskImage): DiskImage {
  const { description, readOnly, sizeBytes, spec } = image;
  const measure = async (): Promise<number> => sizeBytes;
  const nothing = async (): Promise<void> => undefined;
  const counters = async (): Promise<Record<string, number>> => ({});
  const calls = { measure, counters, resize: nothing, control: nothing, close: nothing };
  return { description, readOnly, sizeBytes, spec, ...calls };
}
