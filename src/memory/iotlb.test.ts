import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { Iotlb, IOTLB_READ, IOTLB_WRITE, type IotlbEntry } from './iotlb.ts';

const BOTH = IOTLB_READ | IOTLB_WRITE;
const SPAN = 64;

type Step = { readonly kind: 'update' | 'invalidate' } & IotlbEntry;

/** Few addresses and deltas, so that neighbours meet, join and are split. */
const steps: fc.Arbitrary<Step[]> = fc.array(
  fc
    .record({
      kind: fc.constantFrom('update' as const, 'update' as const, 'invalidate' as const),
      iova: fc.integer({ min: 0, max: SPAN - 1 }),
      sizeBytes: fc.integer({ min: 1, max: 20 }),
      delta: fc.constantFrom(1000, 2000, 3000),
      permissions: fc.constantFrom(0, 1, 2, 3, 3, 3),
    })
    .map(({ kind, iova, sizeBytes, delta, permissions }) => ({
      kind,
      iova,
      sizeBytes,
      offset: iova + delta,
      permissions,
    })),
  { maxLength: 40 },
);

/** The definition: what is known of each byte. */
class Bytes {
  readonly offset = Array.from({ length: 2 * SPAN }, () => -1);
  readonly permission = Array.from({ length: 2 * SPAN }, () => 0);

  apply(step: Step): void {
    const granted = step.kind === 'invalidate' ? 0 : step.permissions;
    for (let i = 0; i < step.sizeBytes; i++) {
      this.offset[step.iova + i] = granted === 0 ? -1 : step.offset + i;
      this.permission[step.iova + i] = granted;
    }
  }

  firstMiss(iova: number, len: number, permission: number): number {
    for (let at = iova; at < iova + len; at++) {
      if (this.offset[at]! < 0 || (this.permission[at]! & permission) !== permission) return at;
    }
    return -1;
  }

  translate(iova: number, len: number, permission: number): number {
    if (this.firstMiss(iova, len, permission) >= 0) return -1;
    for (let i = 1; i < len; i++) {
      if (this.offset[iova + i] !== this.offset[iova]! + i) return -1;
    }
    return this.offset[iova]!;
  }
}

function apply(iotlb: Iotlb, step: Step): void {
  if (step.kind === 'update') iotlb.update(step);
  else iotlb.invalidate(step.iova, step.sizeBytes);
}

test('an IOTLB agrees with a table byte by byte, and its columns stay in order and joined', () => {
  fc.assert(
    fc.property(steps, (list) => {
      const iotlb = new Iotlb();
      const bytes = new Bytes();
      for (const step of list) {
        apply(iotlb, step);
        bytes.apply(step);
      }
      for (let iova = 0; iova < SPAN; iova++) {
        for (const len of [1, 3, 17]) {
          for (const permission of [1, 2, 3]) {
            const where = `${iova} + ${len} for ${permission}`;
            assert.equal(
              iotlb.translate(iova, len, permission),
              bytes.translate(iova, len, permission),
              where,
            );
            assert.equal(
              iotlb.firstMiss(iova, len, permission),
              bytes.firstMiss(iova, len, permission),
              where,
            );
          }
        }
      }
      const { count, start, end, delta, permission } = iotlb.map();
      for (let i = 0; i < count; i++) {
        assert.ok(start[i]! < end[i]!);
        if (i === 0) continue;
        assert.ok(end[i - 1]! <= start[i]!, 'sorted, no overlap');
        const continues = end[i - 1] === start[i] && delta[i - 1] === delta[i];
        assert.ok(!continues || permission![i - 1] !== permission![i], 'joined');
      }
    }),
  );
});

test('a full table lets the oldest entry go, and only that', () => {
  const iotlb = new Iotlb(4);
  const page = (n: number, offset = 10 ** 6 + 2 * n): IotlbEntry => ({
    iova: 8192 * n,
    sizeBytes: 4096,
    offset: offset * 4096,
    permissions: BOTH,
  });
  for (const n of [3, 1, 2, 0]) iotlb.update(page(n));
  iotlb.update(page(3, 7)); // told again: no longer the oldest
  iotlb.update(page(9));
  assert.equal(iotlb.count, 4);
  assert.equal(iotlb.evictions, 1);
  assert.equal(iotlb.translate(8192, 1, BOTH), -1, 'page 1 was told longest ago');
  for (const n of [0, 2, 3, 9]) assert.ok(iotlb.translate(8192 * n, 4096, BOTH) > 0, `page ${n}`);
});

test('a split of a full table keeps to the limit', () => {
  const iotlb = new Iotlb(1);
  iotlb.update({ iova: 0, sizeBytes: 4096 * 3, offset: 4096, permissions: BOTH });
  iotlb.invalidate(4096, 4096);
  assert.equal(iotlb.count, 1);
  assert.equal(iotlb.evictions, 1);
});

test('churn never empties a table that is full', () => {
  const iotlb = new Iotlb(64);
  for (let n = 0; n < 1000; n++) {
    iotlb.update({ iova: 8192 * n, sizeBytes: 4096, offset: 4096 * 3 * n, permissions: 1 });
    assert.equal(iotlb.count, Math.min(n + 1, 64));
    for (let k = Math.max(0, n - 63); k <= n; k += 9) {
      assert.equal(iotlb.translate(8192 * k, 4096, 1), 4096 * 3 * k);
    }
  }
});

test('a copy is as long as it must be, and makes another table the same', () => {
  const iotlb = new Iotlb();
  iotlb.update({ iova: 0, sizeBytes: 4096, offset: 8192, permissions: IOTLB_READ });
  iotlb.update({ iova: 4096, sizeBytes: 4096, offset: 12288, permissions: BOTH });
  const copy = iotlb.snapshot();
  assert.equal(copy.start.length, 2);
  const other = new Iotlb();
  other.update({ iova: 1 << 20, sizeBytes: 4096, offset: 0, permissions: BOTH });
  other.replace(copy);
  assert.deepEqual(other.snapshot(), copy);
  assert.equal(other.translate(0, 8192, IOTLB_READ), 8192, 'one piece, two permissions');
  assert.equal(other.translate(0, 8192, IOTLB_WRITE), -1);
});

test('everything can be forgotten at once', () => {
  const iotlb = new Iotlb();
  iotlb.update({ iova: 4096, sizeBytes: 4096, offset: 8192, permissions: BOTH });
  iotlb.invalidate(0, Infinity);
  assert.equal(iotlb.count, 0);
  assert.equal(iotlb.translate(4096, 1, IOTLB_READ), -1);
});
