import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { parseDisk } from './disk-input.ts';
import { DiskStateFile } from './disk-state-file.ts';

const folder = mkdtempSync(join(tmpdir(), 'vring-disk-state-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const disk = parseDisk({ name: 'a', socket: '/run/a', layers: ['crypt:/k', '/srv/a.img'] });

test('what was written is there for the next one', async () => {
  const path = join(folder, 'below/state.json');
  assert.deepEqual(await new DiskStateFile(path).read(), [], 'none without a file');
  await new DiskStateFile(path).write([disk]);
  assert.deepEqual(await new DiskStateFile(path).read(), [disk]);
  assert.equal(statSync(path).mode & 0o777, 0o600);
  await new DiskStateFile(path).write([]);
  assert.deepEqual(await new DiskStateFile(path).read(), []);
  assert.deepEqual(readdirSync(join(folder, 'below')), ['state.json'], 'nothing is left beside it');
});

const WRONG: readonly (readonly [text: string, RegExp])[] = [
  ['', /cannot be read: .*JSON/],
  ['{"version": 1, "disks": [{"name": "a"}]}', /cannot be read: socket: missing/],
  ['{"version": 1}', /has no list of disks/],
  ['{"version": 2, "disks": []}', /has version 2, this program knows 1; repair it or move it away/],
];

for (const [text, expected] of WRONG) {
  test(`a file that cannot be understood is kept: ${text}`, async () => {
    const path = join(folder, 'wrong.json');
    writeFileSync(path, text);
    const file = new DiskStateFile(path);
    await assert.rejects(file.read(), { code: 'ERR_VRING_DISK_STATE', message: expected });
    await assert.rejects(file.write([disk]), { code: 'ERR_VRING_DISK_STATE', message: expected });
    assert.equal(readFileSync(path, 'utf8'), text);
  });
}

test('what cannot be written leaves what there was', async () => {
  const file = new DiskStateFile('/proc/no/state.json');
  await assert.rejects(file.write([disk]), /cannot be written: /);
});

test('what could not be read again is not written', async () => {
  const path = join(folder, 'large.json');
  const file = new DiskStateFile(path);
  await file.write([disk]);
  const many = Array.from({ length: 20_000 }, () => disk);
  await assert.rejects(file.write(many), /cannot be written: .*has over 1048576 bytes/);
  assert.deepEqual(await file.read(), [disk]);
});
