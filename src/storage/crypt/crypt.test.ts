/** LUKS2 by itself: what we format, we open; what is broken is repaired or refused by name. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { randomBytes, randomInt } from 'node:crypto';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { createMemoryImage, type DiskImage } from '../disk-image.ts';
import type { Layer } from '../layer/layer.ts';
import { MemoryLayer } from '../layer/memory-layer.ts';
import type { MemoryEngineSpec } from '../memory-engine.ts';
import { type CryptLayer, openCryptLayer } from './crypt-layer.ts';
import { formatLuks2, type FormatOptions } from './format-luks2.ts';
import { readCopy, writeCopy, type HeaderCopy } from './luks2-layout.ts';

const MIB = 2 ** 20;
const DISK_BYTES = 18 * MIB;
const HEADER_BYTES = 16384;
const folder = mkdtempSync(join(tmpdir(), 'vring-crypt-'));
after(() => rmSync(folder, { recursive: true }));
const passphrase = randomBytes(48);
const keyFile = join(folder, 'key');
writeFileSync(keyFile, passphrase);
const CHEAP = { type: 'pbkdf2', iterations: 1000 } as const;

const images: DiskImage[] = [];
after(async () => {
  for (const image of images) await image.close();
});

function memoryLayer(readOnly = false): Layer {
  const image = createMemoryImage(DISK_BYTES);
  images.push(image);
  return new MemoryLayer({ ...(image.spec as MemoryEngineSpec), readOnly });
}

async function formatted(options: Partial<FormatOptions> = {}): Promise<Layer> {
  const below = memoryLayer();
  await formatLuks2(below, { passphrase, kdf: CHEAP, ...options });
  return below;
}

const openIt = (below: Layer): Promise<CryptLayer> =>
  openCryptLayer(below, { kind: 'crypt', keyFile });

async function readAt(layer: Layer, at: number, sizeBytes: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(sizeBytes);
  await layer.read(at, bytes);
  return bytes;
}

async function headerAt(below: Layer, at: number): Promise<HeaderCopy> {
  const copy = readCopy(await readAt(below, at, HEADER_BYTES));
  assert.ok(typeof copy !== 'string', String(copy));
  return copy;
}

/** As far as the tests look into it. */
type Json = { [name: string]: Json };

/** Both copies with another JSON text. */
async function withJson(change: (json: Json) => unknown): Promise<Layer> {
  const below = await formatted();
  const copy = await headerAt(below, 0);
  const changed = change(JSON.parse(copy.json));
  const json = typeof changed === 'string' ? changed : JSON.stringify(changed);
  await below.write(0, writeCopy({ ...copy, json }, 'primary'), false);
  await below.write(HEADER_BYTES, writeCopy({ ...copy, json }, 'secondary'), false);
  return below;
}

for (const sectorBytes of [512, 4096]) {
  test(`sectors of ${sectorBytes}: random requests leave what a byte array has`, async () => {
    const below = await formatted({ sectorBytes });
    const layer = await openIt(below);
    assert.equal(layer.sizeBytes, 2 * MIB);
    const model = await readAt(layer, 0, layer.sizeBytes);
    const underWay: Promise<void>[] = [];
    for (let round = 0; round < 300; round++) {
      const size = 512 * (1 + randomInt(32));
      const at = 512 * randomInt((layer.sizeBytes - size) / 512);
      const op = randomInt(4);
      if (op === 0) {
        await Promise.all(underWay.splice(0));
        assert.deepEqual(await readAt(layer, at, size), model.slice(at, at + size));
      } else if (op === 1) {
        await Promise.all(underWay.splice(0));
        model.fill(0, at, at + size);
        await layer.zero(at, size, { unmap: true, fua: false });
        await layer.discard(at, size); // which keeps what is there
      } else {
        const data = randomBytes(size);
        model.set(data, at);
        underWay.push(layer.write(at, data, round % 2 === 0)); // neighbours at once
      }
    }
    await Promise.all(underWay);
    await layer.flush();
    assert.deepEqual(await readAt(layer, 0, layer.sizeBytes), model);
    assert.deepEqual(await readAt(await openIt(below), 0, layer.sizeBytes), model, 'opened anew');
    const medium = await readAt(below, 16 * MIB, 2 * MIB);
    let same = 0;
    for (const [i, byte] of medium.entries()) if (byte === model[i]) same++;
    assert.ok(same < medium.length / 100, `${same} bytes are on the medium as they are`);
  });
}

test('argon2id, keys of 256 bits, a label', async () => {
  const kdf = { type: 'argon2id', memoryKib: 1024, passes: 1 } as const;
  const below = await formatted({ kdf, keyBytes: 32, label: 'vm0' });
  assert.equal((await openIt(below)).slot, '0');
  assert.equal((await headerAt(below, 0)).label, 'vm0');
});

test('a wrong key is told by its keyslots, and never shown', async () => {
  const below = await formatted();
  const path = join(folder, 'other');
  writeFileSync(path, 'a secret that is wrong');
  const error = await openCryptLayer(below, { kind: 'crypt', keyFile: path }).catch((e) => e);
  assert.match(error.message, /memory:\d+: the key opens none of keyslots 0\. cryptsetup/);
  assert.doesNotMatch(error.message, /secret/);
});

test('a newline is part of a key; an empty, a missing and a huge file are refused', async () => {
  const below = await formatted();
  const path = join(folder, 'newline');
  const openWith = (): Promise<CryptLayer> =>
    openCryptLayer(below, { kind: 'crypt', keyFile: path });
  writeFileSync(path, Buffer.concat([passphrase, Buffer.from('\n')]));
  await assert.rejects(openWith(), /opens none of keyslots/);
  writeFileSync(path, '');
  await assert.rejects(openWith(), /newline is empty/);
  writeFileSync(path, Buffer.alloc(8192 * 1024 + 1));
  await assert.rejects(openWith(), /has more than 8388608 bytes/);
  rmSync(path);
  await assert.rejects(openWith(), /newline cannot be opened: ENOENT/);
});

test('either copy of the header is enough, and is written anew', async () => {
  for (const [broken, at] of [
    ['primary', 0],
    ['secondary', HEADER_BYTES],
  ] as const) {
    const below = await formatted();
    const sector = await readAt(below, at + 4096, 512);
    sector[3]! ^= 1; // of the JSON text
    await below.write(at + 4096, sector, false);
    const layer = await openIt(below);
    assert.match(layer.repaired!, new RegExp(`${broken} copy: its checksum is wrong`));
    assert.equal((await openIt(below)).repaired, null);
    assert.deepEqual((await headerAt(below, 0)).json, (await headerAt(below, HEADER_BYTES)).json);
  }
});

test('of two whole copies the newer one is right', async () => {
  for (const newer of ['primary', 'secondary'] as const) {
    const below = await formatted();
    const at = newer === 'primary' ? 0 : HEADER_BYTES;
    const copy = await headerAt(below, at);
    await below.write(at, writeCopy({ ...copy, seqid: 9, label: 'newer' }, newer), false);
    assert.match((await openIt(below)).repaired!, /it was older/);
    for (const place of [0, HEADER_BYTES]) {
      const { seqid, label } = await headerAt(below, place);
      assert.deepEqual([seqid, label], [9, 'newer']);
    }
  }
});

test("a first sector of zeros is repaired, somebody else's is not; read-only nothing is", async () => {
  const below = await formatted();
  const primary = await readAt(below, 0, 4096);
  await below.write(0, new Uint8Array(4096), false);
  assert.match((await openIt(below)).repaired!, /primary copy: no LUKS magic/);
  const foreign = randomBytes(4096);
  await below.write(0, foreign, false);
  await assert.rejects(openIt(below), /begins with something that is not LUKS.*cryptsetup repair/);
  assert.deepEqual(await readAt(below, 0, 4096), new Uint8Array(foreign), 'untouched');
  await below.write(0, primary, false);
  assert.equal((await openIt(below)).repaired, null);
});

test('no header at all', async () => {
  const message = /has no LUKS2 header that is whole: primary: no LUKS magic; secondary: not found/;
  await assert.rejects(openIt(memoryLayer()), message);
});

test('what is there is not formatted unless it may be replaced', async () => {
  const below = await formatted();
  const message = /is not empty: byte 0 is not zero, and a header of 16777216 bytes destroys/;
  await assert.rejects(formatLuks2(below, { passphrase, kdf: CHEAP }), { message });
  const late = memoryLayer(); // as formats are that begin late
  await late.write(65_536, new Uint8Array(512).fill(1), false);
  await assert.rejects(formatLuks2(late, { passphrase, kdf: CHEAP }), /byte 65536 is not zero/);
  await formatLuks2(below, { passphrase, kdf: CHEAP, replace: true });
  const readOnly = memoryLayer(true);
  await assert.rejects(formatLuks2(readOnly, { passphrase, kdf: CHEAP }), /is read-only/);
});

const HOSTILE: [string, (json: Json) => unknown, RegExp][] = [
  ['no JSON', () => '{', /is no JSON/],
  ['an array', () => [], /header is no object/],
  ['nothing', () => ({}), /config is missing/],
  [
    'a re-encryption',
    (j) => set(j, 'config.requirements', { mandatory: ['online-reencrypt'] }),
    /online-reencrypt.*reencrypt --resume-only/,
  ],
  ['two segments', (j) => set(j, 'segments.1', j['segments']!['0']), /has 2 segments/],
  [
    'many slots',
    (j) => set(j, 'keyslots', Object.fromEntries(Array.from({ length: 33 }, (_, i) => [i, {}]))),
    /33 entries, expected 32/,
  ],
  [
    'a segment over the header',
    (j) => set(j, 'segments.0.offset', '4096'),
    /segments\.0\.offset is 4096/,
  ],
  ['a segment beyond the end', (j) => set(j, 'segments.0.offset', '18874368'), /ends at 18878464/],
  ['a huge offset', (j) => set(j, 'segments.0.offset', '99999999999999999999'), /below 2\^53/],
  ['a number for text', (j) => set(j, 'segments.0.offset', 16777216), /offset is no text/],
  [
    'another cipher',
    (j) => set(j, 'segments.0.encryption', 'serpent-xts-plain64'),
    /is serpent-xts-plain64, expected aes-xts-plain64/,
  ],
  ['integrity', (j) => set(j, 'segments.0.integrity', { type: 'hmac(sha256)' }), /integrity/],
  ['an odd sector', (j) => set(j, 'segments.0.sector_size', 768), /sector_size is 768/],
  ['no digest', (j) => set(j, 'digests', {}), /has no digest/],
  ['a short digest', (j) => set(j, 'digests.0.digest', 'AAAA'), /has 3 bytes/],
  ['a dear digest', (j) => set(j, 'digests.0.iterations', 4e9), /expected 1 to 100000000/],
  ['a slot in the header', (j) => set(j, 'keyslots.0.area.offset', '0'), /keyslot 0: its area is/],
  [
    'a slot beyond its area',
    (j) => set(j, 'keyslots.0.area.size', '4096'),
    /do not fit 4096 bytes/,
  ],
  ['many stripes', (j) => set(j, 'keyslots.0.af.stripes', 1e9), /stripes is 1000000000/],
  ['an odd key', (j) => set(j, 'keyslots.0.key_size', 48), /48 bytes, AES-XTS has 32 or 64/],
  ['another hash', (j) => set(j, 'keyslots.0.af.hash', 'md5'), /is md5, expected one of sha1/],
  [
    'another kdf',
    (j) => set(j, 'keyslots.0.kdf.type', 'scrypt'),
    /scrypt, expected pbkdf2, argon2i/,
  ],
  [
    'four GiB',
    (j) => set(j, 'keyslots.0.kdf', argon({ memory: 4194304 })),
    /keyslot 0: argon2id wants 4194304 KiB of memory, 1048576 are given/,
  ],
  [
    'an endless kdf',
    (j) => set(j, 'keyslots.0.kdf', argon({ time: 4e9 })),
    /wants 4000000000 passes/,
  ],
  ['an ignored slot', (j) => set(j, 'keyslots.0.priority', 0), /no keyslot can be tried.*ignore/],
  [
    'a prototype',
    (j) => JSON.stringify(j).replace('"keyslots"', '"__proto__"'),
    /keyslots is missing/,
  ],
];

function argon(change: object): object {
  return {
    type: 'argon2id',
    time: 4,
    memory: 1024,
    cpus: 1,
    salt: 'AAAAAAAAAAAAAAAAAAAAAA==',
    ...change,
  };
}

function set(json: Json, path: string, value: unknown): unknown {
  const names = path.split('.');
  const last = names.pop()!;
  let object = json;
  for (const name of names) object = object[name]!;
  object[last] = value as Json;
  return json;
}

for (const [name, change, message] of HOSTILE) {
  test(`a header with ${name} is refused by name`, async () => {
    const below = await withJson(change);
    await assert.rejects(openIt(below), (error: Error & { code: string }) => {
      assert.equal(error.code, 'ERR_VRING_DISK_CRYPT');
      assert.match(error.message, message);
      assert.match(error.message, /^memory:/);
      return true;
    });
  });
}

test('any bit of both headers may be wrong: an error by name, or the same disk', async () => {
  const below = await formatted();
  const layer = await openIt(below);
  await layer.write(0, new Uint8Array(512).fill(7), false);
  const good = await readAt(below, 0, 2 * HEADER_BYTES);
  for (let round = 0; round < 60; round++) {
    const bad = good.slice();
    for (let flips = 0; flips < 3; flips++) {
      const at = randomInt(2) * HEADER_BYTES + randomInt(6000);
      bad[at]! ^= 1 << randomInt(8);
    }
    await below.write(0, bad, false);
    try {
      assert.equal((await readAt(await openIt(below), 0, 512))[0], 7);
    } catch (error) {
      assert.equal((error as { code: string }).code, 'ERR_VRING_DISK_CRYPT', String(error));
    }
  }
});
