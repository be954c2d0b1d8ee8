import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { describe, test } from 'node:test';
import { VringError } from '../base/errors.ts';
import { BATCH, BATCH_SEGMENTS, MAX_CHAIN_DESCRIPTORS } from '../base/limits.ts';
import * as virtio from '../wire/virtio.ts';
import { ChainBatch, ROW_STRIDE } from './chain-batch.ts';
import { fillRows } from './chain-segments.hot.ts';
import { DeviceQueue, decodePackedBase, encodePackedBase, ringBase } from './device-queue.ts';
import { hasAvailable, needsCall, putUsed, takeChains, untakeChains } from './device.hot.ts';
import { PAIR_BASE_GPA, QueuePair, type QueuePairOptions } from './driver/queue-pair.ts';
import * as faults from './faults.ts';

const NEXT = virtio.VIRTQ_DESC_F_NEXT;
const WRITE = virtio.VIRTQ_DESC_F_WRITE;
const INDIRECT = virtio.VIRTQ_DESC_F_INDIRECT;
const AVAIL = virtio.VIRTQ_DESC_F_AVAIL;

type Raw = { addr?: bigint | number; len?: number; flags?: number; next?: number; id?: number };

/** Writes rings word by word, legal or not. */
class RawRing {
  readonly pair: QueuePair;
  readonly view: DataView;
  readonly batch = new ChainBatch(BATCH, BATCH_SEGMENTS, true);
  readonly gpa: number;

  constructor(options: QueuePairOptions) {
    this.pair = new QueuePair({ indirect: true, ...options });
    this.view = new DataView(this.pair.buffer);
    this.gpa = this.pair.dataGpa;
  }

  /** Arena offset of a guest-physical address. */
  at(gpa: number): number {
    return gpa - PAIR_BASE_GPA + this.pair.offset;
  }

  /** Entry `index` of the ring, or of the table at `gpa`. */
  write(index: number, raw: Raw, tableGpa?: number): void {
    const base = tableGpa === undefined ? this.pair.config.descOffset : this.at(tableGpa);
    const at = base + 16 * index;
    const packed = this.pair.config.packed;
    this.view.setBigUint64(at, BigInt(raw.addr ?? this.gpa), true);
    this.view.setUint32(at + 8, raw.len ?? 64, true);
    this.view.setUint16(at + (packed ? 14 : 12), raw.flags ?? 0, true);
    this.view.setUint16(at + (packed ? 12 : 14), (packed ? raw.id : raw.next) ?? 0, true);
  }

  avail(...heads: number[]): void {
    const { availOffset, size } = this.pair.config;
    let idx = this.view.getUint16(availOffset + 2, true);
    for (const head of heads) {
      this.view.setUint16(availOffset + 4 + 2 * (idx % size), head, true);
      idx = (idx + 1) & 0xffff;
    }
    this.availIdx(idx);
  }

  availIdx(idx: number): void {
    this.view.setUint16(this.pair.config.availOffset + 2, idx, true);
  }

  take(max = BATCH): number {
    const count = takeChains(this.pair.device, this.batch, max);
    if (this.batch.unfilled !== 0) fillRows(this.batch, count);
    return count;
  }
}

function takesFault(ring: RawRing, name: string): void {
  const code = ring.take();
  assert.equal(code < 0 ? faults.faultName(code) : `${code} chains`, name);
  assert.equal(ring.take(), code, 'the fault is sticky');
  assert.equal(ring.batch.count, 0);
}

describe('a split device faults on', () => {
  const split = (write: (ring: RawRing) => void, name: string) => () => {
    const ring = new RawRing({ size: 8 });
    write(ring);
    takesFault(ring, name);
  };
  const outside = PAIR_BASE_GPA - 64;

  test(
    'an avail index that jumps ahead',
    split((r) => r.availIdx(9), 'AVAIL_IDX'),
  );
  test(
    'an avail index that moves back',
    split((r) => r.availIdx(0xffff), 'AVAIL_IDX'),
  );
  test(
    'a head that is no descriptor',
    split((r) => r.avail(8), 'HEAD'),
  );
  test(
    'an address in front of memory',
    split((r) => {
      r.write(0, { addr: outside });
      r.avail(0);
    }, 'DESC_ADDRESS'),
  );
  test(
    'a buffer that leaves memory',
    split((r) => {
      r.write(0, { addr: PAIR_BASE_GPA + r.pair.sizeBytes - 63 });
      r.avail(0);
    }, 'DESC_ADDRESS'),
  );
  test(
    'an address near 2^64',
    split((r) => {
      r.write(0, { addr: 0xffff_ffff_ffff_ffc0n });
      r.avail(0);
    }, 'DESC_ADDRESS'),
  );
  test(
    'an address of 2^63',
    split((r) => {
      r.write(0, { addr: 1n << 63n });
      r.avail(0);
    }, 'DESC_ADDRESS'),
  );
  test(
    'a good address with one high bit flipped',
    split((r) => {
      r.write(0, { addr: BigInt(r.gpa) | (1n << 62n) });
      r.avail(0);
    }, 'DESC_ADDRESS'),
  );
  test(
    'a next that is no descriptor',
    split((r) => {
      r.write(0, { flags: NEXT, next: 8 });
      r.avail(0);
    }, 'DESC_NEXT'),
  );
  test(
    'a descriptor that follows itself',
    split((r) => {
      r.write(0, { flags: NEXT, next: 0 });
      r.avail(0);
    }, 'CHAIN_LOOP'),
  );
  test(
    'a loop of two',
    split((r) => {
      r.write(3, { flags: NEXT, next: 5 });
      r.write(5, { flags: NEXT, next: 3 });
      r.avail(3);
    }, 'CHAIN_LOOP'),
  );
  test(
    'a nested indirect table',
    split((r) => {
      r.write(0, { addr: r.gpa, len: 16, flags: INDIRECT });
      r.write(0, { addr: r.gpa, len: 16, flags: INDIRECT }, r.gpa);
      r.avail(0);
    }, 'INDIRECT_NESTED'),
  );
  test(
    'INDIRECT with NEXT',
    split((r) => {
      r.write(0, { len: 16, flags: INDIRECT | NEXT, next: 1 });
      r.avail(0);
    }, 'INDIRECT_NEXT'),
  );
  test(
    'a next outside its table',
    split((r) => {
      r.write(0, { addr: r.gpa, len: 32, flags: INDIRECT });
      r.write(0, { flags: NEXT, next: 2 }, r.gpa);
      r.avail(0);
    }, 'DESC_NEXT'),
  );
  test(
    'a loop inside a table',
    split((r) => {
      r.write(0, { addr: r.gpa, len: 32, flags: INDIRECT });
      r.write(0, { flags: NEXT, next: 1 }, r.gpa);
      r.write(1, { flags: NEXT, next: 0 }, r.gpa);
      r.avail(0);
    }, 'CHAIN_LOOP'),
  );
});

for (const packed of [false, true]) {
  const kind = packed ? 'packed' : 'split';
  const flags = packed ? AVAIL : 0;
  const start = (r: RawRing) => {
    if (!packed) r.avail(0);
  };
  const both =
    (write: (ring: RawRing) => void, name: string, options = {}) =>
    () => {
      const ring = new RawRing({ size: 8, packed, ...options });
      write(ring);
      start(ring);
      takesFault(ring, name);
    };

  describe(`a ${kind} device faults on`, () => {
    test(
      'a table in front of memory',
      both((r) => {
        r.write(0, { addr: PAIR_BASE_GPA - 16, len: 16, flags: flags | INDIRECT });
      }, 'DESC_ADDRESS'),
    );
    test(
      'a table that leaves memory',
      both((r) => {
        const addr = PAIR_BASE_GPA + r.pair.sizeBytes - 16;
        r.write(0, { addr, len: 32, flags: flags | INDIRECT });
      }, 'DESC_ADDRESS'),
    );
    for (const len of [0, 1, 15, 17, 16 * 65537, 0x8000_0000, 0xffff_fff0]) {
      test(
        `a table of ${len} bytes`,
        both((r) => {
          r.write(0, { len, flags: flags | INDIRECT });
        }, 'INDIRECT_LENGTH'),
      );
    }
    test(
      'INDIRECT without the feature',
      both(
        (r) => {
          r.write(0, { len: 16, flags: flags | INDIRECT });
        },
        'INDIRECT_FEATURE',
        { indirect: false },
      ),
    );
    test(
      'a readable buffer behind a writable one',
      both((r) => {
        r.write(0, { flags: flags | NEXT | WRITE, next: 1 });
        r.write(1, { flags });
      }, 'DESC_ORDER'),
    );
    test(
      'the same inside a table',
      both((r) => {
        r.write(0, { addr: r.gpa, len: 32, flags: flags | INDIRECT });
        r.write(0, { flags: NEXT | WRITE, next: 1 }, r.gpa);
        r.write(1, {}, r.gpa);
      }, 'DESC_ORDER'),
    );
    test(
      'a length of 2^31',
      both((r) => {
        r.write(0, { len: 0x8000_0000, flags });
      }, 'DESC_LENGTH'),
    );
    test(
      'an address outside inside a table',
      both((r) => {
        r.write(0, { addr: r.gpa, len: 16, flags: flags | INDIRECT });
        r.write(0, { addr: 0 }, r.gpa);
      }, 'DESC_ADDRESS'),
    );

    test('2^31 readable bytes in all, and takes one less', () => {
      for (const [lastLen, expected] of [
        [0x4000_0000, 'DESC_LENGTH'],
        [0x3fff_ffff, '1'],
      ] as const) {
        const ring = new RawRing({ size: 8, packed, dataBytes: 4096 });
        // No memory behind it is needed: chains are resolved, not read.
        ring.pair.device.mapEnd = new Float64Array([PAIR_BASE_GPA + 2 ** 31]);
        ring.write(0, { len: 0x4000_0000, flags: flags | NEXT, next: 1 });
        ring.write(1, { len: lastLen, flags });
        start(ring);
        const code = ring.take();
        assert.equal(code < 0 ? faults.faultName(code) : String(code), expected);
      }
    });

    test('more descriptors than MAX_CHAIN_DESCRIPTORS', () => {
      for (const extra of [0, 1]) {
        const ring = new RawRing({ size: 1024, packed });
        const count = MAX_CHAIN_DESCRIPTORS + extra;
        for (let i = 0; i < count; i++) {
          ring.write(i, { flags: flags | (i + 1 < count ? NEXT : 0), next: i + 1 });
        }
        start(ring);
        if (extra === 0) assert.equal(ring.take(), 1);
        else takesFault(ring, 'CHAIN_TOO_LONG');
      }
    });

    test('a table with more entries in use than that', () => {
      for (const extra of [0, 1]) {
        const ring = new RawRing({ size: 8, packed });
        const count = MAX_CHAIN_DESCRIPTORS + extra;
        ring.write(0, { addr: ring.gpa, len: 16 * count, flags: flags | INDIRECT });
        for (let i = 0; i < count; i++) {
          ring.write(i, { flags: i + 1 < count ? NEXT : 0, next: i + 1 }, ring.gpa);
        }
        start(ring);
        if (extra === 0) assert.equal(ring.take(), 1);
        else takesFault(ring, 'CHAIN_TOO_LONG');
      }
    });
  });
}

describe('a packed device faults on', () => {
  const packed = (write: (ring: RawRing) => void, name: string) => () => {
    const ring = new RawRing({ size: 8, packed: true });
    write(ring);
    takesFault(ring, name);
  };
  test(
    'a buffer id that is no id',
    packed((r) => r.write(0, { flags: AVAIL, id: 8 }), 'BUFFER_ID'),
  );
  test(
    'the same in a list, whose last descriptor counts',
    packed((r) => {
      r.write(0, { flags: AVAIL | NEXT, id: 1 });
      r.write(1, { flags: AVAIL, id: 0xffff });
    }, 'BUFFER_ID'),
  );
  test(
    'the same beside a table',
    packed((r) => {
      r.write(0, { addr: r.gpa, len: 16, flags: AVAIL | INDIRECT, id: 9 });
      r.write(0, {}, r.gpa);
    }, 'BUFFER_ID'),
  );
  test(
    'a list that goes round the ring',
    packed((r) => {
      for (let i = 0; i < 8; i++) r.write(i, { flags: AVAIL | NEXT });
    }, 'CHAIN_TOO_LONG'),
  );
  test(
    'INDIRECT with NEXT',
    packed((r) => {
      r.write(0, { len: 16, flags: AVAIL | INDIRECT | NEXT });
    }, 'INDIRECT_NEXT'),
  );
  test(
    'a table inside a list',
    packed((r) => {
      r.write(0, { flags: AVAIL | NEXT });
      r.write(1, { len: 16, flags: AVAIL | INDIRECT });
    }, 'INDIRECT_NEXT'),
  );

  test('nothing in the flags of a table but WRITE', () => {
    const ring = new RawRing({ size: 8, packed: true });
    ring.write(0, { addr: ring.gpa, len: 32, flags: AVAIL | INDIRECT, id: 5 });
    ring.write(0, { flags: INDIRECT | NEXT, id: 77, len: 10 }, ring.gpa);
    ring.write(1, { flags: INDIRECT | WRITE, id: 78, len: 20 }, ring.gpa);
    assert.equal(ring.take(), 1);
    assert.equal(ring.batch.head[0], 5);
    assert.equal(ring.batch.readBytes[0], 10);
    assert.equal(ring.batch.writeBytes[0], 20);
  });
});

describe('a device takes', () => {
  test('a list that ends in an indirect table (2.7.5.3.2)', () => {
    const ring = new RawRing({ size: 8 });
    ring.write(2, { len: 10, flags: NEXT, next: 4 });
    ring.write(4, { addr: ring.gpa, len: 32, flags: INDIRECT | WRITE });
    ring.write(0, { len: 20, flags: NEXT, next: 1 }, ring.gpa);
    ring.write(1, { len: 30, flags: WRITE }, ring.gpa);
    ring.avail(2);
    assert.equal(ring.take(), 1);
    assert.deepEqual([...ring.batch.segLen.subarray(0, 3)], [10, 20, 30]);
    assert.equal(ring.batch.readSegs[0], 2);
    assert.equal(ring.batch.writeSegs[0], 1);
    assert.equal(ring.batch.readBytes[0], 30);
    assert.equal(ring.batch.writeBytes[0], 30);
  });

  test('descriptors of length zero, without a segment', () => {
    const ring = new RawRing({ size: 8 });
    ring.write(0, { addr: 0, len: 0 });
    ring.write(1, { len: 0, flags: NEXT, next: 2 });
    ring.write(2, { len: 7 });
    ring.avail(0, 1);
    assert.equal(ring.take(), 2);
    assert.equal(ring.batch.readSegs[0] + ring.batch.writeSegs[0], 0);
    assert.equal(ring.batch.readSegs[1], 1);
    assert.equal(ring.batch.readBytes[1], 7);
  });

  test('a buffer across two ranges as two segments, none across a gap', () => {
    const ring = new RawRing({ size: 8 });
    const q = ring.pair.device;
    const border = ring.gpa + 100;
    q.mapCount = 3;
    q.mapStart = new Float64Array([PAIR_BASE_GPA, border, border + 60]);
    q.mapEnd = new Float64Array([border, border + 50, border + 1000]);
    q.mapDelta = new Float64Array([5 - PAIR_BASE_GPA, 70000 - border, 90000 - border]);
    ring.write(0, { addr: border - 10, len: 30 });
    ring.write(1, { addr: border + 60, len: 40 });
    ring.write(2, { addr: border + 40, len: 11 });
    ring.avail(0, 1, 2);
    assert.equal(ring.take(), 2, 'the good ones are handed over first');
    const b = ring.batch;
    assert.equal(b.readSegs[0], 2);
    assert.deepEqual([...b.segLen.subarray(0, 3)], [10, 20, 40]);
    assert.deepEqual(
      [...b.segOffset.subarray(0, 3)],
      [5 + border - 10 - PAIR_BASE_GPA, 70000, 90060],
    );
    takesFault(ring, 'DESC_ADDRESS');
  });

  for (const packed of [false, true]) {
    test(`no more than the batch has segments for, ${packed ? 'packed' : 'split'}`, () => {
      const ring = new RawRing({ size: 8, packed });
      const flags = packed ? AVAIL : 0;
      for (let i = 0; i < 8; i += 2) {
        ring.write(i, { flags: flags | NEXT, next: i + 1, id: i });
        ring.write(i + 1, { flags, id: i });
      }
      if (!packed) ring.avail(0, 2, 4, 6);
      const small = new ChainBatch(8, 5);
      assert.equal(takeChains(ring.pair.device, small, 8), 2);
      putUsed(ring.pair.device, small, 0, 2);
      assert.equal(takeChains(ring.pair.device, small, 8), 2);
      assert.equal(takeChains(ring.pair.device, new ChainBatch(8, 1), 8), 0);
    });

    test(`a fault for a chain that no batch has room for, ${packed ? 'packed' : 'split'}`, () => {
      const ring = new RawRing({ size: 8, packed });
      ring.write(0, { flags: (packed ? AVAIL : 0) | NEXT, next: 1 });
      ring.write(1, { flags: packed ? AVAIL : 0 });
      if (!packed) ring.avail(0);
      const code = takeChains(ring.pair.device, new ChainBatch(8, 1), 8);
      assert.equal(faults.faultName(code), 'CHAIN_TOO_LONG');
    });

    test(`at most max, and gives back, ${packed ? 'packed' : 'split'}`, () => {
      const ring = new RawRing({ size: 8, packed });
      for (let i = 0; i < 6; i++) ring.write(i, { flags: packed ? AVAIL : 0, id: i, len: 10 + i });
      if (!packed) ring.avail(0, 1, 2, 3, 4, 5);
      assert.equal(ring.take(4), 4);
      untakeChains(ring.pair.device, ring.batch, 1);
      assert.equal(ring.batch.count, 1);
      assert.equal(ring.pair.device.chainsTaken, 1);
      assert.equal(ring.take(0), 0);
      assert.equal(ring.take(), 5);
      assert.equal(ring.batch.readBytes[0], 11);
      assert.equal(ring.batch.head[4], 5);
      assert.equal(hasAvailable(ring.pair.device), false);
      assert.equal(ring.take(), 0);
    });
  }

  test('a packed ring on a processor that reorders loads', () => {
    const ring = new RawRing({ size: 8, packed: true });
    ring.pair.device.weakOrder = 1;
    for (let i = 0; i < 5; i++) ring.write(i, { flags: AVAIL | (i === 1 ? NEXT : 0), id: i });
    assert.equal(ring.take(), 4);
    assert.deepEqual([...ring.batch.head.subarray(0, 4)], [0, 2, 3, 4]);
    assert.deepEqual([...ring.batch.slots.subarray(0, 4)], [1, 2, 1, 1]);
  });
});

describe('a device starts', () => {
  const config = new QueuePair({ size: 8 }).config;
  const buffer = new ArrayBuffer(1 << 20);
  const map = new QueuePair({ size: 8 }).map;
  const refuses = (change: object, code: string) => () => {
    assert.throws(
      () => new DeviceQueue({ ...config, base: 0, ...change }, map, buffer),
      (error) => error instanceof VringError && error.code === code,
    );
  };
  test('not with a size of zero', refuses({ size: 0 }, 'ERR_VRING_RING_SIZE'));
  test('not with a size over 32768', refuses({ size: 65536 }, 'ERR_VRING_RING_SIZE'));
  test('not split with 7', refuses({ size: 7 }, 'ERR_VRING_RING_SIZE'));
  test('not with half a size', refuses({ size: 1.5 }, 'ERR_VRING_RING_SIZE'));
  test('not unaligned', refuses({ descOffset: 8 }, 'ERR_VRING_RING_ADDRESS'));
  test('not outside', refuses({ usedOffset: (1 << 20) - 8 }, 'ERR_VRING_RING_ADDRESS'));
  test('not at -16', refuses({ descOffset: -16 }, 'ERR_VRING_RING_ADDRESS'));
  test('not at base 65536', refuses({ base: 65536 }, 'ERR_VRING_RING_BASE'));
  test('not packed beyond its ring', refuses({ packed: true, base: 8 }, 'ERR_VRING_RING_BASE'));

  test('split: with the used index of the ring, not of the base', () => {
    const ring = new RawRing({ size: 8 });
    ring.view.setUint16(ring.pair.config.usedOffset + 2, 0xfffe, true);
    ring.availIdx(3);
    ring.pair.restart(3);
    ring.write(0, {});
    ring.avail(0);
    assert.equal(ring.take(), 1);
    putUsed(ring.pair.device, ring.batch, 0, 1);
    assert.equal(ring.view.getUint16(ring.pair.config.usedOffset + 2, true), 0xffff);
    assert.equal(ringBase(ring.pair.device), 4);
  });

  test('packed: with all four fields', () => {
    assert.deepEqual(decodePackedBase(0x8003_0005), {
      avail: 5,
      availWrap: 0,
      used: 3,
      usedWrap: 1,
    });
    assert.equal(encodePackedBase(5, 0, 3, 1), 0x8003_0005);
    assert.deepEqual(decodePackedBase(virtio.PACKED_BASE_FRESH), {
      avail: 0,
      availWrap: 1,
      used: 0,
      usedWrap: 1,
    });
    const ring = new RawRing({ size: 8, packed: true });
    ring.pair.restart(0x8003_0005);
    assert.equal(ringBase(ring.pair.device), 0x8003_0005);
  });

  test('packed: with a base that has no upper half, used where avail is', () => {
    assert.deepEqual(decodePackedBase(0x8002), { avail: 2, availWrap: 1, used: 2, usedWrap: 1 });
    assert.deepEqual(decodePackedBase(2), { avail: 2, availWrap: 0, used: 2, usedWrap: 0 });
  });

  test('with no memory at all: every address faults', () => {
    const ring = new RawRing({ size: 8 });
    const none = { count: 0, start: new Float64Array(0), end: new Float64Array(0) };
    ring.pair.device = new DeviceQueue(
      { ...ring.pair.config, base: 0 },
      { ...none, delta: new Float64Array(0) },
      ring.pair.buffer,
    );
    ring.write(0, {});
    ring.avail(0);
    takesFault(ring, 'DESC_ADDRESS');
  });
});

describe('constants that hot files repeat', () => {
  const known: Record<string, number> = {
    ...(faults as unknown as Record<string, number>),
    MAX_CHAIN: MAX_CHAIN_DESCRIPTORS,
    EVENTS_ENABLE: virtio.RING_EVENT_FLAGS_ENABLE,
    EVENTS_DISABLE: virtio.RING_EVENT_FLAGS_DISABLE,
    EVENTS_DESC: virtio.RING_EVENT_FLAGS_DESC,
  };
  for (const folder of ['.', 'driver']) {
    for (const name of readdirSync(new URL(`${folder}/`, import.meta.url))) {
      if (!name.endsWith('.hot.ts')) continue;
      test(name, () => {
        const source = readFileSync(new URL(`${folder}/${name}`, import.meta.url), 'utf8');
        for (const [, key, value] of source.matchAll(/^const ([A-Z_]+) = (-?\d+);/gm)) {
          if (key in known) assert.equal(Number(value), known[key], key);
          else assert.ok(!key.startsWith('FAULT_'), `${key} is in faults.ts`);
        }
      });
    }
  }

  test('columns of a batch', () => {
    const batch = new ChainBatch();
    const source = readFileSync(new URL('packed-device.hot.ts', import.meta.url), 'utf8');
    const columns = 'head slots segFirst readSegs writeSegs readBytes writeBytes written'.split(
      ' ',
    );
    for (const [k, column] of columns.entries()) {
      const constant = column.replace(/[A-Z]/g, (c) => `_${c}`).toUpperCase();
      assert.ok(source.includes(`const ${constant} = ${k * ROW_STRIDE};`), constant);
      batch.rows[k * ROW_STRIDE + 3] = 100 + k;
      assert.equal((batch[column as keyof ChainBatch] as Int32Array)[3], 100 + k);
    }
  });

  test('every fault has a name', () => {
    for (const [key, code] of Object.entries(faults)) {
      if (typeof code === 'number') assert.equal(`FAULT_${faults.faultName(code)}`, key);
    }
  });
});

describe('with IN_ORDER a device writes', () => {
  const used = (ring: RawRing, slot: number): [number, number] => {
    const { packed, usedOffset, descOffset } = ring.pair.config;
    const at = packed ? descOffset + 16 * slot + 12 : usedOffset + 4 + 8 * slot;
    const id = packed ? ring.view.getUint16(at, true) : ring.view.getUint32(at, true);
    return [id, ring.view.getUint32(packed ? at - 4 : at + 4, true)];
  };
  for (const packed of [false, true]) {
    const kind = packed ? 'packed' : 'split';
    const make = (flags: number): RawRing => {
      const ring = new RawRing({ size: 8, packed, inOrder: true });
      const extra = packed ? AVAIL : 0;
      for (let i = 0; i < 4; i++) ring.write(i, { flags: flags | extra, len: 50, id: i });
      if (!packed) ring.avail(0, 1, 2, 3);
      assert.equal(ring.take(), 4);
      ring.batch.written.set(flags === 0 ? [0, 0, 0, 0] : [50, 50, 50, 50]);
      return ring;
    };

    test(`one entry for a batch that was only read, ${kind}`, () => {
      const ring = make(0);
      putUsed(ring.pair.device, ring.batch, 0, 4);
      assert.deepEqual(used(ring, 0), [3, 0]);
      assert.deepEqual(used(ring, 1), packed ? [1, 50] : [0, 0], 'not written');
      assert.equal(ring.pair.device.nextUsed, 4);
    });

    test(`an entry for each buffer that was written, ${kind}`, () => {
      const ring = make(WRITE);
      putUsed(ring.pair.device, ring.batch, 0, 4);
      for (let i = 0; i < 4; i++) assert.deepEqual(used(ring, i), [i, 50]);
    });
  }
});

test('the first call of a restarted ring with EVENT_IDX is always wanted', () => {
  const ring = new RawRing({ size: 8, eventIdx: true });
  ring.view.setUint16(ring.pair.config.availOffset + 4 + 16, 1000, true); // used_event, far off
  ring.write(0, {});
  ring.avail(0, 0);
  assert.equal(ring.take(1), 1);
  assert.equal(needsCall(ring.pair.device), false, 'nothing was published');
  putUsed(ring.pair.device, ring.batch, 0, 1);
  assert.equal(needsCall(ring.pair.device), true);
  assert.equal(ring.take(1), 1);
  putUsed(ring.pair.device, ring.batch, 0, 1);
  assert.equal(needsCall(ring.pair.device), false);
  assert.equal(ring.pair.device.calls, 1);
  assert.equal(ring.pair.device.callsSuppressed, 1);
});
