import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { parseDisk } from './disk-input.ts';
import { DiskStateFile } from './disk-state-file.ts';
import { parseAdapter, parseUnit } from './scsi-input.ts';

const folder = mkdtempSync(join(tmpdir(), 'vring-disk-state-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const nothing = { disks: [], adapters: [], units: [] };
const disk = parseDisk({ name: 'a', socket: '/run/a', layers: ['crypt:/k', '/srv/a.img'] });

test('what was written is there for the next one', async () => {
  const path = join(folder, 'below/state.json');
  assert.deepEqual(await new DiskStateFile(path).read(), nothing, 'none without a file');
  await new DiskStateFile(path).write({ ...nothing, disks: [disk] });
  assert.deepEqual(await new DiskStateFile(path).read(), { ...nothing, disks: [disk] });
  assert.equal(statSync(path).mode & 0o777, 0o600);
  await new DiskStateFile(path).write(nothing);
  assert.deepEqual(await new DiskStateFile(path).read(), nothing);
  assert.deepEqual(readdirSync(join(folder, 'below')), ['state.json'], 'nothing is left beside it');
});

test('adapters are remembered with their units, and units of other adapters', async () => {
  const path = join(folder, 'scsi.json');
  const unit = { unit: '3:7', layers: ['limit:iops=5', 'memory:1M'], serial: 'x', blockSize: 4096 };
  const adapter = parseAdapter({ name: 'b', socket: '/run/b', queues: 2, units: [unit] });
  const other = parseUnit({ unit: '0:255', layers: ['/srv/c.img'], readOnly: true }, 'c');
  const state = { disks: [disk], adapters: [adapter], units: [{ adapter: 'c', unit: other }] };
  await new DiskStateFile(path).write(state);
  assert.deepEqual(await new DiskStateFile(path).read(), state);
  assert.equal(adapter.units[0]?.name, 'b:3:7');
  // An older program understands the file again once there are none.
  await new DiskStateFile(path).write({ ...nothing, disks: [disk] });
  assert.match(readFileSync(path, 'utf8'), /"version": 1/);
});

const WRONG: readonly (readonly [text: string, RegExp])[] = [
  ['', /cannot be read: .*JSON/],
  ['{"version": 1, "disks": [{"name": "a"}]}', /cannot be read: socket: missing/],
  ['{"version": 1}', /has no list of disks/],
  ['{"version": 3, "disks": []}', /has version 3, this program knows up to 2; repair it or move /],
  ['{"version": 2, "disks": []}', /has no list of scsi/],
  ['{"version": 2, "disks": [], "scsi": [], "units": [{"unit": "0:0"}]}', /without an adapter/],
];

for (const [text, expected] of WRONG) {
  test(`a file that cannot be understood is kept: ${text}`, async () => {
    const path = join(folder, 'wrong.json');
    writeFileSync(path, text);
    const file = new DiskStateFile(path);
    await assert.rejects(file.read(), { code: 'ERR_VRING_DISK_STATE', message: expected });
    await assert.rejects(file.write({ ...nothing, disks: [disk] }), {
      code: 'ERR_VRING_DISK_STATE',
      message: expected,
    });
    assert.equal(readFileSync(path, 'utf8'), text);
  });
}

test('what cannot be written leaves what there was', async () => {
  const file = new DiskStateFile('/proc/no/state.json');
  await assert.rejects(file.write({ ...nothing, disks: [disk] }), /cannot be written: /);
});

test('what could not be read again is not written', async () => {
  const path = join(folder, 'large.json');
  const file = new DiskStateFile(path);
  await file.write({ ...nothing, disks: [disk] });
  const many = Array.from({ length: 20_000 }, () => disk);
  await assert.rejects(
    file.write({ ...nothing, disks: many }),
    /cannot be written: .*has over 1048576 bytes/,
  );
  assert.deepEqual(await file.read(), { ...nothing, disks: [disk] });
});
