/** GET LBA STATUS: what files and layers know of their blocks, and who knows nothing. */
import assert from 'node:assert/strict';
import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import {
  createMemoryImage,
  createNullImage,
  type DiskImage,
  openFileImage,
  openStack,
  parseStack,
} from '../../storage/index.ts';
import * as scsi from '../../wire/scsi.ts';
import { NONE } from './late-fixture.ts';
import { cdb, ScsiFixture, type ScsiAnswer } from './scsi-fixture.ts';

const MIB = 2 ** 20;
const folder = mkdtempSync(join(tmpdir(), 'vring-lba-'));
after(() => rmSync(folder, { recursive: true }));

/** 4 MiB: a hole, data from 1 to 2 MiB, a hole. */
function sparse(name: string): string {
  const path = join(folder, name);
  const fd = openSync(path, 'w');
  ftruncateSync(fd, 4 * MIB);
  writeSync(fd, Buffer.alloc(MIB, 7), 0, MIB, MIB);
  closeSync(fd);
  return path;
}

type Run = [lba: number, blocks: number, status: number];

function decode({ data }: ScsiAnswer): Run[] {
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  const runs: Run[] = [];
  for (let at = 8; at < data.length; at += 16) {
    runs.push([Number(view.getBigUint64(at)), view.getUint32(at + 8), data[at + 12]!]);
  }
  return runs;
}

async function carryOut(
  f: ScsiFixture,
  bytes: Uint8Array,
  out: Uint8Array,
  size = 0,
): Promise<ScsiAnswer> {
  const sent = f.send(0, 0, bytes, out, size);
  for (let i = 0; i < 500; i++) {
    for (const token of f.watched.values()) f.plane.ready(token, performance.now());
    f.poll();
    const answer = f.answerOf(sent);
    if (answer !== null) return answer;
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
  throw new Error('no answer');
}

function ask(f: ScsiFixture, lba: number, size = 512): Promise<ScsiAnswer> {
  const bytes = cdb(scsi.SERVICE_ACTION_IN_16, 16, [1, 1, 0x12], [2, 8, lba], [10, 4, size]);
  return carryOut(f, bytes, NONE, size);
}

async function serve(
  image: DiskImage,
  use: (f: ScsiFixture) => Promise<void>,
  blockBytes = 512,
): Promise<void> {
  const f = new ScsiFixture({ units: [{ target: 0, lun: 0, image, blockBytes }] }).ready();
  await use(f);
  await f.close();
}

const HOLES: Run[] = [
  [0, 2048, 1],
  [2048, 2048, 0],
  [4096, 4096, 1],
];

for (const [means, options] of Object.entries({
  'system calls': { uring: 'off' },
  io_uring: { uring: 'auto', direct: 'off' },
} as const)) {
  test(`a file by ${means}: holes are deallocated`, async () => {
    const image = openFileImage({ path: sparse('direct'), ...options });
    await serve(image, async (f) => {
      assert.deepEqual(decode(await ask(f, 0)), HOLES);
      assert.deepEqual(decode(await ask(f, 3000)), [[3000, 1096, 0], HOLES[2]]);
      assert.deepEqual(decode(await ask(f, 8191)), [[8191, 1, 1]]);
      assert.equal((await ask(f, 8192)).sense?.asc, 0x21);
      const short = await ask(f, 0, 24);
      assert.deepEqual([short.data.length, short.data[3]], [24, 4 + 3 * 16]);
      // What is unmapped is seen to be.
      const list = new Uint8Array(24);
      list.set([0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0]);
      assert.equal((await carryOut(f, cdb(scsi.UNMAP, 10, [7, 2, 24]), list)).status, 0);
      assert.deepEqual(decode(await ask(f, 0)), [[0, 8192, 1]]);
    });
  });
}

test('a file that may only be read, and blocks of 4096 bytes', async () => {
  const image = openFileImage({ path: sparse('read-only'), readOnly: true });
  const use = async (f: ScsiFixture): Promise<void> => {
    assert.deepEqual(
      decode(await ask(f, 0)),
      HOLES.map(([lba, n, s]) => [lba / 8, n / 8, s]),
    );
  };
  await serve(image, use, 4096);
});

test('a stack of layers is asked on its storage thread', async () => {
  const stack = parseStack([`overlay:${join(folder, 'top')}`, sparse('base')], 'layers');
  await serve(await openStack({ stack }), async (f) => {
    assert.deepEqual(decode(await ask(f, 0)), HOLES);
    const data = new Uint8Array(65536).fill(1);
    const write = cdb(scsi.WRITE_10, 10, [2, 4, 4096], [7, 2, 128]);
    assert.equal((await carryOut(f, write, data)).status, 0);
    assert.deepEqual(decode(await ask(f, 0)), [
      [0, 2048, 1],
      [2048, 2176, 0],
      [4224, 3968, 1],
    ]);
  });
});

test('who knows nothing says that all is mapped', async () => {
  for (const image of [createMemoryImage(4 * MIB), createNullImage(4 * MIB)]) {
    await serve(image, async (f) => {
      assert.deepEqual(decode(await ask(f, 5)), [[5, 8187, 0]]);
      assert.equal(f.status().errors, 0);
    });
  }
});

test('it looks a GiB far', async () => {
  const path = join(folder, 'large');
  const fd = openSync(path, 'w');
  ftruncateSync(fd, 2 ** 31);
  closeSync(fd);
  await serve(openFileImage({ path }), async (f) => {
    assert.deepEqual(decode(await ask(f, 0)), [[0, 2 ** 21, 1]]);
    assert.deepEqual(decode(await ask(f, 2 ** 21 + 8)), [[2 ** 21 + 8, 2 ** 21 - 8, 1]]);
  });
});
