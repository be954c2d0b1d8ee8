/**
 * @test-host memory=1536 long
 *
 * The data behind a LUKS2 header, as the kernel's dm-crypt has it and as we have it: what one
 * wrote the other reads, in both sizes of sectors, whoever made the header.
 */
import { deepEqual } from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { closeSync, fsyncSync, openSync, readSync, writeFileSync, writeSync } from 'node:fs';
import { before, test } from 'node:test';
import type { CryptLayer } from '../../src/storage/crypt/crypt-layer.ts';
import { LuksDisk } from '../peers/luks-disk.ts';
import { Scratch } from '../peers/scratch.ts';
import { loadModules, run, waitForPath } from './inside.ts';

const MIB = 2 ** 20;
/** Data behind 16 MiB of header: AES is interpreted in there. */
const DISK_BYTES = 18 * MIB;
const MAPPED = '/dev/mapper/vring-luks2';
const KDF = { type: 'pbkdf2', iterations: 1000 } as const;

before(() => loadModules('loop', 'dm_crypt', 'xts', 'ext4'));

/** Opens it by dm-crypt for as long as `use` takes. */
async function withKernel<T>(disk: LuksDisk, use: () => Promise<T>): Promise<T> {
  // Without udev nobody waits for a node to be made, or makes it but libdevmapper itself.
  process.env['DM_DISABLE_UDEV'] = '1';
  await run('cryptsetup', ['open', '--key-file', disk.keyFile, disk.path, 'vring-luks2']);
  try {
    await waitForPath(MAPPED);
    return await use();
  } finally {
    await run('cryptsetup', ['close', 'vring-luks2']);
  }
}

function hashOf(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

async function readAll(layer: CryptLayer): Promise<Uint8Array> {
  const bytes = new Uint8Array(layer.sizeBytes);
  await layer.read(0, bytes);
  return bytes;
}

for (const [sectorBytes, maker] of [
  [512, 'cryptsetup'],
  [4096, 'vring'],
] as const) {
  test(`sectors of ${sectorBytes}, header by ${maker}`, async () => {
    await using scratch = new Scratch();
    const keyFile = scratch.path('key');
    const passphrase = randomBytes(32);
    writeFileSync(keyFile, passphrase);
    const disk = new LuksDisk(scratch.path('disk.img'), DISK_BYTES, keyFile);
    if (maker === 'vring') {
      await disk.format({ passphrase, kdf: KDF, sectorBytes });
    } else {
      const kdf = ['--pbkdf=pbkdf2', '--pbkdf-force-iterations=1000'];
      const words = ['--type=luks2', '--batch-mode', `--sector-size=${sectorBytes}`, ...kdf];
      await run('cryptsetup', ['luksFormat', ...words, disk.path, keyFile]);
    }

    // Ours first: all of it, and single sectors within encrypted ones.
    let layer = await disk.open();
    const ours = new Uint8Array(randomBytes(layer.sizeBytes));
    await layer.write(0, ours, false);
    for (const at of [512, 4096 + 1024, ours.length - 512]) {
      ours.fill(at % 251, at, at + 512);
      await layer.write(at, ours.subarray(at, at + 512), false);
    }
    await layer.flush();
    await layer.close();
    const theirs = new Uint8Array(ours.length);
    await withKernel(disk, async () => {
      const fd = openSync(MAPPED, 'r+');
      readSync(fd, theirs, 0, theirs.length, 0);
      const data = randomBytes(MIB / 2);
      writeSync(fd, data, 0, data.length, MIB);
      ours.set(data, MIB);
      fsyncSync(fd);
      closeSync(fd);
    });
    // dm-crypt has read what we wrote, except for what it changed afterwards.
    deepEqual(hashOf(theirs.subarray(0, MIB)), hashOf(ours.subarray(0, MIB)));
    deepEqual(hashOf(theirs.subarray(1.5 * MIB)), hashOf(ours.subarray(1.5 * MIB)));
    layer = scratch.own(await disk.open());
    deepEqual(hashOf(await readAll(layer)), hashOf(ours), 'we read what dm-crypt wrote');
  });
}
