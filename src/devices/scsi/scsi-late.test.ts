/**
 * Commands that are under way: task management that waits for them, units that are full, errors of
 * the medium, a device that dies in between. The engine finishes when the test says so.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PrivateMemory } from '../../memory/index.ts';
import { DRAINING, type VringAttach } from '../../runtime/data-plane.ts';
import { createMemoryImage, openEngine } from '../../storage/index.ts';
import { EIO } from '../../sys/index.ts';
import { inflightQueueBytes } from '../../wire/inflight.ts';
import * as scsi from '../../wire/scsi.ts';
import * as virtio from '../../wire/virtio-scsi.ts';
import { PACKED_BASE_FRESH } from '../../wire/virtio.ts';
import { LateEngine } from '../disk/late-engine.ts';
import { cdb, type ScsiAnswer, ScsiFixture, type Sent } from './scsi-fixture.ts';

const NONE = new Uint8Array(0);
const filled = (value: number, size: number): Uint8Array => new Uint8Array(size).fill(value);
const write = (lba: number): Uint8Array => cdb(scsi.WRITE_10, 10, [2, 4, lba], [7, 2, 1]);
const read = (lba: number): Uint8Array => cdb(scsi.READ_10, 10, [2, 4, lba], [7, 2, 1]);

/** Two units of target 0, whose engines are late. */
function late(
  packed = false,
  room = 64,
  inflight: (index: number) => VringAttach['inflight'] = () => null,
): { f: ScsiFixture; engines: LateEngine[] } {
  const engines: LateEngine[] = [];
  const units = [0, 1].map((lun) => ({ target: 0, lun, image: createMemoryImage(1 << 20) }));
  const f = new ScsiFixture({
    units,
    packed,
    queues: 3,
    inflight,
    open: (spec) => {
      engines.push(new LateEngine(openEngine(spec), room, 1000 + engines.length));
      return engines.at(-1)!;
    },
  });
  return { f: f.ready(), engines };
}

function finish(f: ScsiFixture, engine: LateEngine, index = 0, status = 0): void {
  engine.finish(index, status);
  f.plane.ready(f.watched.get(engine.completionFd)!, performance.now());
  f.poll();
}

const waits = (f: ScsiFixture, sent: Sent): boolean => f.answerOf(sent) === null;

for (const packed of [false, true]) {
  const ring = packed ? 'packed' : 'split';

  test(`${ring}: ABORT TASK is answered when the task has ended`, async () => {
    const { f, engines } = late(packed);
    const first = f.send(0, 0, write(1), filled(1, 512));
    const second = f.send(0, 0, write(2), filled(2, 512), 0, 1);
    f.poll();
    const query = f.task(virtio.VIRTIO_SCSI_T_TMF_QUERY_TASK, 0, 0, second.tag);
    assert.equal(query.answer(), virtio.VIRTIO_SCSI_S_FUNCTION_SUCCEEDED);
    const abort = f.task(virtio.VIRTIO_SCSI_T_TMF_ABORT_TASK, 0, 0, second.tag);
    assert.equal(abort.answer(), null);
    const isFirst = engines[0]!.held.findIndex((batch) => batch.at[0] === 512);
    finish(f, engines[0]!, isFirst);
    assert.equal(f.answerOf(first)?.response, 0);
    assert.equal(abort.answer(), null);
    finish(f, engines[0]!, 0);
    assert.equal(f.answerOf(second)?.response, virtio.VIRTIO_SCSI_S_ABORTED);
    assert.equal(abort.answer(), virtio.VIRTIO_SCSI_S_OK);
    const again = f.task(virtio.VIRTIO_SCSI_T_TMF_QUERY_TASK, 0, 0, second.tag);
    assert.equal(again.answer(), virtio.VIRTIO_SCSI_S_OK);
    await f.close();
  });

  test(`${ring}: LUN RESET ends the tasks of its unit, of all queues, and no other's`, async () => {
    const { f, engines } = late(packed);
    const mine = [0, 1].map((queue) => f.send(0, 0, write(queue), filled(1, 512), 0, queue));
    const other = f.send(0, 1, write(0), filled(1, 512));
    // None of them was taken yet: the function sees to that.
    const reset = f.task(virtio.VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, 0, 0);
    assert.equal(reset.answer(), null);
    finish(f, engines[0]!, 1);
    finish(f, engines[0]!, 0);
    assert.equal(reset.answer(), virtio.VIRTIO_SCSI_S_OK);
    for (const one of mine) assert.equal(f.answerOf(one)?.response, virtio.VIRTIO_SCSI_S_RESET);
    assert.ok(waits(f, other));
    finish(f, engines[1]!);
    assert.equal(f.answerOf(other)?.response, 0);
    const attention = f.command(0, 0, cdb(0, 6)).sense;
    assert.deepEqual([attention?.key, attention?.asc, attention?.ascq], [6, 0x29, 3]);
    await f.close();
  });
}

test('functions of a whole target, and those that are refused', async () => {
  const { f, engines } = late();
  const sent = [0, 1].map((lun) => f.send(0, lun, read(0), NONE, 512));
  const nexus = f.task(virtio.VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET, 0, 0);
  assert.equal(nexus.answer(), null);
  finish(f, engines[0]!);
  finish(f, engines[1]!);
  assert.equal(nexus.answer(), 0);
  for (const one of sent) assert.equal(f.answerOf(one)?.response, virtio.VIRTIO_SCSI_S_RESET);
  const rejected = f.task(virtio.VIRTIO_SCSI_T_TMF_CLEAR_ACA, 0, 0);
  assert.equal(rejected.answer(), virtio.VIRTIO_SCSI_S_FUNCTION_REJECTED);
  const set = f.task(virtio.VIRTIO_SCSI_T_TMF_QUERY_TASK_SET, 0, 1);
  assert.equal(set.answer(), virtio.VIRTIO_SCSI_S_OK);
  const lun = f.task(virtio.VIRTIO_SCSI_T_TMF_ABORT_TASK_SET, 0, 9);
  assert.equal(lun.answer(), virtio.VIRTIO_SCSI_S_INCORRECT_LUN);
  const target = f.task(virtio.VIRTIO_SCSI_T_TMF_ABORT_TASK_SET, 5, 0);
  assert.equal(target.answer(), virtio.VIRTIO_SCSI_S_BAD_TARGET);
  await f.close();
});

test('a unit that is full says so, and its neighbour goes on', async () => {
  const { f, engines } = late(false, 1);
  const sent = Array.from({ length: 150 }, (_, i) => {
    return f.send(0, 0, write(i), filled(i, 512), 0, Math.floor(i / 60));
  });
  f.poll();
  assert.equal(f.status().units[0]!.underWay, 128);
  const neighbour = f.send(0, 1, write(0), filled(1, 512));
  f.poll();
  finish(f, engines[1]!);
  assert.equal(f.answerOf(neighbour)?.status, 0);
  while (engines[0]!.held.length > 0) finish(f, engines[0]!);
  const statuses = sent.map((one) => f.answerOf(one)?.status);
  const full = statuses.filter((status) => status === scsi.STATUS_TASK_SET_FULL);
  assert.deepEqual([full.length, f.status().totals['taskSetFull']], [22, 22]);
  assert.equal(statuses.filter((status) => status === 0).length, 128);
  assert.equal(f.status().units[0]!.underWay, 0);
  await f.close();
});

test('an error of the medium: sense, place, event', async () => {
  const { f, engines } = late();
  const outcomes: [Uint8Array, number, number, string][] = [
    [read(7), 512, -EIO, '3/11/0'],
    [write(8), 0, -EIO, '3/c/0'],
    [write(9), 0, -28, '7/27/7'],
    [write(10), 0, -110, '4/8/1'],
  ];
  for (const [command, inBytes, errno, expected] of outcomes) {
    const sent = f.send(0, 0, command, inBytes > 0 ? NONE : filled(1, 512), inBytes);
    f.poll();
    finish(f, engines[0]!, 0, errno);
    const { sense, residual, data } = f.answerOf(sent) as ScsiAnswer;
    const { key, asc, ascq, information } = sense!;
    assert.equal([key, asc, ascq].map((code) => code.toString(16)).join('/'), expected);
    assert.deepEqual([information, residual, data.length], [command[5], 512, 0]);
  }
  assert.equal(f.status().errors, 4);
  assert.equal(f.events[0]?.kind, 'io-error');
  await f.close();
});

test('commands that work on the medium wait for their engine, and for nobody else', async () => {
  const { f, engines } = late(false, 2);
  const before = f.send(0, 0, write(0), filled(1, 512));
  f.poll();
  assert.ok(waits(f, before));
  // settle() finishes what is held.
  const verified = f.command(0, 0, cdb(scsi.VERIFY_10, 10, [1, 1, 2], [7, 2, 1]), filled(1, 512));
  assert.equal(verified.status, 0);
  assert.equal(f.answerOf(before)?.status, 0);
  assert.equal(engines[0]!.held.length, 0);
  await f.close();
});

test('what a VERIFY reads does not get among what COMPARE AND WRITE goes by', async () => {
  const { f, engines } = late();
  const [engine] = engines as [LateEngine];
  // The youngest first: data of the VERIFY comes when that of the others is there.
  engine.settle = () => {
    while (engine.held.length > 0) engine.finish(engine.held.length - 1);
  };
  for (const [lba, value] of [
    [0, 1],
    [5, 2],
  ] as const) {
    f.send(0, 0, write(lba), filled(value, 512));
    f.poll();
    finish(f, engine);
  }
  const verified = f.send(0, 0, cdb(scsi.VERIFY_10, 10, [2, 4, 5], [7, 2, 1]));
  f.poll();
  assert.equal(engine.held.length, 1);
  const swap = cdb(scsi.COMPARE_AND_WRITE, 16, [13, 1, 1]);
  const both = Buffer.concat([filled(1, 512), filled(3, 512)]);
  assert.equal(f.command(0, 0, swap, both).status, 0);
  assert.equal(f.answerOf(verified)?.status, 0);
  const sent = f.send(0, 0, read(0), NONE, 512);
  f.poll();
  finish(f, engine);
  assert.deepEqual(f.answerOf(sent)?.data, filled(3, 512));
  await f.close();
});

test('a unit leaves when nothing is under way', async () => {
  const { f, engines } = late();
  const sent = f.send(0, 1, write(0), filled(1, 512));
  f.poll();
  const remove = (): unknown => f.plane.command('removeUnit', { device: 0, target: 0, lun: 1 });
  assert.equal(remove(), false);
  assert.equal(f.command(0, 1, cdb(0, 6)).sense?.asc, 0x25);
  finish(f, engines[1]!);
  assert.equal(f.answerOf(sent)?.status, 0);
  assert.equal(remove(), true);
  assert.equal(f.status().units.length, 1);
  await f.close();
});

test('a ring is let go of when its commands are done', async () => {
  const { f, engines } = late();
  const sent = f.send(0, 0, write(0), filled(1, 512));
  f.poll();
  assert.equal(f.plane.detachVring(0, 2), DRAINING);
  finish(f, engines[0]!);
  assert.equal(f.plane.detachVring(0, 2), 1 + 4); // four commands of `ready`
  assert.equal(f.answerOf(sent)?.status, 0);
  await f.close();
});

for (const packed of [false, true]) {
  const ring = packed ? 'packed' : 'split';

  test(`${ring}: a device that dies leaves its commands to the next one`, async () => {
    const sizeBytes = inflightQueueBytes(64, packed);
    const areas = [0, 1, 2, 3, 4].map(() => PrivateMemory.allocate(sizeBytes));
    const { f, engines } = late(packed, 64, (index) => {
      const { offset, handle } = areas[index]!;
      return { offset, handle, sizeBytes };
    });
    const sent = [0, 1, 2].map((i) => f.send(0, 0, write(i), filled(i + 1, 512)));
    f.poll();
    finish(f, engines[0]!, 1);
    assert.equal(f.answerOf(sent[1]!)?.status, 0);
    f.crash();
    const { usedCells } = f.queues[2]!.pair.driver;
    f.attach(2, packed ? PACKED_BASE_FRESH : usedCells[1]!);
    f.poll();
    // It is a device after power on, and says so once; what else was under way it carries out.
    const successor = engines[2]!;
    assert.equal(successor.held.length, 1);
    finish(f, successor);
    const answers = [sent[0]!, sent[2]!].map((one) => f.answerOf(one)!);
    assert.deepEqual(
      answers.map(({ status, sense }) => [status, sense?.asc]),
      [
        [2, 0x29],
        [0, undefined],
      ],
    );
    for (const engine of engines) engine.settle();
    for (const area of areas) area.close();
  });
}
