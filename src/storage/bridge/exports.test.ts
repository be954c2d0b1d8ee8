/** A disk that a data plane drives, exported as NBD at the same time. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { after, test } from 'node:test';
import { PrivateMemory } from '../../memory/index.ts';
import { arena } from '../../sys/index.ts';
import {
  IO_WRITE,
  IoBatch,
  IoDone,
  type NbdExportStatus,
  type PartSpec,
  openEngine,
  openStack,
  type StackSpec,
} from '../index.ts';
import { openNbdLayer } from '../nbd/index.ts';

const folder = mkdtempSync(join(tmpdir(), 'vring-exports-'));
after(() => rmSync(folder, { recursive: true }));
const memory = PrivateMemory.allocate(4096);
after(() => memory.close());
const path = join(folder, 'a.img');

const kindOf = (part: PartSpec): string =>
  part.kind === 'file' && part.direct === 'on' ? 'file, O_DIRECT' : part.kind;

for (const stack of [
  [{ kind: 'memory', sizeBytes: 1 << 20 }],
  [{ kind: 'file', path }],
  [{ kind: 'file', path, direct: 'on' }],
  [{ kind: 'fault' }, { kind: 'file', path }],
] satisfies StackSpec[]) {
  const name = stack.map((part) => kindOf(part)).join(' over ');

  test(`${name}: what the guest wrote, a client of the export reads, and the other way`, async () => {
    writeFileSync(path, '');
    truncateSync(path, 1 << 20);
    const image = await openStack({ stack });
    const engine = openEngine(image.spec);
    arena().bytes.fill(7, memory.offset, memory.offset + 4096);
    const batch = new IoBatch();
    batch.add(IO_WRITE, 8192, 4096, [[memory.offset, 4096]]);
    assert.equal(engine.submit(batch, 0), 1);
    engine.settle();
    assert.equal(engine.reap(new IoDone()), 1);

    const at = { socket: join(folder, 'nbd.sock') };
    const { uri } = (await image.control('export', { at })) as NbdExportStatus;
    const client = await openNbdLayer({ uri });
    const read = new Uint8Array(4096);
    await client.read(8192, read);
    assert.deepEqual(read, new Uint8Array(4096).fill(7));
    await client.write(0, read, true);
    const listed = (await image.control('exports', undefined)) as NbdExportStatus[];
    assert.deepEqual([listed.length, listed[0]!.writtenBytes, listed[0]!.uri], [1, 4096, uri]);
    await client.close();
    await assert.rejects(
      image.control('unexport', { uri: 'x' }),
      /no export x; there is nbd\+unix/,
    );
    await image.control('unexport', { uri });
    await assert.rejects(openNbdLayer({ uri }));
    engine.close();
    await image.close();
  });
}

test('many that ask at once: eight exports and no more', async () => {
  const image = await openStack({ stack: [{ kind: 'memory', sizeBytes: 1 << 20 }] });
  const asked = Array.from({ length: 12 }, (_, i) => {
    return image.control('export', { at: { socket: join(folder, `many-${i}.sock`) } });
  });
  const settled = await Promise.allSettled(asked);
  const refused = settled.filter(({ status }) => status === 'rejected');
  assert.equal(refused.length, 4);
  assert.match(String((refused[0] as PromiseRejectedResult).reason), /has 8 exports at most/);
  assert.equal(((await image.control('exports', undefined)) as unknown[]).length, 8);
  await image.close();
});

for (const below of [[], [{ kind: 'fault' }]] satisfies StackSpec[]) {
  const name = below.length === 0 ? 'without layers' : 'of layers';

  test(`a disk ${name}: guest and export together have its limit`, async (t) => {
    const source = { kind: 'memory', sizeBytes: 1 << 20 } as const;
    const limit = { kind: 'limit', iops: 100, burstSeconds: 0 } as const;
    const image = await openStack({ stack: [limit, ...below, source] });
    const engine = openEngine(image.spec);
    const at = { socket: join(folder, 'limited.sock') };
    const { uri } = (await image.control('export', { at })) as NbdExportStatus;
    const client = await openNbdLayer({ uri, timeoutSeconds: 3 });
    t.after(async () => {
      await client.close();
      engine.close();
      await image.close();
    });
    const startMs = performance.now();
    let [guest, exported] = [0, 0];
    const reading = (async () => {
      for (; performance.now() - startMs < 1000; exported++) {
        await client.read(0, new Uint8Array(512));
      }
    })();
    const done = new IoDone();
    while (performance.now() - startMs < 1000) {
      const batch = new IoBatch();
      batch.add(IO_WRITE, 8192, 512, [[memory.offset, 512]]);
      guest += engine.submit(batch, 0);
      await sleep(1);
      engine.reap(done);
    }
    await reading;
    const most = 5 + (performance.now() - startMs) / 10;
    assert.ok(guest + exported <= most, `${guest} and ${exported}, ${most} at most`);
    assert.ok(guest >= 5 && exported >= 5, `${guest} and ${exported}: each has a share`);

    await image.control('limits', { iops: 0.001, burstSeconds: 0 });
    const asked = [1, 2].map(() => client.read(0, new Uint8Array(512)));
    const waiting = Promise.allSettled(asked);
    await sleep(100);
    const endMs = performance.now();
    await image.control('unexport', { uri });
    assert.ok(performance.now() - endMs < 2000, 'who leaves does not wait for the limit');
    await client.close();
    assert.equal((await waiting)[1]!.status, 'rejected');
    engine.settle();
    engine.reap(done);
  });
}
