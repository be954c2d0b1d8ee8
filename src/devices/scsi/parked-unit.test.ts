/** A unit whose image is exchanged, or goes to another process: what its driver sees of it. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createMemoryImage } from '../../storage/index.ts';
import { EIO } from '../../sys/index.ts';
import * as scsi from '../../wire/scsi.ts';
import { filled, finish, late, NONE, read, waits, write } from './late-fixture.ts';
import { cdb, type ScsiFixture } from './scsi-fixture.ts';
import type { UnitStatus } from './scsi-plane.ts';

const UNIT = { device: 0, target: 0, lun: 0 };
const TEST_UNIT_READY = cdb(0, 6);

const status = (f: ScsiFixture): UnitStatus => f.plane.command('unitStatus', UNIT) as UnitStatus;
const park = (f: ScsiFixture): unknown => f.plane.command('parkUnit', UNIT);

test('a parked unit ends what it began, and has its driver come again', async () => {
  const { f, engines } = late();
  const begun = f.send(0, 0, write(1), filled(1, 512));
  f.poll();
  assert.equal(park(f), false, 'a command is under way');
  for (const command of [read(0), TEST_UNIT_READY, cdb(scsi.INQUIRY, 6, [3, 2, 36])]) {
    const answer = f.command(0, 0, command, NONE, 512);
    assert.deepEqual([answer.status, answer.sense], [scsi.STATUS_TASK_SET_FULL, null]);
  }
  const other = f.send(0, 1, write(1), filled(1, 512));
  f.poll();
  finish(f, engines[1]!);
  assert.equal(f.answerOf(other)?.status, 0, 'its neighbour is not');
  assert.ok(waits(f, begun));
  finish(f, engines[0]!);
  assert.equal(f.answerOf(begun)?.status, 0);
  assert.equal(park(f), true);
  assert.equal(status(f).totals['writes'], 1);

  const larger = createMemoryImage(2 << 20);
  f.plane.command('unparkUnit', { ...UNIT, image: larger.spec, failedFlush: 0 });
  assert.equal(status(f).totals['writes'], 0, 'it counts anew');
  const attention = f.command(0, 0, TEST_UNIT_READY).sense;
  assert.deepEqual([attention?.key, attention?.asc, attention?.ascq], [6, 0x2a, 9]);
  const behind = f.send(0, 0, read(4095), NONE, 512);
  f.poll();
  finish(f, engines.at(-1)!);
  assert.equal(f.answerOf(behind)?.status, 0);
  await f.close();
});

test('a unit that is added with a state is the one that was', async () => {
  const { f } = late();
  assert.equal(f.command(0, 0, cdb(scsi.RESERVE_6, 6)).status, 0);
  assert.equal(park(f), true);
  const { state } = status(f);
  assert.equal(f.plane.command('removeUnit', UNIT), true);
  const image = createMemoryImage(1 << 20);
  const add = { ...UNIT, image: image.spec, blockBytes: 512, serial: '', state };
  f.plane.command('addUnit', JSON.parse(JSON.stringify(add)));
  assert.deepEqual(status(f).state, state);
  const { status: ready, sense } = f.command(0, 0, TEST_UNIT_READY);
  assert.deepEqual([ready, sense], [0, null], 'no unit attention');
  const out = filled(0, 24);
  const keys = cdb(scsi.PERSISTENT_RESERVE_OUT, 10, [8, 1, 24]);
  assert.equal(f.command(0, 0, keys, out).status, scsi.STATUS_RESERVATION_CONFLICT);
  await f.close();
});

test('a flush that failed fails with the next image too, unless it is forgiven', async () => {
  const { f, engines } = late();
  const flush = (engine: number, result: number): number => {
    const sent = f.send(0, 0, cdb(scsi.SYNCHRONIZE_CACHE_10, 10));
    f.poll();
    finish(f, engines.at(engine)!, 0, result);
    return f.answerOf(sent)!.status;
  };
  assert.equal(flush(0, -EIO), scsi.STATUS_CHECK_CONDITION);
  for (const [forgiven, expected] of [
    [false, scsi.STATUS_CHECK_CONDITION],
    [true, 0],
  ] as const) {
    assert.equal(park(f), true);
    const failedFlush = forgiven ? 0 : status(f).failedFlush;
    const { spec: image } = createMemoryImage(1 << 20);
    f.plane.command('unparkUnit', { ...UNIT, image, failedFlush });
    assert.equal(flush(-1, 0), expected);
  }
  const { errors, lastError } = status(f);
  assert.deepEqual([errors, lastError], [0, null]);
  await f.close();
});
