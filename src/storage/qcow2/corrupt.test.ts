/** An image that says what cannot be is refused by the field, its value, and what was expected. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { requirePeer } from '../../../test/peers/require-peer.ts';
import { CutFile } from './cut-file.ts';
import { Qcow2Layer } from './qcow2-layer.ts';
import { qemuImg, randomOf, readAll, temporaryFolder } from './testing.ts';

type Change = (image: Buffer) => void;

const u32 =
  (at: number, value: number): Change =>
  (image) =>
    void image.writeUInt32BE(value, at);
const u64 =
  (at: number, value: bigint): Change =>
  (image) =>
    void image.writeBigUInt64BE(value, at);

/** Refused whoever opens it. */
const HEADER: readonly (readonly [string, Change, RegExp])[] = [
  ['magic', u32(0, 0x12345678), /magic is 0x12345678, expected 0x514649fb/],
  ['version', u32(4, 4), /version is 4, expected 2 or 3/],
  ['backing_file_offset', u64(8, 2n ** 40n), /backing_file_offset is 1099511627776, outside/],
  ['backing_file_size', (i) => (u64(8, 512n)(i), u32(16, 5000)(i)), /backing_file_size is 5000/],
  ['cluster_bits low', u32(20, 8), /cluster_bits is 8, expected 9 to 21/],
  ['cluster_bits high', u32(20, 22), /cluster_bits is 22, expected 9 to 21/],
  ['size 0', u64(24, 0n), /size is 0, expected whole sectors/],
  ['size odd', u64(24, 1000n), /size is 1000, expected whole sectors/],
  ['size huge', u64(24, 2n ** 63n), /size is 9223372036854775808, beyond every file/],
  ['size without L1', u64(24, 2n ** 50n), /l1_size is \d+, \d+ are needed for 1125899906842624/],
  ['crypt_method', u32(32, 2), /crypt_method is 2: encrypted images are not opened/],
  ['l1_size', u32(36, 2 ** 31), /l1_size is 2147483648, expected at most 4194304/],
  ['l1_table_offset', u64(40, 513n), /l1_table_offset is 513, no multiple of 4096/],
  ['l1_table_offset 0', u64(40, 0n), /l1_table_offset is 0, where the header is/],
  ['l1_table_offset far', u64(40, 2n ** 40n), /l1_table_offset is 1099511627776, outside the file/],
  ['refcount_table_offset', u64(48, 100n), /refcount_table_offset is 100, no multiple/],
  ['refcount_table_clusters', u32(56, 2 ** 30), /refcount_table_clusters is 1073741824/],
  ['nb_snapshots', u32(60, 2 ** 20), /nb_snapshots is 1048576, expected at most 65536/],
  [
    'snapshots_offset',
    (i) => (u32(60, 1)(i), u64(64, 77n)(i)),
    /snapshots_offset is 77, no multiple/,
  ],
  ['corrupt', u64(72, 2n), /incompatible_features say that it is corrupt.*qemu-img check -r/],
  ['data file', u64(72, 4n), /incompatible_features ask for an external data file/],
  [
    'bit 9',
    u64(72, 512n),
    /incompatible_features have bit 9 \(no name given\), which is not known/,
  ],
  ['bit 63', u64(72, 2n ** 63n), /have bit 63 /],
  [
    'compression bit alone',
    u64(72, 8n),
    /compression_type is 0, which its feature bit does not say/,
  ],
  ['extended L2 of 4K', u64(72, 16n), /cluster_bits is 12, expected 14 at least with extended/],
  ['refcount_order', u32(96, 7), /refcount_order is 7, expected 0 to 6/],
  ['header_length short', u32(100, 72), /header_length is 72, expected 104 to a cluster/],
  ['header_length long', u32(100, 2 ** 30), /header_length is 1073741824/],
  ['compression_type', (i) => void (i[104] = 9), /compression_type is 9, expected 0 or 1/],
  ['extension', (i) => (u32(112, 99)(i), u32(116, 2 ** 31)(i)), /extension 0x63 has 2147483648/],
];

/** Where `qemu-img create -o cluster_size=4k` and one write put things. */
function placesOf(image: Buffer) {
  const l1 = Number(image.readBigUInt64BE(40));
  const l2 = Number(image.readBigUInt64BE(l1) & 0x00fffffffffffe00n);
  const refcountTable = Number(image.readBigUInt64BE(48));
  return { l1, l2, refcountTable };
}

type Where = ReturnType<typeof placesOf>;

/** `reads`: what a reader says when it comes there. `opens`: what a writer says at once. */
const TABLES: readonly {
  readonly name: string;
  readonly change: (image: Buffer, where: Where) => void;
  readonly reads: RegExp | null;
  /** Null: nothing, it is not looked into. */
  readonly opens: RegExp | null;
}[] = [
  {
    name: 'reserved bits of an L1 entry',
    change: (image, { l1 }) => u64(l1, 0x4000000000000000n)(image),
    reads: /L1 entry 0 has reserved bits set/,
    opens: /entry 0 of the L1 table has reserved bits set/,
  },
  {
    name: 'an L1 entry outside the file',
    change: (image, { l1 }) => u64(l1, 2n ** 50n)(image),
    reads: /L1 entry 0 points to byte 1125899906842624, outside the file/,
    opens: /entry 0 of the L1 table points to 4096 bytes at 1125899906842624, outside the file/,
  },
  {
    name: 'an L1 entry between clusters',
    change: (image, { l1 }) => u64(l1, 4096n + 512n)(image),
    reads: /L1 entry 0 points to byte 4608, no multiple/,
    opens: /entry 0 of the L1 table points to byte 4608, no multiple of 4096/,
  },
  {
    name: 'an L2 table where the L1 table is',
    change: (image, { l1 }) => u64(l1, BigInt(l1))(image),
    reads: null,
    opens: /L2 table at byte \d+ is at byte \d+, where another table or the header is/,
  },
  {
    name: 'an L2 table that is two',
    change: (image, { l1, l2 }) => u64(l1 + 8, BigInt(l2))(image),
    reads: null,
    opens: /entry 1 of the L1 table points to byte \d+, as another one does/,
  },
  {
    name: 'reserved bits of an L2 entry',
    change: (image, { l2 }) => u64(l2, 2n ** 57n)(image),
    reads: /L2 entry 0 of the table at byte \d+ has bits set that mean nothing/,
    opens: /L2 entry 0 of the table at byte \d+ has bits set that mean nothing/,
  },
  {
    name: 'data outside the file',
    change: (image, { l2 }) => u64(l2, 2n ** 48n)(image),
    reads: /L2 entry 0 .* points to byte 281474976710656, outside the file/,
    opens: /L2 entry 0 .* points to byte 281474976710656, outside the file/,
  },
  {
    name: 'data where a table is',
    change: (image, { l1, l2 }) => u64(l2, BigInt(l1))(image),
    reads: null,
    opens: /L2 entry 0 .* points to byte \d+, where a table is/,
  },
  {
    name: 'compressed data outside the file',
    change: (image, { l2 }) => u64(l2, 0x4000000000000000n + 2n ** 45n)(image),
    reads: /L2 entry 0 .* points to byte 35184372088832, outside the file/,
    opens: /L2 entry 0 .* points to byte 35184372088832, outside the file/,
  },
  {
    name: 'compressed data that is none',
    change: (image, { l2 }) => u64(l2, 0x4000000000000000n + BigInt(image.length - 600))(image),
    reads: /compressed cluster at byte \d+ (cannot be unpacked as zlib|unpacks to)/,
    opens: null,
  },
  {
    name: 'a refcount table entry outside the file',
    change: (image, { refcountTable }) => u64(refcountTable, 2n ** 40n)(image),
    reads: null,
    opens: /refcount table entry 0 points to 4096 bytes at 1099511627776, outside the file/,
  },
  {
    name: 'a refcount block between clusters',
    change: (image, { refcountTable }) => u64(refcountTable + 8, 1n)(image),
    reads: null,
    opens: /refcount table entry 1 points to byte 1, no multiple/,
  },
  {
    name: 'snapshots that are not there',
    change: (image) => (u32(60, 9)(image), u64(64, BigInt(image.length - 4096))(image)),
    reads: null,
    opens: /snapshot \d lies outside|nb_snapshots asks|snapshot \d has an L1|of snapshot \d/,
  },
];

test('every field of a header', async (t) => {
  if (!requirePeer(t, 'qemu-img')) return;
  const good = imageOf(temporaryFolder(t));
  for (const [name, change, message] of HEADER) {
    const bad = Buffer.from(good);
    change(bad);
    for (const readOnly of [true, false]) {
      const opened = Qcow2Layer.open({ below: fileOf(bad), backing: null, readOnly });
      await assert.rejects(opened, { code: 'ERR_VRING_QCOW2', message }, name);
    }
  }
  const short = good.subarray(0, 40);
  const opened = Qcow2Layer.open({ below: fileOf(short), backing: null, readOnly: true });
  await assert.rejects(opened, /the file is too short for a header/);
});

test('every table', async (t) => {
  if (!requirePeer(t, 'qemu-img')) return;
  const good = imageOf(temporaryFolder(t));
  const where = placesOf(good);
  for (const { name, change, reads, opens } of TABLES) {
    const bad = Buffer.from(good);
    change(bad, where);
    const layer = await Qcow2Layer.open({ below: fileOf(bad), backing: null, readOnly: true });
    if (reads === null) await readAll(layer);
    else await assert.rejects(readAll(layer), { code: 'ERR_VRING_QCOW2', message: reads }, name);
    if (opens === null) continue;
    const writable = Qcow2Layer.open({ below: fileOf(bad), backing: null, readOnly: false });
    await assert.rejects(writable, { code: 'ERR_VRING_QCOW2', message: opens }, name);
  }
});

test('random damage is an error, a wrong byte, or nothing', async (t) => {
  if (!requirePeer(t, 'qemu-img')) return;
  const good = imageOf(temporaryFolder(t));
  const seed = Date.now() % 2 ** 31;
  console.log(`seed ${seed}`);
  const random = randomOf(seed);
  const seen = { refused: 0, opened: 0 };
  for (let round = 0; round < 400; round++) {
    const bad = Buffer.from(good);
    for (let n = 0; n < 4; n++) {
      // Where tables are, mostly.
      const at = random(3) === 0 ? random(120) : random(bad.length / 8) * 8;
      bad[at] = random(256);
    }
    try {
      const layer = await Qcow2Layer.open({ below: fileOf(bad), backing: null, readOnly: false });
      await layer.read(0, Buffer.alloc(2 ** 16));
      await layer.write(512 * random(200), Buffer.alloc(8192, 1), true);
      await layer.close();
      seen.opened++;
    } catch (error) {
      const { code, message } = error as { code?: string; message: string };
      assert.match(String(code), /^ERR_VRING_(QCOW2|DISK_IO)$/, `seed ${seed}: ${message}`);
      seen.refused++;
    }
  }
  assert.ok(seen.refused > 0);
  assert.ok(seen.opened > 0);
});

function imageOf(folder: string): Buffer {
  const path = join(folder, 'image');
  qemuImg('create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4k', path, '16M');
  const bytes = readFileSync(path);
  // The first byte of an L1 table is read by all; QEMU's own tables, one cluster of data.
  const image = Buffer.alloc(bytes.length + 3 * 4096 - (bytes.length % 4096));
  bytes.copy(image);
  const l2 = image.length - 2 * 4096;
  const l1 = Number(image.readBigUInt64BE(40));
  image.writeBigUInt64BE(2n ** 63n + BigInt(l2), l1);
  image.writeBigUInt64BE(2n ** 63n + BigInt(l2 + 4096), l2);
  image.fill(7, l2 + 4096);
  // Header extensions are QEMU's table of names: none, so that there is room for wrong ones.
  image.fill(0, 112, 4096);
  return image;
}

function fileOf(image: Buffer): CutFile {
  return new CutFile(image, () => 0);
}
