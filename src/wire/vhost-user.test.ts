import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { ProtocolError } from '../base/errors.ts';
import { bytes, type Field, struct, type Struct, u16, u32, u64, u8 } from './struct.ts';
import * as parse from './vhost-user-parse.ts';
import * as wire from './vhost-user.ts';

test('struct: a hole, an overlap and a wrong size fail when the module loads', () => {
  assert.throws(() => struct('Hole', 8, { a: u16(0), b: u32(4) }), /Hole\.b is at 4, expected 2/);
  assert.throws(() => struct('Overlap', 8, { a: u32(0), b: u32(2) }), /Overlap\.b is at 2/);
  assert.throws(() => struct('Size', 8, { a: u32(0) }), /Size covers 4 bytes, declared 8/);
});

test('struct: little-endian, at any offset of any view', () => {
  const pair = struct('Pair', 15, { a: u8(0), b: u16(1), c: u32(3), d: u64(7) });
  const value = { a: 1, b: 0x0302, c: 0x07060504, d: 0x0f0e0d0c0b0a0908n };
  assert.deepEqual(
    [...pair.encode(value)],
    Array.from({ length: 15 }, (_, i) => i + 1),
  );
  const inside = new Uint8Array(32).subarray(3);
  inside.set(pair.encode(value), 5);
  assert.deepEqual(pair.decode(inside, 5), value);
  assert.throws(() => pair.decode(inside, 20), RangeError);
});

test('struct: byte arrays are copied and have one length', () => {
  const s = struct('Bytes', 4, { a: bytes(0, 4) });
  const source = Uint8Array.of(1, 2, 3, 4);
  const { a } = s.decode(source);
  source[0] = 9;
  assert.deepEqual([...a], [1, 2, 3, 4]);
  assert.throws(() => s.encode({ a: Uint8Array.of(1) }), /1 bytes, expected 4/);
});

function arbitrary({ bytes: size, get }: Field<unknown>): fc.Arbitrary<unknown> {
  const sample = get(new DataView(new ArrayBuffer(64)), 0);
  if (sample instanceof Uint8Array) return fc.uint8Array({ minLength: size, maxLength: size });
  if (typeof sample === 'bigint') return fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
  return fc.integer({ min: 0, max: 2 ** (8 * size) - 1 });
}

type AnyStruct = Struct<Record<string, Field<never>>>;
const structs = Object.values(wire).filter(
  (each): each is never => typeof each === 'object' && 'encode' in each,
) as unknown as AnyStruct[];

test('every struct reads back what it wrote', () => {
  assert.equal(structs.length, 16);
  for (const each of structs) {
    const fields = Object.entries(each.fields);
    const value = fc.record(Object.fromEntries(fields.map(([k, f]) => [k, arbitrary(f)])));
    fc.assert(
      fc.property(value, (v) => {
        const encoded = each.encode(v as never);
        assert.equal(encoded.length, each.size);
        assert.deepEqual({ ...each.decode(encoded) }, { ...v });
      }),
      { numRuns: 50 },
    );
  }
});

test('there is a name for each of the 23 protocol features, at its bit', () => {
  assert.equal(wire.PROTOCOL_FEATURE_NAMES.length, 23);
  const all = wire as unknown as Record<string, number>;
  wire.PROTOCOL_FEATURE_NAMES.forEach((name, bit) => {
    assert.equal(all[`VHOST_USER_PROTOCOL_F_${name}`], bit, name);
  });
  assert.deepEqual(wire.protocolFeatureNames((1n << 63n) | 9n), ['MQ', 'REPLY_ACK', 'BIT_63']);
});

const rules: parse.PayloadRule<unknown>[] = Object.values(parse).filter(
  (each): each is never => typeof each === 'object' && 'parse' in each,
);

test('rules: any bytes are a value or a ProtocolError, and nothing else', () => {
  assert.ok(rules.length >= 11);
  const payload = fc.uint8Array({ maxLength: 300 });
  for (const rule of rules) {
    fc.assert(
      fc.property(payload, (p) => {
        try {
          const value = parse.parsePayload(rule, 'TEST', p);
          assert.ok(p.length >= rule.minBytes && p.length <= rule.maxBytes);
          assert.ok((rule.fdCount?.(value) ?? 0) <= 8);
        } catch (error) {
          assert.ok(error instanceof ProtocolError);
          assert.match(error.code, /^ERR_VRING_MESSAGE_(SIZE|VALUE)$/);
        }
      }),
    );
  }
});

test('rules: a memory table that is accepted stays in numbers', () => {
  const near = fc.oneof(
    fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
    fc.bigInt({ min: 2n ** 53n - 4096n, max: 2n ** 53n + 4096n }),
    fc.bigInt({ min: 0n, max: 8192n }),
  );
  const region = fc.record({
    guestPhysAddr: near,
    sizeBytes: near,
    userAddr: near,
    fdOffset: near,
  });
  fc.assert(
    fc.property(fc.array(region, { minLength: 1, maxLength: 8 }), (regions) => {
      const header = wire.MemoryTableHeader.encode({ count: regions.length, padding: 0 });
      const payload = Buffer.concat([header, ...regions.map((r) => wire.MemoryRegion.encode(r))]);
      const legal = regions.every(
        (r) =>
          r.sizeBytes > 0n &&
          [r.guestPhysAddr, r.userAddr, r.fdOffset].every((at) => at + r.sizeBytes <= 2n ** 53n),
      );
      if (!legal) {
        assert.throws(() => parse.parsePayload(parse.memoryTablePayload, 'TEST', payload));
        return;
      }
      const parsed = parse.parsePayload(parse.memoryTablePayload, 'TEST', payload);
      assert.deepEqual(
        parsed,
        regions.map((r) => ({ ...r })),
      );
    }),
  );
});

test('rules: the fd of a vring message', () => {
  const of = (value: bigint) =>
    parse.parsePayload(parse.vringFdPayload, 'TEST', wire.U64Payload.encode({ value }));
  assert.deepEqual(of(0x12n), { index: 0x12, hasFd: true });
  assert.deepEqual(of(0x1ffn), { index: 0xff, hasFd: false });
  assert.throws(() => of(1n << 63n), { code: 'ERR_VRING_MESSAGE_VALUE', field: 'u64' });
});
