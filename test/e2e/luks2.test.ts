/**
 * LUKS2 headers between cryptsetup and us, without a kernel that has dm-crypt: whoever made one,
 * both open it. The data behind them: test/host/luks2.host.ts.
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { closeSync, openSync, writeFileSync, writeSync } from 'node:fs';
import { test } from 'node:test';
import { connectBlkGuest } from '../../src/guest/index.ts';
import { BlkServer } from '../peers/blk-server.ts';
import { LuksDisk } from '../peers/luks-disk.ts';
import { requirePeer } from '../peers/require-peer.ts';
import { Scratch } from '../peers/scratch.ts';
import { vring } from '../peers/switch.ts';

const DISK_BYTES = 24 * 2 ** 20;
const PASSPHRASE = Buffer.from('correct horse\nbattery staple\n'); // a newline is part of it

function makeDisk(scratch: Scratch): LuksDisk {
  const keyFile = scratch.path('key');
  writeFileSync(keyFile, PASSPHRASE);
  return new LuksDisk(scratch.path('disk.img'), DISK_BYTES, keyFile);
}

function cryptsetup(...args: string[]): string {
  return execFileSync('cryptsetup', args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
}

function tryKey(disk: LuksDisk): void {
  cryptsetup('open', '--test-passphrase', '--key-file', disk.keyFile, disk.path);
}

/** What `cryptsetup luksFormat` is told beside. */
const FORMATS: Readonly<Record<string, string[]>> = {
  'argon2id, sectors of 4096': ['--pbkdf=argon2id', '--sector-size=4096'],
  'argon2i, sectors of 512': ['--pbkdf=argon2i', '--sector-size=512'],
  'pbkdf2 of sha512, AES-128': ['--pbkdf=pbkdf2', '--hash=sha512', '--key-size=256'],
  'a large header, its data elsewhere': [
    '--pbkdf=pbkdf2',
    '--luks2-metadata-size=64k',
    '--luks2-keyslots-size=1m',
    '--offset=8192',
  ],
};

for (const [name, words] of Object.entries(FORMATS)) {
  test(`cryptsetup makes it, we open it: ${name}`, async (t) => {
    if (!requirePeer(t, 'cryptsetup')) return;
    await using scratch = new Scratch();
    const disk = makeDisk(scratch);
    const cost = words.includes('--pbkdf=pbkdf2')
      ? ['--pbkdf-force-iterations=1000']
      : ['--pbkdf-force-iterations=4', '--pbkdf-memory=32768'];
    const format = ['luksFormat', '--type=luks2', '--batch-mode', '--cipher=aes-xts-plain64'];
    cryptsetup(...format, ...words, ...cost, disk.path, disk.keyFile);
    const layer = scratch.own(await disk.open());
    assert.equal(layer.repaired, null);
    const dataAt = name.startsWith('a large') ? 8192 * 512 : 16 * 2 ** 20;
    assert.equal(layer.sizeBytes, DISK_BYTES - dataAt);
    await layer.write(0, randomBytes(4096), true);
    tryKey(disk);
  });
}

test('a second keyslot opens it when the first one does not', async (t) => {
  if (!requirePeer(t, 'cryptsetup')) return;
  await using scratch = new Scratch();
  const disk = makeDisk(scratch);
  await disk.format({ passphrase: PASSPHRASE, kdf: { type: 'pbkdf2', iterations: 1000 } });
  const other = scratch.path('other');
  writeFileSync(other, 'another');
  const cost = ['--pbkdf=pbkdf2', '--pbkdf-force-iterations=1000'];
  cryptsetup('luksAddKey', ...cost, '--key-file', disk.keyFile, disk.path, other);
  cryptsetup('luksKillSlot', '--key-file', other, disk.path, '0');
  await assert.rejects(disk.open(), /opens none of keyslots 1/);
  writeFileSync(disk.keyFile, 'another');
  assert.equal(scratch.own(await disk.open()).slot, '1');
});

for (const sectorBytes of [512, 4096]) {
  for (const kdf of [
    { type: 'pbkdf2', iterations: 1000 },
    { type: 'argon2id', memoryKib: 32768, passes: 4 },
  ] as const) {
    test(`we make it, cryptsetup opens it: ${kdf.type}, sectors of ${sectorBytes}`, async (t) => {
      if (!requirePeer(t, 'cryptsetup')) return;
      await using scratch = new Scratch();
      const disk = makeDisk(scratch);
      const uuid = await disk.format({ passphrase: PASSPHRASE, kdf, sectorBytes, label: 'vm 0' });
      const dump = cryptsetup('luksDump', disk.path);
      for (const line of [uuid, 'vm 0', `sector: ${sectorBytes} [bytes]`, kdf.type]) {
        assert.ok(dump.includes(line), `${line} in\n${dump}`);
      }
      tryKey(disk);
      writeFileSync(disk.keyFile, 'wrong');
      assert.throws(() => tryKey(disk), { status: 2 });
    });
  }
}

test('what we repair, cryptsetup finds whole, and the other way round', async (t) => {
  if (!requirePeer(t, 'cryptsetup')) return;
  await using scratch = new Scratch();
  const disk = makeDisk(scratch);
  await disk.format({ passphrase: PASSPHRASE, kdf: { type: 'pbkdf2', iterations: 1000 } });
  const damage = (at: number): void => {
    const fd = openSync(disk.path, 'r+');
    writeSync(fd, Buffer.alloc(512, 0x20), 0, 512, at);
    closeSync(fd);
  };
  damage(4096 + 512);
  const layer = await disk.open();
  assert.match(layer.repaired!, /primary copy: its checksum is wrong/);
  await layer.close();
  tryKey(disk);
  damage(16384 + 4096 + 512);
  // Opens and, unlike a dump, writes the broken copy anew.
  cryptsetup('repair', '--batch-mode', disk.path);
  const again = scratch.own(await disk.open());
  assert.equal(again.repaired, null, 'cryptsetup has repaired it');
});

test('vring format luks2: cryptsetup opens it, vring disk serves it', async (t) => {
  if (!requirePeer(t, 'cryptsetup')) return;
  await using scratch = new Scratch();
  const disk = makeDisk(scratch);
  const words = ['--key-file', disk.keyFile, '--pbkdf', 'pbkdf2', '--iterations', '1000'];
  const format = (...more: string[]): Promise<string> =>
    vring('format', 'luks2', disk.path, ...words, '--json', ...more);
  const { uuid, dataBytes } = JSON.parse(await format('--label', 'vm 0', '--key-size', '256'));
  assert.equal(dataBytes, DISK_BYTES - 16 * 2 ** 20);
  const dump = cryptsetup('luksDump', disk.path);
  for (const line of [uuid, 'vm 0', 'sector: 4096 [bytes]', 'pbkdf2', '256 bits']) {
    assert.ok(dump.includes(line), `${line} in\n${dump}`);
  }
  tryKey(disk);
  await assert.rejects(format(), /is not empty: byte 0 is not zero/);
  const socket = scratch.path('s');
  const layers = ['--layer', `crypt:${disk.keyFile}`, '--layer', disk.path];
  const server = scratch.own(await BlkServer.start('--socket', socket, ...layers));
  const guest = scratch.own(await connectBlkGuest({ socket }));
  assert.equal(guest.config.capacityBytes, dataBytes);
  await assert.rejects(format('--force'), /is in use: another process/);
  await server.end();
  const again = JSON.parse(await format('--force', '--pbkdf', 'pbkdf2'));
  assert.notEqual(again.uuid, uuid);
  tryKey(disk);
  await assert.rejects(format('--force', '--iterations', '5'), /--iterations: 5, expected 1000 to/);
});
