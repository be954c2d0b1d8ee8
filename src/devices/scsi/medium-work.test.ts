/**
 * Commands that make requests of their own: what goes on meanwhile, what waits for them, and what
 * they wait for. The engine finishes when the test says so, in whatever order.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PrivateMemory } from '../../memory/index.ts';
import { createMemoryImage, IO_READ, IO_WRITE, openEngine } from '../../storage/index.ts';
import { EIO } from '../../sys/index.ts';
import * as scsi from '../../wire/scsi.ts';
import * as virtio from '../../wire/virtio-scsi.ts';
import type { LateEngine } from '../disk/late-engine.ts';
import { Command } from './command.ts';
import { CommandRules } from './command-rules.ts';
import { filled, finish, late, NONE, read, waits, write } from './late-fixture.ts';
import { WORK_MEMORY_BYTES } from './limits.ts';
import { HOLDING, Lun } from './lun.ts';
import { MediumWork } from './medium-work.ts';
import { ScsiFlight } from './scsi-vring.ts';
import { cdb, type ScsiAnswer, type ScsiFixture, type Sent } from './scsi-fixture.ts';

const KIB = 1024;

const swap = (lba: number): Uint8Array => cdb(scsi.COMPARE_AND_WRITE, 16, [2, 8, lba], [13, 1, 1]);
const pair = (from: number, to: number): Uint8Array =>
  Buffer.concat([filled(from, 512), filled(to, 512)]);

/** `w0 r5`: op and block of what the engine holds. */
const held = (engine: LateEngine): string =>
  engine.held.map(({ op, at }) => `${['r', 'w', 'f', 'd', 'z'][op[0]!]}${at[0]! / 512}`).join(' ');

/** Finishes all, in the order of `pick`. */
function drain(f: ScsiFixture, engine: LateEngine, pick = (_count: number): number => 0): void {
  while (engine.held.length > 0) finish(f, engine, pick(engine.held.length));
}

function block(f: ScsiFixture, engine: LateEngine, lba: number): number {
  const sent = f.send(0, 0, read(lba), NONE, 512);
  f.poll();
  drain(f, engine);
  const { data } = f.answerOf(sent) as ScsiAnswer;
  assert.ok(data.every((byte) => byte === data[0]));
  return data[0]!;
}

const codes = (answer: ScsiAnswer | null): string => {
  const { response, status, sense } = answer!;
  return sense === null
    ? `${response}/${status}`
    : `sense ${sense.key.toString(16)}/${sense.asc.toString(16)}`;
};

test('nobody waits for a command that works on the medium', async () => {
  const { f, engines } = late();
  const [engine, other] = engines as [LateEngine, LateEngine];
  const verify = f.send(0, 0, cdb(scsi.VERIFY_10, 10, [1, 1, 2], [7, 2, 1]), filled(0, 512));
  const neighbour = f.send(0, 1, write(0), filled(1, 512));
  const same = f.send(0, 0, write(9), filled(1, 512));
  f.poll();
  assert.equal(held(engine), 'w9 r0');
  finish(f, other);
  assert.equal(codes(f.answerOf(neighbour)), '0/0');
  finish(f, engine);
  assert.equal(codes(f.answerOf(same)), '0/0');
  assert.ok(waits(f, verify));
  assert.equal(f.status().units[0]!.underWay, 1);
  finish(f, engine);
  assert.equal(codes(f.answerOf(verify)), '0/0');
  assert.equal(f.status().units[0]!.underWay, 0);
  await f.close();
});

test('COMPARE AND WRITE holds its blocks: writes and others of its kind wait', async () => {
  const { f, engines } = late();
  const [engine] = engines as [LateEngine];
  const before = f.send(0, 0, write(3), filled(1, 512));
  f.poll();
  const first = f.send(0, 0, swap(3), pair(1, 2), 0, 1);
  f.poll();
  assert.equal(held(engine), 'w3'); // what came before has not ended
  finish(f, engine);
  assert.equal(codes(f.answerOf(before)), '0/0');
  assert.equal(held(engine), 'r3');
  const second = f.send(0, 0, swap(3), pair(2, 3));
  f.poll();
  const list = new Uint8Array(24);
  list.set([0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 2]); // blocks 2 and 3
  const others: Sent[] = [
    f.send(0, 0, write(3), filled(4, 512)),
    f.send(0, 0, cdb(scsi.UNMAP, 10, [7, 2, 24]), list),
    f.send(0, 0, cdb(scsi.WRITE_SAME_10, 10, [2, 4, 0], [7, 2, 4]), filled(6, 512), 0, 1),
  ];
  const free = [f.send(0, 0, write(4), filled(7, 512)), f.send(0, 0, read(3), NONE, 512)];
  f.poll();
  assert.equal(held(engine), 'r3 w4 r3');
  finish(f, engine, 1);
  finish(f, engine, 1);
  for (const one of free) assert.equal(codes(f.answerOf(one)), '0/0');
  finish(f, engine);
  assert.equal(held(engine), 'w3');
  assert.ok(waits(f, first));
  finish(f, engine);
  assert.equal(codes(f.answerOf(first)), '0/0');
  // The second of its kind came before the others, and goes before them.
  assert.equal(held(engine), 'r3');
  for (const one of others) assert.ok(waits(f, one));
  finish(f, engine);
  finish(f, engine);
  assert.equal(codes(f.answerOf(second)), '0/0');
  drain(f, engine);
  for (const one of others) assert.equal(codes(f.answerOf(one)), '0/0');
  assert.equal(f.status().units[0]!.underWay, 0);
  await f.close();
});

test('a counter that is incremented by COMPARE AND WRITE loses no increment', async () => {
  let seed = 7;
  const random = (below: number): number => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return (seed >>> 8) % below;
  };
  const { f, engines } = late(false, 8);
  const [engine] = engines as [LateEngine];
  let count = 0;
  for (let round = 0; round < 60; round++) {
    // Several try the same step at once, others write and verify what lies around.
    const tries = [0, 1, 2].map((queue) => {
      return f.send(0, 0, swap(5), pair(count & 0xff, (count + 1) & 0xff), 0, queue);
    });
    const around = [0, 1, 2].map((queue) => {
      const checks = cdb(scsi.WRITE_AND_VERIFY_10, 10, [1, 1, 2], [2, 4, 6 + queue], [7, 2, 1]);
      return f.send(0, 0, random(2) === 0 ? write(6) : checks, filled(round, 512), 0, queue);
    });
    f.poll();
    drain(f, engine, random);
    const won = tries.map((one) => codes(f.answerOf(one))).sort();
    assert.deepEqual(won, ['0/0', 'sense e/1d', 'sense e/1d'], `round ${round}`);
    for (const one of around) assert.equal(codes(f.answerOf(one)), '0/0');
    count++;
  }
  assert.equal(block(f, engine, 5), count & 0xff);
  await f.close();
});

test('two are under way, more wait, and each has scratch memory of its own', async () => {
  const { f, engines } = late();
  const [engine] = engines as [LateEngine];
  for (const lba of [0, 1, 2, 3]) {
    f.send(0, 0, write(lba), filled(lba + 1, 512));
    f.poll();
    drain(f, engine);
  }
  const verify = (lba: number, value: number): Sent =>
    f.send(0, 0, cdb(scsi.VERIFY_10, 10, [1, 1, 2], [2, 4, lba], [7, 2, 1]), filled(value, 512));
  const sent = [verify(0, 1), verify(1, 2), verify(2, 3), verify(3, 9)];
  f.poll();
  assert.equal(held(engine), 'r0 r1');
  // The second one's data come between the first one's data and its end.
  engine.finish(1);
  finish(f, engine);
  assert.equal(held(engine), 'r2 r3');
  drain(f, engine, (count) => count - 1);
  const outcomes = sent.map((one) => codes(f.answerOf(one)));
  assert.deepEqual(outcomes, ['0/0', '0/0', '0/0', 'sense e/1d']);
  await f.close();
});

test('long ones go piece by piece', async () => {
  const { f, engines } = late();
  const [engine] = engines as [LateEngine];
  const blocks = 2048;
  const sizeBytes = blocks * 512;
  const data = Uint8Array.from({ length: sizeBytes }, (_, i) => (i >> 9) & 0xff);
  const place: [number, number, number][] = [[7, 2, blocks]];
  const written = f.send(0, 0, cdb(scsi.WRITE_AND_VERIFY_10, 10, [1, 1, 2], ...place), data);
  f.poll();
  assert.deepEqual([engine.held.length, engine.held[0]!.size[0]], [1, KIB * KIB]);
  drain(f, engine);
  assert.equal(codes(f.answerOf(written)), '0/0');
  assert.equal(engine.carriedOut, 2);
  data[sizeBytes - 1]! ^= 1;
  const verified = f.send(0, 0, cdb(scsi.VERIFY_10, 10, [1, 1, 2], ...place), data, 0, 1);
  f.poll();
  drain(f, engine);
  const { sense } = f.answerOf(verified) as ScsiAnswer;
  assert.deepEqual([sense?.key, sense?.information], [scsi.KEY_MISCOMPARE, sizeBytes - 1]);
  await f.close();
});

test('errors of the medium end them, and are counted', async () => {
  const { f, engines } = late();
  const [engine] = engines as [LateEngine];
  const outcomes: [number, string][] = [
    [IO_READ, 'sense 3/11'],
    [IO_WRITE, 'sense 3/c'],
  ];
  for (const [op, expected] of outcomes) {
    const sent = f.send(0, 0, swap(7), pair(0, 1));
    f.poll();
    if (op === IO_WRITE) finish(f, engine);
    assert.equal(engine.held[0]!.op[0], op);
    finish(f, engine, 0, -EIO);
    const answer = f.answerOf(sent);
    assert.deepEqual([codes(answer), answer?.sense?.information], [expected, 7]);
  }
  assert.equal(f.status().errors, 2);
  assert.equal(block(f, engine, 7), 0);
  await f.close();
});

test('task functions end them: those that wait at once, the others after their step', async () => {
  const { f, engines } = late();
  const [engine] = engines as [LateEngine];
  const running = f.send(0, 0, swap(1), pair(0, 1));
  const waiting = f.send(0, 0, swap(1), pair(0, 2));
  const write1 = f.send(0, 0, write(1), filled(3, 512));
  f.poll();
  assert.equal(held(engine), 'w1'); // of its batch, and carried out first
  finish(f, engine);
  assert.equal(codes(f.answerOf(write1)), '0/0');
  const late1 = f.send(0, 0, write(1), filled(4, 512), 0, 2);
  f.poll();
  const { VIRTIO_SCSI_T_TMF_ABORT_TASK: ABORT, VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET: RESET } =
    virtio;
  for (const one of [waiting, late1]) {
    assert.equal(f.task(ABORT, 0, 0, one.tag).answer(), virtio.VIRTIO_SCSI_S_OK);
    assert.equal(f.answerOf(one)?.response, virtio.VIRTIO_SCSI_S_ABORTED);
  }
  const reset = f.task(RESET, 0, 0);
  assert.equal(reset.answer(), null);
  assert.equal(held(engine), 'r1');
  finish(f, engine);
  assert.equal(reset.answer(), virtio.VIRTIO_SCSI_S_OK);
  assert.equal(f.answerOf(running)?.response, virtio.VIRTIO_SCSI_S_RESET);
  assert.equal(engine.held.length, 0); // and nothing was written
  assert.equal(f.command(0, 0, cdb(0, 6)).sense?.asc, 0x29);
  assert.equal(block(f, engine, 1), 3);
  await f.close();
});

test('a unit that becomes smaller, and one that goes, wait for them', async () => {
  const { f, engines } = late();
  const [engine] = engines as [LateEngine];
  const first = f.send(0, 0, swap(1), pair(0, 1));
  const second = f.send(0, 0, swap(1), pair(1, 2));
  f.poll();
  const resized = { device: 0, target: 0, lun: 0, sizeBytes: 512 * 1024 };
  f.plane.command('resizeUnit', resized);
  assert.deepEqual(
    [first, second].map((one) => codes(f.answerOf(one))),
    ['0/0', '0/0'],
  );
  assert.equal(f.command(0, 0, cdb(0, 6)).sense?.asc, 0x2a);
  const third = f.send(0, 0, swap(1), pair(2, 3));
  f.poll();
  const remove = (): unknown => f.plane.command('removeUnit', { device: 0, target: 0, lun: 0 });
  assert.equal(remove(), false);
  drain(f, engine);
  assert.equal(codes(f.answerOf(third)), '0/0');
  assert.equal(remove(), true);
  await f.close();
});

test('over what a unit takes at once there is TASK SET FULL, held or not', async () => {
  const { f, engines } = late();
  const [engine] = engines as [LateEngine];
  const first = f.send(0, 0, swap(1), pair(0, 1));
  f.poll();
  const sent = Array.from({ length: 150 }, (_, i) => {
    return f.send(0, 0, write(1), filled(i, 512), 0, i % 3);
  });
  f.poll();
  assert.equal(held(engine), 'r1');
  assert.equal(f.status().units[0]!.underWay, 128);
  drain(f, engine);
  assert.equal(codes(f.answerOf(first)), '0/0');
  const statuses = sent.map((one) => f.answerOf(one)!.status);
  const full = statuses.filter((status) => status === scsi.STATUS_TASK_SET_FULL);
  assert.deepEqual([full.length, statuses.filter((status) => status === 0).length], [23, 127]);
  assert.equal(f.status().units[0]!.underWay, 0);
  await f.close();
});

test('what waits for a job that ends as it begins is not forgotten', () => {
  const memory = PrivateMemory.allocate(WORK_MEMORY_BYTES);
  const image = createMemoryImage(1 << 20);
  const engine = openEngine(image.spec);
  const lun = new Lun({ index: 0, target: 0, lun: 0, engine, blockBytes: 512, serial: '' });
  const flight = new ScsiFlight(0);
  let isGone = false;
  const ended: number[] = [];
  const work = new MediumWork(memory, {
    tasks: () => [],
    isVoid: () => isGone,
    ended: ({ row }) => void ended.push(row),
  });
  const command = new Command(new CommandRules(), work);
  command.lun = lun;
  work.add(command, {
    holds: { at: 0, sizeBytes: 512 },
    *steps() {
      isGone = true; // the guest's memory, for one, was found to be gone
      yield { op: IO_READ, at: 0, sizeBytes: 512, segments: [[memory.offset, 512]] };
    },
  });
  const [job] = lun.jobs;
  lun.held.push({ flight, row: 7, id: 7, requests: [], blockers: [job!] });
  work.advance(lun);
  assert.deepEqual(ended, [0, 7]);
  assert.deepEqual([lun.isWorking, lun.io.count, lun.state & HOLDING], [false, 0, 0]);
  work.close();
  memory.close();
  engine.close();
  void image.close();
});

test('at random: nothing gets between the two steps, and everything ends', async () => {
  const first = Date.now() >>> 0;
  for (let round = 0; round < 12; round++) {
    let seed = (first + round) >>> 0;
    const random = (below: number): number => {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      return Math.floor((seed / 2 ** 32) * below);
    };
    const text = `seed ${(first + round) >>> 0}`;
    const { f, engines } = late(round % 2 === 1, 2 + random(6));
    const [engine] = engines as [LateEngine];
    const order = new StepOrder();
    const sent: Sent[] = [];
    const functions: { answer: () => number | null }[] = [];
    for (let i = 0; i < 120; i++) {
      const lba = random(4);
      const queue = random(3);
      const kinds: (() => Sent)[] = [
        () => f.send(0, 0, swap(lba), pair(random(2), random(2)), 0, queue),
        () => f.send(0, 0, write(lba), filled(random(2), 512), 0, queue),
        () => f.send(0, 0, read(lba), NONE, 512, queue),
        () => {
          const same = cdb(scsi.WRITE_SAME_10, 10, [2, 4, lba], [7, 2, 2]);
          return f.send(0, 0, same, filled(random(2), 512), 0, queue);
        },
      ];
      if (sent.length - order.answered < 40) sent.push(kinds[random(kinds.length)]!());
      f.poll();
      if (random(16) === 0) {
        const { tag } = sent[random(sent.length)]!;
        functions.push(f.task(virtio.VIRTIO_SCSI_T_TMF_ABORT_TASK, 0, 0, tag));
      }
      if (engine.held.length > 0 && random(3) > 0) {
        const which = random(engine.held.length);
        order.note(engine.held[which]!, text);
        finish(f, engine, which);
      }
      order.answered = sent.length - f.status().units[0]!.underWay;
    }
    while (engine.held.length > 0) {
      const which = random(engine.held.length);
      order.note(engine.held[which]!, text);
      finish(f, engine, which);
    }
    for (const one of sent) assert.notEqual(f.answerOf(one), null, text);
    for (const one of functions) assert.equal(one.answer(), 0, text);
    assert.equal(f.status().units[0]!.underWay, 0, text);
    assert.ok(order.swaps > 0, text);
    await f.close();
  }
});

/** Of what an engine carries out: between the read and the write of a COMPARE AND WRITE. */
class StepOrder {
  answered = 0;
  swaps = 0;
  /** Block that a job has read, and whether somebody has changed it since; by id. */
  readonly #read = new Map<number, { lba: number; isChanged: boolean }>();

  note({ id, op, at, size }: LateEngine['held'][number], text: string): void {
    const [job, lba, blocks] = [id[0]!, at[0]! / 512, size[0]! / 512];
    if (op[0] === IO_READ) {
      if (job < 0) this.#read.set(job, { lba, isChanged: false });
      return;
    }
    const own = blocks === 1 ? this.#read.get(job) : undefined;
    if (job < 0 && own !== undefined) {
      assert.deepEqual([own.lba, own.isChanged], [lba, false], text);
      this.swaps++;
    }
    for (const [other, block] of this.#read) {
      const isThere = block.lba >= lba && block.lba < lba + blocks;
      if (other !== job && isThere) block.isChanged = true;
    }
  }
}
