/**
 * Commands that are under way: task management that waits for them, units that are full, errors of
 * the medium, a device that dies in between. The engine finishes when the test says so.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PrivateMemory } from '../../memory/index.ts';
import { DRAINING } from '../../runtime/data-plane.ts';
import { EIO } from '../../sys/index.ts';
import { inflightQueueBytes } from '../../wire/inflight.ts';
import * as scsi from '../../wire/scsi.ts';
import * as virtio from '../../wire/virtio-scsi.ts';
import { PACKED_BASE_FRESH } from '../../wire/virtio.ts';
import { filled, finish, late, NONE, read, waits, write } from './late-fixture.ts';
import { cdb, type ScsiAnswer } from './scsi-fixture.ts';

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
