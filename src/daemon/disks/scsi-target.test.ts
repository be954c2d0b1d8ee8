/** SCSI adapters of a storage target, with our own driver: units that come, change, fail and go. */
import assert from 'node:assert/strict';
import { rmSync, truncateSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { test } from 'node:test';
import { ScsiDisk, ScsiGuest, scsiCdb } from '../../guest/index.ts';
import * as scsi from '../../wire/scsi.ts';
import * as virtio from '../../wire/virtio-scsi.ts';
import { parseAdapter, parseUnit } from './scsi-input.ts';
import { StorageTarget } from './storage-target.ts';
import { TargetFixture } from './target-fixture.ts';

const MIB = 1 << 20;
const BLOCK = new Uint8Array(512).fill(7);
const TEST_UNIT_READY = scsiCdb(0, 6);

/** A driver that has heard of everything that units had to say. */
async function connect(
  socket: string,
  units: readonly (readonly [target: number, lun: number])[],
  events: virtio.ScsiEvent[] = [],
): Promise<{ guest: ScsiGuest; disks: ScsiDisk[] }> {
  const guest = await ScsiGuest.connect(socket, { onEvent: (event) => void events.push(event) });
  const disks = units.map(([target, lun]) => new ScsiDisk(guest, target, lun));
  for (const disk of disks) await disk.capacity();
  return { guest, disks };
}

async function until(what: string, holds: () => boolean): Promise<void> {
  for (const deadline = performance.now() + 10_000; !holds(); await sleep(5)) {
    if (performance.now() > deadline) throw new Error(`waited for ${what}`);
  }
}

/** The sense of the first command, or 'good'. */
async function ready(guest: ScsiGuest, target: number, lun: number): Promise<string> {
  const { status, sense } = await guest.command({ target, lun, cdb: TEST_UNIT_READY });
  return sense === null ? `status ${status}` : `${sense.key}/${sense.asc}/${sense.ascq}`;
}

test('units are disks: listed, counted, attached, grown, detached', async () => {
  await using fixture = new TargetFixture();
  const { target } = fixture;
  const added = await fixture.addAdapter('vm0', [{ unit: '0:0', layers: [fixture.file('a')] }]);
  assert.deepEqual([added.state, added.units], ['listening', ['vm0:0:0']]);
  const events: virtio.ScsiEvent[] = [];
  const { guest, disks } = await connect(fixture.path('vm0'), [[0, 0]], events);
  await disks[0]!.write(0, BLOCK, 512);
  await disks[0]!.flush();

  const attached = await target.attachUnit(
    'vm0',
    parseUnit({ unit: '2:5', layers: [fixture.file('b')], serial: 'b5' }, 'vm0'),
  );
  assert.deepEqual(attached.unit, { adapter: 'vm0', target: 2, lun: 5 });
  await until('an event', () => events.length === 1);
  assert.equal(events[0]!.reason, virtio.VIRTIO_SCSI_EVT_RESET_RESCAN);
  const other = new ScsiDisk(guest, 2, 5);
  assert.equal((await other.capacity()).blocks, MIB / 512);
  await other.write(8, BLOCK, 512);

  await target.updateDisk('vm0:2:5', { sizeBytes: 2 * MIB });
  await until('an event', () => events.length === 2);
  assert.equal(events[1]!.event, virtio.VIRTIO_SCSI_T_PARAM_CHANGE);
  assert.equal((await other.capacity()).blocks, (2 * MIB) / 512);
  await assert.rejects(target.updateDisk('vm0:2:5', { sizeBytes: MIB }), /say shrink/);

  const [first, second] = await target.disks();
  assert.deepEqual([first!.name, second!.name], ['vm0:0:0', 'vm0:2:5']);
  assert.deepEqual([first!.state, second!.state, second!.serial], ['up', 'up', 'b5']);
  assert.deepEqual([first!.counters['writes'], first!.counters['flushes']], [1, 1]);
  assert.deepEqual([second!.counters['writes'], second!.counters['writtenBytes']], [1, 512]);
  const { counters } = await target.adapter('vm0');
  assert.equal(counters['writes'], 2);

  await target.removeDisk('vm0:2:5');
  await until('an event', () => events.length === 3);
  assert.equal(events[2]!.reason, virtio.VIRTIO_SCSI_EVT_RESET_REMOVED);
  await assert.rejects(other.read(0, 1, 512), { code: 'ERR_VRING_GUEST_SCSI' });
  await assert.rejects(target.disk('vm0:2:5'), { code: 'ERR_VRING_DISK_NOT_FOUND' });
  await guest.close();
});

test('limits come and go under commands: nobody hears of it, settings stay', async () => {
  await using fixture = new TargetFixture();
  const { target } = fixture;
  const units = ['0:0', '0:1'].map((unit) => ({ unit, layers: [fixture.file(unit)] }));
  await fixture.addAdapter('vm0', units, { queues: 2 });
  const { guest, disks } = await connect(fixture.path('vm0'), [[0, 0], [0, 1]]); // prettier-ignore
  const reserve = scsiCdb(scsi.RESERVE_6, 6);
  assert.equal((await guest.command({ target: 0, lun: 0, cdb: reserve })).status, 0);
  let isOver = false;
  // TASK SET FULL is what a driver waits at, and sends its command again.
  const load = async (disk: ScsiDisk): Promise<number> => {
    for (let written = 0; ;) {
      if (isOver) return written;
      const lba = written % 64;
      const cdb = scsiCdb(scsi.WRITE_10, 10, [2, 4, lba], [7, 2, 1]);
      const { lun } = disk;
      const { status, sense } = await guest.command({ target: 0, lun, cdb, out: BLOCK });
      assert.ok(status === 0 || status === scsi.STATUS_TASK_SET_FULL, JSON.stringify(sense));
      if (status === 0) written++;
      else await sleep(1);
    }
  };
  const loads = disks.map(load);
  for (const limits of [{ iops: 1e5 }, { iops: 2e5 }, null, { iops: 1e5 }]) {
    const status = await target.updateDisk('vm0:0:0', { limits });
    assert.deepEqual(status.limits, limits);
    await sleep(20);
  }
  isOver = true;
  const [limited, free] = await Promise.all(loads);
  assert.ok(limited! > 10 && free! > 10, `${limited} and ${free} commands`);
  assert.equal(await ready(guest, 0, 0), 'status 0', 'no unit attention');
  const { counters } = await target.disk('vm0:0:0');
  assert.equal(counters['writes'], limited!, 'what was counted before counts');
  await guest.close();
});

test('a unit that cannot be opened fails alone, and is found when it can', async () => {
  await using fixture = new TargetFixture();
  const { target } = fixture;
  const bad = { unit: '0:1', layers: [fixture.path('later')] };
  await assert.rejects(fixture.addAdapter('vm0', [bad]), { code: 'ERR_VRING_DISK_OPEN' });
  const units = [{ unit: '0:0', layers: ['memory:1M'] }, bad];
  await target.start([], [parseAdapter({ name: 'vm0', socket: fixture.path('vm0'), units })]);
  const events: virtio.ScsiEvent[] = [];
  const { guest, disks } = await connect(fixture.path('vm0'), [[0, 0]], events);
  assert.deepEqual(await disks[0]!.luns(), [0]);
  const failed = await target.disk('vm0:0:1');
  assert.deepEqual([failed.state, failed.sizeBytes], ['failed', null]);
  assert.match(failed.reason!.message, /later/);
  fixture.file('later');
  await target.reopenDisk('vm0:0:1');
  await until('an event', () => events.length === 1);
  assert.deepEqual(await disks[0]!.luns(), [0, 1]);
  await guest.close();
});

test('a failed flush goes on failing with another stack, until somebody reopens', async () => {
  await using fixture = new TargetFixture();
  const { target } = fixture;
  const layers = [{ fault: {} }, fixture.file('a')];
  await fixture.addAdapter('vm0', [
    { unit: '0:0', layers },
    { unit: '0:1', layers: ['memory:1M'] },
  ]);
  const { guest, disks } = await connect(fixture.path('vm0'), [[0, 0], [0, 1]]); // prettier-ignore
  const [bad, good] = disks as [ScsiDisk, ScsiDisk];
  await bad.write(0, BLOCK, 512);
  await target.setFaults('vm0:0:0', [{ op: 'flush', action: 'error', errno: 'EIO', times: 1 }]);
  await assert.rejects(bad.flush(), { code: 'ERR_VRING_GUEST_SCSI' });
  await target.updateDisk('vm0:0:0', { limits: { iops: 1e6 } });
  await assert.rejects(bad.flush(), { code: 'ERR_VRING_GUEST_SCSI' });
  await good.flush();
  const { errors, lastError } = await target.disk('vm0:0:0');
  assert.deepEqual([errors, lastError?.op], [2, 'flush']);
  assert.equal((await target.disk('vm0:0:1')).errors, 0);
  await target.reopenDisk('vm0:0:0');
  await bad.flush();
  const told = fixture.events.filter(({ kind }) => kind === 'io-error');
  assert.ok(told.length > 0 && told.every(({ disk }) => disk === 'vm0:0:0'));
  await guest.close();
});

test('what the API made is there after a restart, and what the file has wins', async () => {
  await using first = new TargetFixture();
  await first.addAdapter('api', [{ unit: '0:0', layers: [first.file('a')] }], { queues: 3 });
  await first.target.attachUnit('api', parseUnit({ unit: '1:0', layers: ['memory:2M'] }, 'api'));
  await first.target.updateDisk('api:1:0', { limits: { iops: 77 } });
  const configured = (units: unknown[]): ReturnType<typeof parseAdapter> => {
    return parseAdapter({ name: 'file', socket: first.path('file'), units });
  };
  const own = { unit: '0:0', layers: ['memory:1M'] };
  const restart = async (units: unknown[]): Promise<StorageTarget> => {
    const target = new StorageTarget({
      stateFile: first.path('state.json'),
      spinMs: 0,
      report: (kind, disk, message) => void first.events.push({ kind, disk, message }),
      socketOwner: () => null,
    });
    await target.start([], [configured(units)]);
    return target;
  };
  await first.target.close();
  let target = await restart([own]);
  await target.attachUnit('file', parseUnit({ unit: '0:1', layers: ['memory:1M'] }, 'file'));
  await target.close();

  target = await restart([own]);
  const names = async (): Promise<string[]> => (await target.disks()).map(({ name }) => name);
  assert.deepEqual(await names(), ['file:0:0', 'file:0:1', 'api:0:0', 'api:1:0']);
  assert.deepEqual((await target.disk('api:1:0')).limits, { iops: 77 });
  assert.equal((await target.adapter('api')).queues, 3);
  await target.removeAdapter('api');
  await target.close();

  target = await restart([own, { unit: '0:1', layers: ['memory:4M'] }]);
  assert.deepEqual(await names(), ['file:0:0', 'file:0:1']);
  assert.equal((await target.disk('file:0:1')).sizeBytes, 4 * MIB);
  const shadowed = first.events.find(({ kind }) => kind === 'disk-shadowed');
  assert.equal(shadowed?.disk, 'file:0:1');
  await target.close();

  target = await restart([own]);
  assert.equal((await target.disk('file:0:1')).sizeBytes, MIB, 'it was kept');
  await target.close();
});

test('names and sockets are one each; a unit has one place', async () => {
  await using fixture = new TargetFixture();
  const { target } = fixture;
  await fixture.add('d', ['memory:1M']);
  await fixture.addAdapter('vm0', [{ unit: '0:0', layers: ['memory:1M'] }]);
  const exists = { code: 'ERR_VRING_DISK_EXISTS' };
  await assert.rejects(fixture.addAdapter('d', []), exists);
  await assert.rejects(fixture.add('vm0', ['memory:1M']), exists);
  await assert.rejects(fixture.addAdapter('vm1', [], { socket: fixture.path('d') }), exists);
  await assert.rejects(fixture.add('e', ['memory:1M'], { socket: fixture.path('vm0') }), exists);
  const again = parseUnit({ unit: '0:0', layers: ['memory:1M'] }, 'vm0');
  await assert.rejects(target.attachUnit('vm0', again), exists);
  await assert.rejects(target.attachUnit('vm9', again), { code: 'ERR_VRING_SCSI_NOT_FOUND' });
  const odd = fixture.file('odd', 512 * 3);
  const unit = parseUnit({ unit: '0:1', layers: [odd], blockSize: 4096 }, 'vm0');
  await assert.rejects(target.attachUnit('vm0', unit), /1536 bytes, no whole blocks of 4096/);
  truncateSync(odd, 8192);
  await target.attachUnit('vm0', unit);
  rmSync(odd);
});
