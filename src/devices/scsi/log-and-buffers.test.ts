/** LOG SENSE, READ BUFFER and WRITE BUFFER; and what a unit counts of its commands. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createMemoryImage } from '../../storage/index.ts';
import { EIO } from '../../sys/index.ts';
import * as scsi from '../../wire/scsi.ts';
import { filled, finish, late, NONE, read, write } from './late-fixture.ts';
import { cdb, type ScsiAnswer, ScsiFixture } from './scsi-fixture.ts';

function outcome({ response, status, sense }: ScsiAnswer): string {
  if (response !== 0 || sense === null) return `${response}/${status}`;
  return [sense.key, sense.asc, sense.field?.byte].join('/');
}

function one(): ScsiFixture {
  const units = [{ target: 0, lun: 0, image: createMemoryImage(1 << 20) }];
  return new ScsiFixture({ units }).ready();
}

function log(f: ScsiFixture, page: number, subpage = 0, control = 1, pointer = 0): ScsiAnswer {
  const place: [number, number, number][] = [
    [2, 1, (control << 6) | page],
    [3, 1, subpage],
    [5, 2, pointer],
    [7, 2, 512],
  ];
  return f.command(0, 0, cdb(scsi.LOG_SENSE, 10, ...place), NONE, 512);
}

/** Values of a log page by parameter. */
function values(f: ScsiFixture, page: number, pointer = 0): Record<number, number> {
  const { data } = log(f, page, 0, 1, pointer);
  assert.deepEqual([data[0], data[1]], [0x80 | page, 0]);
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  assert.equal(view.getUint16(2), data.length - 4);
  const found: Record<number, number> = {};
  for (let at = 4; at < data.length; at += 4 + data[at + 3]!) {
    const isLong = data[at + 3] === 8;
    const value = isLong ? Number(view.getBigUint64(at + 4)) : view.getUint32(at + 4);
    found[view.getUint16(at)] = value;
  }
  return found;
}

test('log pages count what was moved, and how often the unit was started', async () => {
  const f = one();
  assert.deepEqual([...log(f, 0).data], [0, 0, 0, 4, 0, 2, 3, 0x0e]);
  const all = [0x40, 0xff, 0, 8, 0, 0, 0, 0xff, 2, 0, 3, 0, 0x0e, 0];
  assert.deepEqual([...log(f, 0, 0xff).data], all.with(3, all.length - 4));
  for (let i = 0; i < 3; i++) f.command(0, 0, write(i), filled(1, 512));
  f.command(0, 0, read(0), NONE, 512);
  f.command(0, 0, cdb(scsi.READ_10, 10, [2, 4, 99999], [7, 2, 1]), NONE, 512); // refused
  assert.deepEqual(values(f, scsi.LOG_WRITE_ERRORS), { 5: 1536, 6: 0 });
  assert.deepEqual(values(f, scsi.LOG_READ_ERRORS), { 5: 512, 6: 0 });
  assert.deepEqual(values(f, scsi.LOG_READ_ERRORS, 6), { 6: 0 });
  for (const start of [0, 1, 1]) f.command(0, 0, cdb(scsi.START_STOP_UNIT, 6, [4, 1, start]));
  assert.deepEqual(values(f, scsi.LOG_START_STOP), { 4: 1 });
  assert.equal(outcome(log(f, 0x0d)), '5/36/2'); // no temperature
  assert.equal(outcome(log(f, 2, 1)), '5/36/3');
  assert.equal(outcome(log(f, 2, 0, 0)), '5/36/2'); // thresholds
  assert.equal(outcome(log(f, 2, 0, 1, 7)), '5/36/5');
  await f.close();
});

test('a unit counts what its medium failed, and how long it took; no other does', async () => {
  const { f, engines } = late();
  for (const [command, inBytes, status] of [
    [read(1), 512, -EIO],
    [write(1), 0, -EIO],
    [write(2), 0, 0],
    [cdb(scsi.SYNCHRONIZE_CACHE_10, 10), 0, 0],
  ] as const) {
    f.send(0, 0, command, inBytes > 0 || command[0] === 0x35 ? NONE : filled(1, 512), inBytes);
    f.poll();
    finish(f, engines[0]!, 0, status);
  }
  assert.deepEqual(values(f, scsi.LOG_READ_ERRORS), { 5: 0, 6: 1 });
  assert.deepEqual(values(f, scsi.LOG_WRITE_ERRORS), { 5: 512, 6: 1 });
  const [first, second] = f.status().units;
  const counts = Object.entries(first!.latency).map(([op, { count }]) => [op, count]);
  assert.deepEqual(Object.fromEntries(counts), { read: 0, write: 1, flush: 1, discard: 0 });
  assert.ok(first!.latency.write.sumUs > 0);
  assert.deepEqual([first!.errors, second!.errors, second!.latency.write.count], [2, 0, 0]);
  await f.close();
});

test('a batch for two units is counted by each', async () => {
  const { f, engines } = late();
  const sent = [0, 1, 1, 0].map((lun, i) => f.send(0, lun, write(i), filled(i, 512)));
  f.poll();
  for (const engine of engines) while (engine.held.length > 0) finish(f, engine);
  for (const each of sent) assert.equal(f.answerOf(each)?.status, 0);
  assert.deepEqual(
    f.status().units.map(({ latency }) => latency.write.count),
    [2, 2],
  );
  await f.close();
});

test('data and echo buffers give back what was written, until a reset', async () => {
  const f = one();
  const buffer = (opcode: number, mode: number, id: number, at: number, size: number): Uint8Array =>
    cdb(opcode, 10, [1, 1, mode], [2, 1, id], [3, 3, at], [6, 3, size]);
  const get = (mode: number, at: number, size: number, id = 0): ScsiAnswer =>
    f.command(0, 0, buffer(scsi.READ_BUFFER, mode, id, at, size), NONE, size);
  const put = (mode: number, at: number, data: Uint8Array, id = 0): string =>
    outcome(f.command(0, 0, buffer(scsi.WRITE_BUFFER, mode, id, at, data.length), data));
  assert.deepEqual([...get(3, 0, 4).data], [0, 1, 0, 0]);
  assert.deepEqual([...get(3, 0, 4, 1).data], [0, 0, 0, 0]);
  assert.deepEqual([...get(0x0b, 0, 4).data], [0, 0, 0x10, 0]);
  assert.deepEqual(get(2, 0, 512).data, filled(0, 512));
  const data = Uint8Array.from({ length: 65536 }, (_, i) => (i * 7 + (i >> 8)) & 0xff);
  assert.equal(put(2, 0, data), '0/0');
  assert.equal(put(2, 100, filled(9, 8)), '0/0');
  data.fill(9, 100, 108);
  assert.deepEqual(get(2, 0, 65536).data, data);
  assert.deepEqual(get(2, 65530, 512).data, data.subarray(65530));
  assert.equal(outcome(get(2, 65537, 1)), '5/36/3');
  assert.equal(outcome(get(2, 0, 1, 1)), '5/36/2');
  assert.equal(put(2, 65536, filled(1, 1)), '5/36/6');
  assert.equal(put(2, 0, filled(1, 1), 3), '5/36/2');
  for (const mode of [0, 4, 5, 7, 0x0d]) assert.equal(put(mode, 0, filled(1, 512)), '5/36/1');
  assert.equal(get(0x0a, 0, 64).sense?.asc, 0x2c); // nothing was written
  assert.equal(put(0x0a, 0, data.slice(0, 4096)), '0/0');
  assert.deepEqual(get(0x0a, 0, 4096).data, data.slice(0, 4096));
  assert.equal(put(0x0a, 0, filled(1, 4097)), '5/36/6');
  f.plane.resetDevice(0);
  f.ready();
  assert.deepEqual(get(2, 0, 512).data, filled(0, 512));
  assert.equal(get(0x0a, 0, 64).sense?.asc, 0x2c);
  await f.close();
});
