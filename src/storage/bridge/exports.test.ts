/** A disk that a data plane drives, exported as NBD at the same time. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { PrivateMemory } from '../../memory/index.ts';
import { arena } from '../../sys/index.ts';
import {
  IO_WRITE,
  IoBatch,
  IoDone,
  type NbdExportStatus,
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

for (const stack of [
  [{ kind: 'memory', sizeBytes: 1 << 20 }],
  [{ kind: 'file', path }],
  [{ kind: 'fault' }, { kind: 'file', path }],
] satisfies StackSpec[]) {
  const name = stack.map(({ kind }) => kind).join(' over ');

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
