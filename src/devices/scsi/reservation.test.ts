/** Reservations, persistent and old: what is refused, what it changes, what a reset leaves. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createMemoryImage } from '../../storage/index.ts';
import * as scsi from '../../wire/scsi.ts';
import * as virtio from '../../wire/virtio-scsi.ts';
import { filled, finish, late, NONE, waits, write } from './late-fixture.ts';
import { cdb, type ScsiAnswer, ScsiFixture } from './scsi-fixture.ts';

const CONFLICT = 'status 24';

function outcome({ status, sense }: ScsiAnswer): string {
  if (sense !== null)
    return [sense.key, sense.asc, sense.ascq].map((n) => n.toString(16)).join('/');
  return status === 0 ? 'good' : `status ${status}`;
}

function parameters(key: bigint, actionKey: bigint, flags = 0): Uint8Array {
  const list = new Uint8Array(24);
  const view = new DataView(list.buffer);
  view.setBigUint64(0, key);
  view.setBigUint64(8, actionKey);
  list[20] = flags;
  return list;
}

class Client {
  readonly f: ScsiFixture;

  constructor(f: ScsiFixture) {
    this.f = f;
  }

  out(action: number, key: bigint, actionKey = 0n, type = 0, flags = 0): string {
    const bytes = cdb(scsi.PERSISTENT_RESERVE_OUT, 10, [1, 1, action], [2, 1, type], [5, 4, 24]);
    return outcome(this.f.command(0, 0, bytes, parameters(key, actionKey, flags)));
  }

  in(action: number, size = 512): Uint8Array {
    const bytes = cdb(scsi.PERSISTENT_RESERVE_IN, 10, [1, 1, action], [7, 2, size]);
    const answer = this.f.command(0, 0, bytes, NONE, size);
    assert.equal(outcome(answer), 'good');
    return answer.data;
  }

  /** Generation, keys, type of the reservation and its key. */
  state(): [number, bigint[], number, bigint | null] {
    const keys = new DataView(this.in(scsi.PR_READ_KEYS).buffer);
    const held = this.in(scsi.PR_READ_RESERVATION);
    const list = Array.from({ length: keys.getUint32(4) / 8 }, (_, i) =>
      keys.getBigUint64(8 + 8 * i),
    );
    const holder = held.length > 8 ? new DataView(held.buffer).getBigUint64(8) : null;
    return [keys.getUint32(0), list, held[21] ?? 0, holder];
  }

  old(opcode: number): string {
    return outcome(this.f.command(0, 0, cdb(opcode, opcode < 0x20 ? 6 : 10)));
  }
}

function one(): Client {
  const units = [{ target: 0, lun: 0, image: createMemoryImage(1 << 20) }];
  return new Client(new ScsiFixture({ units }).ready());
}

test('a key is registered, changed and taken back', async () => {
  const client = one();
  assert.deepEqual(client.state(), [0, [], 0, null]);
  assert.equal(client.out(scsi.PR_REGISTER, 5n, 6n), CONFLICT); // is not registered as 5
  assert.equal(client.out(scsi.PR_REGISTER, 0n, 0n), 'good');
  assert.deepEqual(client.state(), [0, [], 0, null]);
  assert.equal(client.out(scsi.PR_REGISTER, 0n, 0xabcdef0123456789n), 'good');
  assert.deepEqual(client.state(), [1, [0xabcdef0123456789n], 0, null]);
  assert.equal(client.out(scsi.PR_REGISTER, 1n, 2n), CONFLICT);
  assert.equal(client.out(scsi.PR_REGISTER, 0xabcdef0123456789n, 2n), 'good');
  assert.equal(client.out(scsi.PR_REGISTER_AND_IGNORE, 99n, 3n), 'good');
  assert.deepEqual(client.state(), [3, [3n], 0, null]);
  assert.equal(client.out(scsi.PR_REGISTER, 3n, 0n), 'good');
  assert.deepEqual(client.state(), [4, [], 0, null]);
  await client.f.close();
});

test('every type is reserved and released', async () => {
  const client = one();
  const { out } = { out: client.out.bind(client) };
  assert.equal(out(scsi.PR_RESERVE, 0n, 0n, 1), CONFLICT); // nobody who is registered
  assert.equal(out(scsi.PR_REGISTER, 0n, 7n), 'good');
  for (const type of [1, 3, 5, 6, 7, 8]) {
    assert.equal(out(scsi.PR_RESERVE, 8n, 0n, type), CONFLICT);
    assert.equal(out(scsi.PR_RESERVE, 7n, 0n, type), 'good');
    assert.equal(out(scsi.PR_RESERVE, 7n, 0n, type), 'good'); // once more is the same
    assert.equal(out(scsi.PR_RESERVE, 7n, 0n, type === 1 ? 3 : 1), CONFLICT);
    assert.deepEqual(client.state(), [1, [7n], type, type > 6 ? 0n : 7n]);
    assert.equal(outcome(client.f.command(0, 0, write(1), filled(1, 512))), 'good');
    assert.equal(out(scsi.PR_RELEASE, 7n, 0n, type === 1 ? 3 : 1), '5/26/4');
    const status = client.in(scsi.PR_READ_FULL_STATUS);
    assert.deepEqual([status.length, status[8 + 12], status[8 + 13]], [56, 1, type]);
    assert.equal(out(scsi.PR_RELEASE, 7n, 0n, type), 'good');
    assert.equal(out(scsi.PR_RELEASE, 7n, 0n, type), 'good'); // there is none
  }
  for (const type of [0, 2, 4, 9, 0x11]) {
    assert.equal(out(scsi.PR_RESERVE, 7n, 0n, type), '5/24/0', `type ${type}`);
  }
  assert.equal(out(scsi.PR_RESERVE, 7n, 0n, 5), 'good');
  assert.equal(out(scsi.PR_CLEAR, 7n), 'good');
  assert.deepEqual(client.state(), [2, [], 0, null]);
  await client.f.close();
});

test('PREEMPT: of itself, of all others, of nobody', async () => {
  const client = one();
  client.out(scsi.PR_REGISTER, 0n, 7n);
  client.out(scsi.PR_RESERVE, 7n, 0n, 1);
  assert.equal(client.out(scsi.PR_PREEMPT, 7n, 0n, 3), '5/26/0'); // whose?
  assert.equal(client.out(scsi.PR_PREEMPT, 7n, 9n, 3), CONFLICT); // no such key
  assert.equal(client.out(scsi.PR_PREEMPT, 7n, 7n, 2), '5/24/0');
  assert.equal(client.out(scsi.PR_PREEMPT, 7n, 7n, 8), 'good');
  assert.deepEqual(client.state(), [2, [7n], 8, 0n]);
  assert.equal(client.out(scsi.PR_PREEMPT, 7n, 0n, 5), 'good'); // all registrants: there is one
  assert.deepEqual(client.state(), [3, [7n], 5, 7n]);
  assert.equal(client.out(scsi.PR_RELEASE, 7n, 0n, 5), 'good');
  assert.equal(client.out(scsi.PR_PREEMPT, 7n, 7n), 'good'); // no reservation: only who registered
  assert.deepEqual(client.state(), [4, [], 0, null]);
  await client.f.close();
});

test('PREEMPT AND ABORT ends the commands that are under way', async () => {
  const { f, engines } = late();
  const out = (action: number, key: bigint, actionKey: bigint, type = 0) => {
    const bytes = cdb(scsi.PERSISTENT_RESERVE_OUT, 10, [1, 1, action], [2, 1, type], [5, 4, 24]);
    const sent = f.send(0, 0, bytes, parameters(key, actionKey));
    f.poll();
    return sent;
  };
  f.answerOf(out(scsi.PR_REGISTER, 0n, 7n));
  f.answerOf(out(scsi.PR_RESERVE, 7n, 0n, 1));
  const sent = [1, 2].map((lba) => f.send(0, 0, write(lba), filled(1, 512)));
  f.poll();
  const preempt = out(scsi.PR_PREEMPT_AND_ABORT, 7n, 7n, 3);
  finish(f, engines[0]!);
  assert.ok(waits(f, preempt));
  finish(f, engines[0]!);
  assert.equal(outcome(f.answerOf(preempt)!), 'good');
  for (const one of sent) assert.equal(f.answerOf(one)?.response, virtio.VIRTIO_SCSI_S_ABORTED);
  assert.equal(f.status().units[0]!.underWay, 0);
  await f.close();
});

test('what is wrong with PERSISTENT RESERVE is said, and what it can do', async () => {
  const client = one();
  for (const flags of [1, 4, 8])
    assert.equal(client.out(scsi.PR_REGISTER, 0n, 1n, 0, flags), '5/26/0');
  const short = cdb(scsi.PERSISTENT_RESERVE_OUT, 10, [5, 4, 16]);
  assert.equal(outcome(client.f.command(0, 0, short, new Uint8Array(16))), '5/1a/0');
  assert.deepEqual([...client.in(scsi.PR_REPORT_CAPABILITIES)], [0, 8, 0, 0x80, 0xea, 1, 0, 0]);
  assert.equal(client.in(scsi.PR_READ_KEYS, 4).length, 4);
  await client.f.close();
});

test('RESERVE and a registration exclude each other', async () => {
  const client = one();
  for (const [reserve, release] of [
    [scsi.RESERVE_6, scsi.RELEASE_6],
    [scsi.RESERVE_10, scsi.RELEASE_10],
  ] as const) {
    assert.equal(client.old(release), 'good');
    assert.equal(client.old(reserve), 'good');
    assert.equal(client.old(reserve), 'good');
    assert.equal(client.out(scsi.PR_REGISTER, 0n, 1n), CONFLICT);
    assert.equal(outcome(client.f.command(0, 0, cdb(0, 6))), 'good');
    assert.equal(client.old(release), 'good');
    assert.equal(client.out(scsi.PR_REGISTER, 0n, 1n), 'good');
    assert.equal(client.old(reserve), CONFLICT);
    assert.equal(client.out(scsi.PR_REGISTER, 1n, 0n), 'good');
  }
  const third = cdb(scsi.RESERVE_6, 6, [1, 1, 0x10]); // for somebody else
  assert.equal(outcome(client.f.command(0, 0, third)), '5/24/0');
  await client.f.close();
});

test('a reset of the unit ends RESERVE alone, power on ends all', async () => {
  const client = one();
  const { f } = client;
  client.out(scsi.PR_REGISTER, 0n, 7n);
  client.out(scsi.PR_RESERVE, 7n, 0n, 6);
  for (const kind of [
    virtio.VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET,
    virtio.VIRTIO_SCSI_T_TMF_I_T_NEXUS_RESET,
  ]) {
    assert.equal(f.task(kind, 0, 0).answer(), 0);
    f.ready();
    assert.deepEqual(client.state(), [1, [7n], 6, 7n]);
  }
  f.plane.resetDevice(0);
  f.ready();
  assert.deepEqual(client.state(), [0, [], 0, null]);
  assert.equal(client.old(scsi.RESERVE_6), 'good');
  f.task(virtio.VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET, 0, 0);
  f.ready();
  assert.deepEqual(client.state(), [0, [], 0, null]);
  await f.close();
});
