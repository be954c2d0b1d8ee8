/** Commands of a driver of our own, over both ring formats, against disks in memory. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createMemoryImage, type DiskImage } from '../../storage/index.ts';
import { VIRTIO_SCSI_F_HOTPLUG } from '../../wire/virtio-scsi.ts';
import * as scsi from '../../wire/scsi.ts';
import * as virtio from '../../wire/virtio-scsi.ts';
import { VIRTIO_F_VERSION_1, featureSet } from '../../wire/virtio.ts';
import { OPCODES } from './opcodes.ts';
import { cdb, type ScsiAnswer, ScsiFixture } from './scsi-fixture.ts';

const BLOCKS = 2048;
const NONE = new Uint8Array(0);

const disk = (readOnly = false): DiskImage => createMemoryImage(BLOCKS * 512, readOnly);
const filled = (value: number, size: number): Uint8Array => new Uint8Array(size).fill(value);

function one(packed = false, readOnly = false): ScsiFixture {
  return new ScsiFixture({ units: [{ target: 0, lun: 0, image: disk(readOnly) }], packed }).ready();
}

/** Key, ASC and ASCQ, such as `5/24/00`; `good`, or a response. */
function outcome({ response, status, sense }: ScsiAnswer): string {
  if (response !== 0) return `response ${response}`;
  if (status === 0) return 'good';
  if (sense === null) return `status ${status}`;
  const hex = (value: number): string => value.toString(16).padStart(2, '0');
  return `${sense.key.toString(16)}/${hex(sense.asc)}/${hex(sense.ascq)}`;
}

for (const packed of [false, true]) {
  const ring = packed ? 'packed' : 'split';

  test(`${ring}: READ and WRITE of every length`, async () => {
    const f = one(packed);
    const forms: [number, number, number, [number, number], [number, number]][] = [
      [scsi.WRITE_6, scsi.READ_6, 6, [2, 2], [4, 1]],
      [scsi.WRITE_10, scsi.READ_10, 10, [2, 4], [7, 2]],
      [scsi.WRITE_12, scsi.READ_12, 12, [2, 4], [6, 4]],
      [scsi.WRITE_16, scsi.READ_16, 16, [2, 8], [10, 4]],
    ];
    for (const [i, [write, read, size, lba, count]] of forms.entries()) {
      const place: [number, number, number][] = [
        [...lba, 10 * i],
        [...count, 3],
      ];
      const data = filled(i + 1, 3 * 512);
      const written = f.command(0, 0, cdb(write, size, ...place), data);
      assert.deepEqual([outcome(written), written.len, written.residual], ['good', 108, 0]);
      const back = f.command(0, 0, cdb(read, size, ...place), NONE, 4 * 512);
      assert.deepEqual([outcome(back), back.len, back.residual], ['good', 108 + 1536, 512]);
      assert.deepEqual(back.data, data);
    }
    const { totals } = f.status();
    assert.deepEqual([totals['reads'], totals['writes'], totals['readBytes']], [4, 4, 4 * 1536]);
    await f.close();
  });

  test(`${ring}: units and queues at random, against byte arrays`, async () => {
    const places = [
      [0, 0],
      [0, 5],
      [7, 0],
      [255, 255],
    ] as const;
    const units = places.map(([target, lun]) => ({ target, lun, image: disk() }));
    const f = new ScsiFixture({ units, packed, queues: 3 }).ready();
    const model = places.map(() => new Uint8Array(BLOCKS * 512));
    let seed = 20261128;
    const random = (below: number): number => {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      return seed % below;
    };
    for (let i = 0; i < 600; i++) {
      const which = random(places.length);
      const [target, lun] = places[which]!;
      const lba = random(BLOCKS);
      const blocks = Math.min(1 + random(24), BLOCKS - lba);
      const place: [number, number, number][] = [
        [2, 4, lba],
        [7, 2, blocks],
      ];
      const at = [lba * 512, (lba + blocks) * 512] as const;
      if (random(2) === 0) {
        const data = filled(random(256), blocks * 512);
        const answer = f.command(target, lun, cdb(0x2a, 10, ...place), data, 0, random(3));
        assert.equal(outcome(answer), 'good', `command ${i}`);
        model[which]!.set(data, at[0]);
      } else {
        const read = cdb(0x28, 10, ...place);
        const answer = f.command(target, lun, read, NONE, blocks * 512, random(3));
        assert.deepEqual(answer.data, model[which]!.slice(...at), `command ${i}`);
      }
    }
    await f.close();
  });

  test(`${ring}: a batch whose commands are for several units`, async () => {
    const units = [0, 1, 2].map((lun) => ({ target: 3, lun, image: disk() }));
    const f = new ScsiFixture({ units, packed }).ready();
    const sent = [0, 1, 2, 0, 1, 2].map((lun, i) => {
      return f.send(3, lun, cdb(0x2a, 10, [2, 4, i], [7, 2, 1]), filled(i + 1, 512));
    });
    const mixed = f.send(3, 1, cdb(scsi.INQUIRY, 6, [3, 2, 96]), NONE, 96);
    f.poll();
    for (const one of sent) assert.equal(outcome(f.answerOf(one)!), 'good');
    assert.equal(outcome(f.answerOf(mixed)!), 'good');
    for (let i = 0; i < 6; i++) {
      const back = f.command(3, i % 3, cdb(0x28, 10, [2, 4, i], [7, 2, 1]), NONE, 512);
      assert.deepEqual(back.data, filled(i + 1, 512));
    }
    await f.close();
  });
}

test('a request in pieces of one byte is a request', async () => {
  const f = one();
  const queue = f.queues[2]!;
  const header = new Uint8Array(51);
  header.set(virtio.encodeScsiLun(0, 0));
  header.set(cdb(scsi.READ_CAPACITY_10, 10), 19);
  const pieces = (bytes: Uint8Array, each: number) =>
    Array.from({ length: Math.ceil(bytes.length / each) }, (_, i) =>
      queue.put(bytes.slice(i * each, (i + 1) * each)),
    );
  const readable = pieces(header, 5);
  const writable = pieces(filled(0xa5, 116), 9);
  queue.add(readable, writable, true);
  f.poll();
  assert.deepEqual([...queue.reap().values()], [116]);
  const answer = Buffer.concat(writable.map(({ gpa, len }) => queue.read(gpa, len)));
  assert.deepEqual(answer.subarray(0, 12), Buffer.alloc(12));
  assert.deepEqual([...answer.subarray(108)], [0, 0, 7, 255, 0, 0, 2, 0]);
  await f.close();
});

test('what a unit says of itself', async () => {
  const f = one();
  const inquiry = (page: number, size = 255): Uint8Array =>
    f.command(0, 0, cdb(scsi.INQUIRY, 6, [1, 1, 1], [2, 1, page], [3, 2, size]), NONE, size).data;
  const standard = f.command(0, 0, cdb(scsi.INQUIRY, 6, [3, 2, 36]), NONE, 36);
  assert.equal(Buffer.from(standard.data.subarray(8, 32)).toString(), 'vring   DISK            ');
  assert.deepEqual([...standard.data.subarray(0, 4)], [0, 0, 6, 0x12]);
  assert.deepEqual([...inquiry(0)], [0, 0, 0, 7, 0, 0x80, 0x83, 0x86, 0xb0, 0xb1, 0xb2]);
  assert.equal(Buffer.from(inquiry(0x80).subarray(4)).toString(), 'vring-0-0');
  assert.equal(inquiry(0x83).length, 4 + 4 + 8 + 9 + 4 + 8);
  const limits = new DataView(inquiry(0xb0).buffer);
  assert.equal(limits.byteLength, 64);
  assert.equal(limits.getUint32(8), 32768); // blocks of one transfer
  assert.equal(limits.getUint32(20), 131072); // blocks of one UNMAP descriptor
  assert.equal(inquiry(0xb1)[5], 1);
  assert.deepEqual([...inquiry(0xb2)], [0, 0xb2, 0, 4, 0, 0xe4, 2, 0]);
  const capacity = f.command(0, 0, cdb(0x9e, 16, [1, 1, 0x10], [10, 4, 32]), NONE, 32).data;
  assert.deepEqual([...capacity.subarray(4, 15)], [0, 0, 7, 255, 0, 0, 2, 0, 0, 3, 0xc0]);
  const luns = f.command(0, 0, cdb(scsi.REPORT_LUNS, 12, [6, 4, 16]), NONE, 16).data;
  assert.deepEqual([...luns], [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
  const lba = f.command(0, 0, cdb(0x9e, 16, [1, 1, 0x12], [2, 8, 5], [10, 4, 24]), NONE, 24).data;
  assert.equal(new DataView(lba.buffer).getUint32(16), BLOCKS - 5);
  await f.close();
});

test('REPORT LUNS: of a target, and of the well-known unit', async () => {
  const units = [
    { target: 1, lun: 0, image: disk() },
    { target: 1, lun: 200, image: disk() },
    { target: 2, lun: 3, image: disk() },
  ];
  const f = new ScsiFixture({ units }).ready();
  const report = cdb(scsi.REPORT_LUNS, 12, [6, 4, 64]);
  const target = f.command(1, 77, report, NONE, 64); // a unit that is not there
  assert.deepEqual(
    [...target.data],
    [0, 0, 0, 16, 0, 0, 0, 0, ...filled(0, 9), 200, ...filled(0, 6)],
  );
  const address = Uint8Array.of(0xc1, 1, 0, 0, 0, 0, 0, 0);
  const sent = f.send(0, 0, report, NONE, 64, 0, address);
  f.poll();
  const all = f.answerOf(sent)!;
  assert.equal(all.data[3], 24);
  assert.deepEqual(all.data.subarray(24), virtio.encodeScsiLun(2, 3));
  assert.equal(outcome(f.command(9, 0, report, NONE, 64)), 'response 3'); // BAD_TARGET
  const inquiry = f.command(1, 77, cdb(scsi.INQUIRY, 6, [3, 2, 36]), NONE, 36);
  assert.equal(inquiry.data[0], 0x7f);
  assert.equal(outcome(f.command(1, 77, cdb(0, 6))), '5/25/00');
  await f.close();
});

test('reported operation codes are those that are carried out', async () => {
  const f = one();
  const all = f.command(0, 0, cdb(0xa3, 12, [1, 1, 0x0c], [6, 4, 4096]), NONE, 4096).data;
  assert.equal(new DataView(all.buffer).getUint32(0), 8 * OPCODES.length);
  for (const { opcode, action, usage } of OPCODES) {
    const options = action === null ? 1 : 2;
    const ask = cdb(
      0xa3,
      12,
      [1, 1, 0x0c],
      [2, 1, options],
      [3, 1, opcode],
      [4, 2, action ?? 0],
      [6, 4, 64],
    );
    const told = f.command(0, 0, ask, NONE, 64).data;
    assert.deepEqual([told[1], ...told.subarray(4)], [3, ...usage]);
  }
  const none = cdb(0xa3, 12, [1, 1, 0x0c], [2, 1, 3], [3, 1, 0x5f], [4, 2, 7], [6, 4, 64]);
  assert.equal(f.command(0, 0, none, NONE, 64).data[1], 1); // REGISTER AND MOVE
  const tasks = f.command(0, 0, cdb(0xa3, 12, [1, 1, 0x0d], [6, 4, 4]), NONE, 4).data;
  assert.deepEqual([...tasks], [0xda, 5, 0, 0]);
  await f.close();
});

test('wrong commands get their sense, and change nothing', async () => {
  const f = one();
  const reader = (lba: number, blocks: number): Uint8Array =>
    cdb(scsi.READ_16, 16, [2, 8, lba], [10, 4, blocks]);
  const cases: [string, string, Uint8Array, (number | null)?][] = [
    ['an opcode that is none', '5/20/00', cdb(0xc0, 10), 0],
    ['a service action that is none', '5/24/00', cdb(0x9e, 16, [1, 1, 0x11]), 1],
    ['a reserved bit', '5/24/00', cdb(0, 6, [3, 1, 1]), 3],
    ['NACA', '5/24/00', cdb(0, 6, [5, 1, 4]), 5],
    ['a LBA behind the end', '5/21/00', reader(BLOCKS, 1)],
    ['a range over the end', '5/21/00', reader(BLOCKS - 1, 2)],
    ['a LBA beyond all numbers', '5/21/00', cdb(0x88, 16, [2, 4, 0xffffffff], [6, 4, 0xffffffff])],
    ['protection information', '5/24/00', cdb(0x28, 10, [1, 1, 0x20], [7, 2, 1]), 1],
    [
      'a page that is none',
      '5/24/00',
      cdb(scsi.INQUIRY, 6, [1, 1, 1], [2, 1, 0x99], [3, 2, 99]),
      2,
    ],
    ['a page without EVPD', '5/24/00', cdb(scsi.INQUIRY, 6, [2, 1, 0x80], [3, 2, 99]), 2],
    ['a mode page that is none', '5/24/00', cdb(scsi.MODE_SENSE_6, 6, [2, 1, 0x19], [4, 1, 99]), 2],
    ['saved mode pages', '5/39/00', cdb(scsi.MODE_SENSE_6, 6, [2, 1, 0xc8], [4, 1, 99])],
    ['WRITE SAME of nothing', '5/24/00', cdb(scsi.WRITE_SAME_16, 16, [1, 1, 1]), 10],
    ['REPORT LUNS too short', '5/24/00', cdb(scsi.REPORT_LUNS, 12, [6, 4, 8]), 6],
    ['a short UNMAP list', '5/1a/00', cdb(scsi.UNMAP, 10, [7, 2, 4])],
    ['a service action of PERSISTENT RESERVE', '5/24/00', cdb(0x5f, 10, [1, 1, 7]), 1],
  ];
  for (const [name, expected, bytes, field = null] of cases) {
    const isIn = bytes[0] !== scsi.UNMAP;
    const answer = f.command(0, 0, bytes, isIn ? NONE : filled(0, 64), isIn ? 4096 : 0);
    assert.equal(outcome(answer), expected, name);
    assert.equal(answer.sense?.field?.byte ?? null, field, name);
    assert.ok(answer.data.length === 0, `${name} has data`);
  }
  const both = f.command(0, 0, cdb(0x28, 10, [7, 2, 1]), filled(1, 512), 512);
  assert.equal(outcome(both), 'response 9');
  const short = f.command(0, 0, cdb(0x28, 10, [7, 2, 2]), NONE, 512);
  assert.equal(outcome(short), 'response 1');
  const way = f.command(0, 0, cdb(0x2a, 10, [7, 2, 1]), NONE, 512);
  assert.equal(outcome(way), 'response 1');
  assert.equal(f.status().errors, 0);
  await f.close();
});

test('a unit that may only be read', async () => {
  const f = one(false, true);
  const place: [number, number, number][] = [
    [2, 4, 0],
    [7, 2, 1],
  ];
  for (const opcode of [scsi.WRITE_10, scsi.WRITE_SAME_10, scsi.WRITE_AND_VERIFY_10]) {
    assert.equal(outcome(f.command(0, 0, cdb(opcode, 10, ...place), filled(1, 512))), '7/27/00');
  }
  const sense = f.command(0, 0, cdb(scsi.MODE_SENSE_6, 6, [2, 1, 0x3f], [4, 1, 99]), NONE, 99);
  assert.equal(sense.data[2], 0x90);
  await f.close();
});

test('UNMAP, WRITE SAME, VERIFY, WRITE AND VERIFY, COMPARE AND WRITE', async () => {
  const f = one();
  const at = (lba: number, blocks: number): [number, number, number][] => [
    [2, 4, lba],
    [7, 2, blocks],
  ];
  const block = (lba: number): Uint8Array =>
    f.command(0, 0, cdb(0x28, 10, ...at(lba, 1)), NONE, 512).data;
  const pattern = Uint8Array.from({ length: 512 }, (_, i) => i & 0xff);
  assert.equal(outcome(f.command(0, 0, cdb(scsi.WRITE_SAME_10, 10, ...at(4, 8)), pattern)), 'good');
  assert.deepEqual(
    [block(3), block(4), block(11), block(12)],
    [filled(0, 512), pattern, pattern, filled(0, 512)],
  );

  const list = new Uint8Array(40);
  const view = new DataView(list.buffer);
  view.setUint16(0, 38);
  view.setUint16(2, 32);
  view.setBigUint64(8, 4n);
  view.setUint32(16, 2);
  view.setBigUint64(24, 11n);
  view.setUint32(32, 1);
  assert.equal(outcome(f.command(0, 0, cdb(scsi.UNMAP, 10, [7, 2, 40]), list)), 'good');
  assert.deepEqual(
    [block(4), block(5), block(6), block(11)],
    [filled(0, 512), filled(0, 512), pattern, filled(0, 512)],
  );
  view.setBigUint64(24, BigInt(BLOCKS));
  assert.equal(outcome(f.command(0, 0, cdb(scsi.UNMAP, 10, [7, 2, 40]), list)), '5/21/00');

  const same16 = cdb(scsi.WRITE_SAME_16, 16, [1, 1, 9], [2, 8, 6], [10, 4, 1]); // UNMAP, NDOB
  assert.equal(outcome(f.command(0, 0, same16)), 'good');
  assert.deepEqual(block(6), filled(0, 512));

  assert.equal(outcome(f.command(0, 0, cdb(scsi.VERIFY_10, 10, ...at(0, 64)))), 'good');
  const check = (value: Uint8Array, lba: number, count: number, bytchk: number): ScsiAnswer =>
    f.command(0, 0, cdb(scsi.VERIFY_10, 10, [1, 1, bytchk << 1], ...at(lba, count)), value);
  assert.equal(outcome(check(pattern, 7, 1, 1)), 'good');
  assert.equal(outcome(check(pattern, 7, 4, 3)), 'good');
  const wrong = pattern.slice();
  wrong[100]! ^= 1;
  const mismatch = check(wrong, 7, 1, 1);
  assert.deepEqual([outcome(mismatch), mismatch.sense?.information], ['e/1d/00', 100]);
  assert.equal(outcome(check(pattern, 7, 5, 3)), 'e/1d/00');

  const written = f.command(
    0,
    0,
    cdb(scsi.WRITE_AND_VERIFY_10, 10, [1, 1, 2], ...at(20, 2)),
    filled(9, 1024),
  );
  assert.equal(outcome(written), 'good');
  assert.deepEqual(block(21), filled(9, 512));

  const swap = cdb(scsi.COMPARE_AND_WRITE, 16, [2, 8, 20], [13, 1, 1]);
  const pair = (from: Uint8Array, to: Uint8Array): Uint8Array => Uint8Array.from([...from, ...to]);
  assert.equal(outcome(f.command(0, 0, swap, pair(filled(9, 512), pattern))), 'good');
  assert.deepEqual(block(20), pattern);
  assert.equal(outcome(f.command(0, 0, swap, pair(filled(9, 512), filled(1, 512)))), 'e/1d/00');
  assert.deepEqual(block(20), pattern);
  await f.close();
});

test('the cache and the format of sense data are set by mode pages', async () => {
  const f = one();
  const sense = (page: number): Uint8Array =>
    f.command(0, 0, cdb(scsi.MODE_SENSE_10, 10, [1, 1, 8], [2, 1, page], [7, 2, 99]), NONE, 99)
      .data;
  assert.equal(sense(8)[8 + 2], 4);
  const select = (page: Uint8Array): ScsiAnswer => {
    const list = Uint8Array.from([...filled(0, 8), ...page]);
    return f.command(0, 0, cdb(scsi.MODE_SELECT_10, 10, [1, 1, 0x10], [7, 2, list.length]), list);
  };
  const page = sense(8).slice(8);
  page[2] = 0;
  assert.equal(outcome(select(page)), 'good');
  assert.equal(sense(8)[8 + 2], 0);
  assert.equal(f.status().totals['checks'], 1); // the unit attention of the start
  page[3] = 1; // not changeable
  const refused = select(page);
  assert.deepEqual(
    [outcome(refused), refused.sense?.field],
    ['5/26/00', { inCdb: false, byte: 11 }],
  );
  const control = sense(10).slice(8);
  control[2] = 4;
  assert.equal(outcome(select(control)), 'good');
  const described = f.command(0, 0, cdb(0, 6, [2, 1, 1]));
  assert.deepEqual([outcome(described), described.sense?.field?.byte], ['5/24/00', 2]);
  await f.close();
});

test('unit attentions come once, one after the other, and not to INQUIRY', async () => {
  const units = [{ target: 0, lun: 0, image: disk() }];
  const f = new ScsiFixture({ units });
  assert.equal(outcome(f.command(0, 0, cdb(scsi.INQUIRY, 6, [3, 2, 36]), NONE, 36)), 'good');
  const sent = [0, 1].map(() => f.send(0, 0, cdb(0x28, 10, [7, 2, 1]), NONE, 512));
  f.poll();
  // In one batch: the second is carried out.
  assert.deepEqual(
    sent.map((one) => outcome(f.answerOf(one)!)),
    ['6/29/00', 'good'],
  );
  f.plane.command('resizeUnit', { device: 0, target: 0, lun: 0, sizeBytes: BLOCKS * 256 });
  assert.equal(outcome(f.command(0, 0, cdb(0, 6))), '6/2a/09');
  const capacity = f.command(0, 0, cdb(scsi.READ_CAPACITY_10, 10), NONE, 8);
  assert.deepEqual([...capacity.data.subarray(0, 4)], [0, 0, 3, 255]);
  await f.close();
});

test('a unit that is stopped says so, until it is started', async () => {
  const f = one();
  const stop = (start: number): ScsiAnswer =>
    f.command(0, 0, cdb(scsi.START_STOP_UNIT, 6, [4, 1, start]));
  assert.equal(outcome(stop(0)), 'good');
  assert.equal(outcome(f.command(0, 0, cdb(0, 6))), '2/04/02');
  assert.equal(outcome(f.command(0, 0, cdb(0x28, 10, [7, 2, 1]), NONE, 512)), '2/04/02');
  assert.equal(outcome(stop(1)), 'good');
  assert.equal(outcome(f.command(0, 0, cdb(0x28, 10, [7, 2, 1]), NONE, 512)), 'good');
  await f.close();
});

test('events: a unit comes and goes, a size changes, and some are missed', async () => {
  const f = one();
  const first = f.postEvent();
  f.poll();
  assert.equal(f.event(first), null);
  const late = { target: 4, lun: 2, image: disk() };
  f.addUnit(late);
  const added = f.event(first);
  const address = virtio.encodeScsiLun(4, 2);
  assert.deepEqual(added, { event: 1, lun: address, reason: virtio.VIRTIO_SCSI_EVT_RESET_RESCAN });
  assert.equal(outcome(f.command(4, 2, cdb(0, 6))), '6/29/00');
  // No buffer: it waits for the next one.
  f.plane.command('resizeUnit', { device: 0, target: 4, lun: 2, sizeBytes: 512 * 512 });
  const second = f.postEvent();
  f.poll();
  assert.deepEqual(f.event(second), { event: 3, lun: address, reason: 0x092a });
  const third = f.postEvent();
  assert.equal(f.plane.command('removeUnit', { device: 0, target: 4, lun: 2 }), true);
  assert.equal(f.event(third)?.reason, virtio.VIRTIO_SCSI_EVT_RESET_REMOVED);
  assert.equal(outcome(f.command(4, 2, cdb(0, 6))), 'response 3');
  for (let i = 0; i < 80; i++) {
    f.plane.command('resizeUnit', { device: 0, target: 0, lun: 0, sizeBytes: 512 * (i + 1) });
  }
  const fourth = f.postEvent();
  f.poll();
  assert.equal(f.event(fourth)?.event, virtio.VIRTIO_SCSI_T_EVENTS_MISSED + 3);
  await f.close();
  await late.image.close();
});

test('a driver that did not ask for events gets none', async () => {
  const units = [{ target: 0, lun: 0, image: disk() }];
  const features = featureSet(VIRTIO_F_VERSION_1, VIRTIO_SCSI_F_HOTPLUG);
  const f = new ScsiFixture({ units, features }).ready();
  const piece = f.postEvent();
  f.plane.command('resizeUnit', { device: 0, target: 0, lun: 0, sizeBytes: 512 });
  f.poll();
  assert.equal(f.event(piece), null);
  await f.close();
});

test('blocks of 4096 bytes', async () => {
  const units = [{ target: 0, lun: 0, image: disk(), blockBytes: 4096 }];
  const f = new ScsiFixture({ units }).ready();
  const capacity = f.command(0, 0, cdb(scsi.READ_CAPACITY_10, 10), NONE, 8).data;
  assert.deepEqual([...capacity], [0, 0, 0, 255, 0, 0, 16, 0]);
  const last = cdb(scsi.WRITE_10, 10, [2, 4, 255], [7, 2, 1]);
  assert.equal(outcome(f.command(0, 0, last, filled(3, 4096))), 'good');
  const back = f.command(0, 0, cdb(scsi.READ_10, 10, [2, 4, 255], [7, 2, 1]), NONE, 4096);
  assert.deepEqual(back.data, filled(3, 4096));
  const behind = f.command(0, 0, cdb(scsi.READ_10, 10, [2, 4, 256], [7, 2, 1]), NONE, 4096);
  assert.equal(outcome(behind), '5/21/00');
  await f.close();
});

test('sizes that the driver sets in the configuration space', async () => {
  const units = [{ target: 0, lun: 0, image: disk() }];
  const f = new ScsiFixture({ units }).ready();
  const { cdbSize, senseSize, numQueues } = virtio.ScsiConfig.fields;
  const set = (at: number, value: number): boolean =>
    f.device.writeConfig(at, new Uint8Array(new Uint32Array([value]).buffer));
  assert.equal(set(cdbSize.at, 15), false);
  assert.equal(set(senseSize.at, 253), false);
  assert.equal(set(numQueues.at, 1), false);
  assert.equal(set(cdbSize.at, 16) && set(senseSize.at, 18), true);
  // They hold for rings that start from then on.
  const base = f.plane.detachVring(0, 2);
  f.attach(2, base);
  const queue = f.queues[2]!;
  const header = new Uint8Array(35);
  header.set(virtio.encodeScsiLun(0, 0));
  header.set(cdb(0xc0, 6), 19);
  const answer = queue.put(filled(0xa5, 31));
  queue.add([queue.put(header)], [answer]);
  f.poll();
  assert.deepEqual([...queue.reap().values()], [30]);
  const bytes = queue.read(answer.gpa, 31);
  assert.deepEqual(
    [bytes[0], bytes[10], bytes[12 + 2], bytes[12 + 12], bytes[30]],
    [18, 2, 5, 0x20, 0xa5],
  );
  f.plane.resetDevice(0);
  assert.equal(virtio.ScsiConfig.decode(f.device.readConfig(0, 36)!).cdbSize, 32);
  await f.close();
});
