/** The rules of zones, and what becomes of requests that break them. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { EIO } from '../../sys/index.ts';
import { LayerError } from '../layer/layer.ts';
import { AGAIN, BufferLayer, filled, freshZoned, ONCE, openZoned, ZONE } from './testing.ts';
import {
  ZONE_CLOSED,
  ZONE_EMPTY,
  ZONE_EXPLICIT_OPEN,
  ZONE_FULL,
  ZONE_IMPLICIT_OPEN,
  ZONE_NOT_WP,
  ZONE_OFFLINE,
  ZONE_READ_ONLY,
  ZoneError,
  type ZoneProblem,
} from './zone-types.ts';
import type { ZonedLayer } from './zoned-layer.ts';

const problem = (which: ZoneProblem) => (error: unknown) =>
  error instanceof ZoneError && error.problem === which;

const conditions = (layer: ZonedLayer): number[] =>
  layer.zones.report(0, 100).map(({ condition }) => condition);

const pointer = (layer: ZonedLayer, zone: number): number =>
  layer.zones.report(zone * ZONE, 1)[0]!.pointer - zone * ZONE;

const act = (layer: ZonedLayer, action: 'open' | 'close' | 'finish' | 'reset', zone: number) =>
  layer.zones.manage(action, zone * ZONE, { again: false });

async function read(layer: ZonedLayer, at: number, sizeBytes: number): Promise<Buffer> {
  const into = Buffer.alloc(sizeBytes, 0xa5);
  await layer.read(at, into);
  return into;
}

test('zones are written in order, read as zeros beyond, and reset', async () => {
  const { layer } = await freshZoned(4);
  assert.equal(layer.sizeBytes, 4 * ZONE);
  await layer.zones.write(ZONE, filled(1), ONCE);
  await layer.zones.write(ZONE + 4096, filled(2, 8192), ONCE);
  assert.equal(pointer(layer, 1), 12288);
  assert.deepEqual(conditions(layer), [1, ZONE_IMPLICIT_OPEN, 1, 1]);
  const got = await read(layer, ZONE, 16384);
  assert.deepEqual(got, Buffer.concat([filled(1), filled(2, 8192), filled(0)]));
  await act(layer, 'reset', 1);
  assert.deepEqual(conditions(layer), [1, 1, 1, 1]);
  assert.deepEqual(await read(layer, ZONE, 16384), filled(0, 16384), 'though it was discarded');
  await layer.zones.write(ZONE, filled(3), ONCE);
  assert.deepEqual(await read(layer, ZONE, 8192), Buffer.concat([filled(3), filled(0)]));
});

test('appends say where they went, many at a time', async () => {
  const { layer } = await freshZoned(2);
  const places = await Promise.all(
    [1, 2, 3, 4].map((value) => layer.zones.append(ZONE, filled(value), ONCE, null)),
  );
  assert.deepEqual(
    places,
    [0, 1, 2, 3].map((i) => ZONE + 4096 * i),
  );
  assert.equal((await read(layer, ZONE + 8192, 4096))[0], 3);
});

test('requests that break the rules change nothing', async () => {
  const { layer } = await freshZoned(6, { conventional: 2, capacityBytes: ZONE - 8192 });
  const { zones } = layer;
  await zones.write(2 * ZONE, filled(1), ONCE);
  const at = 2 * ZONE;
  const cases: [string, ZoneProblem, () => Promise<unknown>][] = [
    ['behind the pointer', 'unaligned', () => zones.write(at, filled(9), ONCE)],
    ['before the pointer', 'unaligned', () => zones.write(at + 8192, filled(9), ONCE)],
    ['no whole granule', 'unaligned', () => zones.write(at + 4096, filled(9, 512), ONCE)],
    ['append of no whole granule', 'unaligned', () => zones.append(at, filled(9, 512), ONCE, null)],
    ['over the capacity', 'invalid', () => zones.write(at + 4096, filled(9, ZONE - 8192), ONCE)],
    ['into the next zone', 'invalid', () => zones.write(at + 4096, filled(9, ZONE), ONCE)],
    [
      'append over the capacity',
      'invalid',
      () => zones.append(at, filled(9, ZONE - 8192), ONCE, null),
    ],
    [
      'append that is too large',
      'invalid',
      () => zones.append(at, filled(9, 2 * ZONE), ONCE, null),
    ],
    ['append into the middle', 'invalid', () => zones.append(at + 4096, filled(9), ONCE, null)],
    ['append to a conventional zone', 'invalid', () => zones.append(0, filled(9), ONCE, null)],
    ['from conventional zones on', 'invalid', () => zones.write(at - 4096, filled(9, 8192), ONCE)],
    ['read over two zones', 'invalid', () => zones.read(at + ZONE - 512, Buffer.alloc(1024))],
    ['reset of a conventional zone', 'invalid', () => act(layer, 'reset', 0)],
    ['not the first byte', 'invalid', () => zones.manage('open', at + 512, { again: false })],
    ['close of an empty zone', 'invalid', () => act(layer, 'close', 3)],
    ['behind the disk', 'invalid', () => zones.manage('reset', 6 * ZONE, { again: false })],
  ];
  for (const [what, which, ask] of cases) await assert.rejects(ask(), problem(which), what);
  assert.equal(pointer(layer, 2), 4096);
  assert.deepEqual(conditions(layer), [0, 0, ZONE_IMPLICIT_OPEN, 1, 1, 1]);
  assert.deepEqual(await read(layer, at, 8192), Buffer.concat([filled(1), filled(0)]));
  await zones.write(ZONE - 4096, filled(7, 8192), ONCE);
  await zones.write(0, filled(8), ONCE);
  assert.equal((await read(layer, ZONE, 1))[0], 7, 'conventional zones are a plain disk');
  await assert.rejects(layer.zero(at, 4096, { unmap: false, fua: false }), LayerError);
  await assert.rejects(layer.resize(ZONE), { code: 'ERR_VRING_DISK_RESIZE' });
});

test('a zone is full at its capacity, or when it is finished', async () => {
  const { layer } = await freshZoned(3, { capacityBytes: 8192 });
  await layer.zones.write(0, filled(1, 8192), ONCE);
  await layer.zones.write(ZONE, filled(2), ONCE);
  await act(layer, 'finish', 1);
  await act(layer, 'finish', 1);
  assert.deepEqual(conditions(layer), [ZONE_FULL, ZONE_FULL, ZONE_EMPTY]);
  assert.deepEqual(await read(layer, ZONE, 8192), Buffer.concat([filled(2), filled(0)]));
  await assert.rejects(layer.zones.write(ZONE + 4096, filled(3), ONCE), problem('invalid'));
  await assert.rejects(layer.zones.append(0, filled(3), ONCE, null), problem('invalid'));
  await assert.rejects(act(layer, 'open', 0), problem('invalid'));
  await layer.zones.manage('reset-all', 0, { again: false });
  assert.deepEqual(conditions(layer), [ZONE_EMPTY, ZONE_EMPTY, ZONE_EMPTY]);
});

test('limits: those opened by writes are closed, those opened by hand are not', async () => {
  const { layer } = await freshZoned(8, { maxOpen: 2, maxActive: 4 });
  const write = (zone: number) =>
    layer.zones.write(zone * ZONE + pointer(layer, zone), filled(zone), ONCE);
  for (const zone of [0, 1, 2]) await write(zone);
  const [closed, open] = [ZONE_CLOSED, ZONE_IMPLICIT_OPEN];
  assert.deepEqual(conditions(layer).slice(0, 3), [closed, open, open], 'the oldest gave way');
  await act(layer, 'open', 1);
  await act(layer, 'open', 3);
  assert.deepEqual(conditions(layer).slice(0, 4), [closed, 3, closed, ZONE_EXPLICIT_OPEN]);
  await assert.rejects(write(0), problem('open-limit'));
  await assert.rejects(act(layer, 'open', 2), problem('open-limit'));
  await assert.rejects(write(4), problem('active-limit'), 'both are exceeded: active it is');
  await act(layer, 'close', 3);
  assert.equal(conditions(layer)[3], ZONE_EMPTY, 'nothing was written there');
  await write(4);
  await assert.rejects(write(5), problem('active-limit'));
  await act(layer, 'finish', 4);
  await write(5);
  const { zones_open, zones_active, zones_full } = layer.counters();
  assert.deepEqual([zones_open, zones_active, zones_full], [2, 4, 1]);
});

test('zones that are given up', async () => {
  const { layer, below } = await freshZoned(4, { conventional: 1 });
  for (const zone of [1, 2]) await layer.zones.write(zone * ZONE, filled(zone), ONCE);
  await layer.control('zone', { zone: 1, condition: 'read-only' });
  await layer.control('zone', { zone: 2, condition: 'offline' });
  await assert.rejects(layer.control('zone', { zone: 0, condition: 'offline' }), /sequential/);
  await assert.rejects(layer.control('zone', { zone: 1, condition: 'full' }), /expected read-only/);
  for (const again of [false, true]) {
    const zoned = again ? await openZoned(below) : layer;
    assert.deepEqual(conditions(zoned), [ZONE_NOT_WP, ZONE_READ_ONLY, ZONE_OFFLINE, ZONE_EMPTY]);
    assert.equal((await read(zoned, ZONE, 1))[0], 1);
    await assert.rejects(read(zoned, 2 * ZONE, 512), problem('invalid'));
    for (const zone of [1, 2]) {
      await assert.rejects(
        zoned.zones.write(zone * ZONE + 4096, filled(9), ONCE),
        problem('invalid'),
      );
      await assert.rejects(
        zoned.zones.append(zone * ZONE, filled(9), ONCE, null),
        problem('invalid'),
      );
      await assert.rejects(act(zoned, 'reset', zone), problem('invalid'));
    }
    await zoned.zones.manage('reset-all', 0, { again: false });
  }
});

test('a write that fails takes along those behind it, and the pointer goes back', async () => {
  const { layer, below } = await freshZoned(2);
  await layer.zones.write(0, filled(1), ONCE);
  let broken = 1;
  below.onWrite = (_, sizeBytes) => {
    if (sizeBytes === 8192 && broken-- > 0) throw new LayerError(EIO, 'a bad block');
  };
  const results = await Promise.allSettled([
    layer.zones.write(4096, filled(2), ONCE),
    layer.zones.write(8192, filled(3, 8192), ONCE),
    layer.zones.write(16384, filled(4), ONCE),
    layer.zones.append(0, filled(5), ONCE, null),
  ]);
  const states = results.map((result) => (result.status === 'rejected' ? result.reason : null));
  assert.deepEqual(
    states.map((error) => (error as ZoneError | null)?.problem ?? null),
    [null, null, 'unaligned', 'unaligned'],
  );
  assert.match(states[1].message, /a bad block/);
  assert.equal(pointer(layer, 0), 8192);
  await layer.zones.write(8192, filled(6), ONCE);
  const again = await openZoned(below);
  assert.equal(pointer(again, 0), 12288);
  assert.deepEqual(await read(again, 8192, 8192), Buffer.concat([filled(6), filled(0)]));
});

test('a log that cannot be written answers no more writes', async () => {
  const { layer, below } = await freshZoned(2);
  await layer.zones.write(0, filled(1), ONCE);
  below.onWrite = (at) => {
    if (at < 2 ** 20) throw new LayerError(EIO, 'no log');
  };
  await assert.rejects(layer.zones.write(4096, filled(2), ONCE), /no log/);
  below.onWrite = null;
  await assert.rejects(layer.zones.write(4096, filled(2), ONCE), /no log/);
  await assert.rejects(act(layer, 'reset', 0), /no log/);
  assert.equal(pointer(layer, 0), 4096);
  const again = await openZoned(below);
  await again.zones.write(4096, filled(3), ONCE);
});

test('what was begun before a crash is done once', async () => {
  const { layer, below } = await freshZoned(2);
  const tag = { queue: 1, order: 7_000_000_001 };
  assert.equal(await layer.zones.append(0, filled(1), ONCE, tag), 0);
  await layer.zones.write(4096, filled(2), ONCE);
  const next = await openZoned(below);
  assert.equal(await next.zones.append(0, filled(1), AGAIN, tag), 0, 'it is there');
  await next.zones.write(4096, filled(2), AGAIN);
  assert.equal(pointer(next, 0), 8192);
  await assert.rejects(next.zones.write(4096, filled(9), AGAIN), problem('unaligned'));
  await assert.rejects(next.zones.write(4096, filled(2), ONCE), problem('unaligned'));
  const other = { queue: 1, order: 7_000_000_002 };
  assert.equal(await next.zones.append(0, filled(1), AGAIN, other), 8192, 'it was not begun');
  await next.zones.manage('close', 0, AGAIN);
  await next.zones.manage('reset', 0, AGAIN);
  await next.zones.manage('close', 0, AGAIN);
  const { zone_writes_recognised } = next.counters();
  assert.equal(zone_writes_recognised, 2);
  const last = await openZoned(below);
  assert.equal(await last.zones.append(0, filled(1), AGAIN, tag), 0, 'known for longer than a log');
});

test('a table that is half written leaves the one before it', async () => {
  const below = new BufferLayer(Buffer.alloc(2 ** 20 + 2 * ZONE));
  for (let opened = 0; opened < 4; opened++) {
    let last = { at: 0, sizeBytes: 0 };
    below.onWrite = (at, sizeBytes) => void (last = { at, sizeBytes });
    const layer = await openZoned(below, { zoneBytes: ZONE });
    const torn = Buffer.from(below.bytes);
    torn.fill(0xee, last.at + 16, last.at + last.sizeBytes); // what opening wrote last is a table
    const again = await openZoned(new BufferLayer(torn));
    assert.deepEqual(conditions(again), conditions(layer), `opened ${opened} times before`);
    assert.equal(pointer(again, 1), 4096 * opened);
    await layer.zones.append(ZONE, filled(opened), ONCE, null);
  }
});

test('only a medium that is blank or zoned is taken', async () => {
  const blank = () => new BufferLayer(Buffer.alloc(2 ** 20 + 4 * ZONE));
  await assert.rejects(openZoned(blank()), /say how large its zones are: zoned:64M/);
  const cases: [object, RegExp][] = [
    [{ zoneBytes: 100_000 }, /power of two/],
    [{ zoneBytes: ZONE, capacityBytes: ZONE + 4096 }, /capacity=/],
    [{ zoneBytes: ZONE, conventional: 4 }, /room for 4 zones/],
    [{ zoneBytes: 2 ** 20 }, /room for 0 zones/],
    [{ zoneBytes: ZONE, maxOpen: 5, maxActive: 4 }, /open=5 is more than active=4/],
    [{ zoneBytes: ZONE, maxOpen: 1.5 }, /open=1.5/],
    [{ zoneBytes: ZONE, granularityBytes: 3000 }, /granularity=3000/],
  ];
  for (const [spec, message] of cases) await assert.rejects(openZoned(blank(), spec), message);
  const used = blank();
  used.bytes[500_000] = 1;
  await assert.rejects(openZoned(used, { zoneBytes: ZONE }), /something at byte 499712/);
  const { below } = await freshZoned(4, { maxOpen: 3 });
  await assert.rejects(openZoned(below, { maxOpen: 4 }), /made with maxOpen 3, and 4 is asked for/);
  await openZoned(below, { zoneBytes: ZONE, maxOpen: 3 });
  const short = new BufferLayer(below.bytes.subarray(0, below.bytes.length - 512));
  await assert.rejects(openZoned(short), /needs 1310720 bytes, and there are 1310208/);
  below.bytes[40]! ^= 1;
  await assert.rejects(openZoned(below), { code: 'ERR_VRING_ZONED_FORMAT', message: /damaged/ });
});
