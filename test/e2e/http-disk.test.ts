/** A disk on somebody else's web server, read by somebody else's NBD client: all that is between is ours. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import type { AddressInfo } from 'node:net';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { openStack } from '../../src/storage/index.ts';
import type { NbdExportStatus } from '../../src/storage/index.ts';
import { endChild, startChild } from '../../src/vmm/index.ts';
import { requirePeer } from '../peers/require-peer.ts';
import { Scratch, waitFor } from '../peers/scratch.ts';

const run = promisify(execFile);

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

test('busybox httpd, our cache in a file, our export, nbdcopy', async (t) => {
  if (!requirePeer(t, 'busybox', 'nbdcopy')) return;
  await using scratch = new Scratch();
  const content = randomBytes(8 * 2 ** 20);
  writeFileSync(scratch.path('disk.img'), content);
  const port = await freePort();
  const args = ['httpd', '-f', '-p', `127.0.0.1:${port}`, '-h', scratch.folder];
  const child = startChild('busybox', args, { stdio: 'ignore' });
  scratch.own({ close: () => endChild(child) });
  const url = `http://127.0.0.1:${port}/disk.img`;
  await waitFor('busybox httpd', 5000, () =>
    fetch(url, { method: 'HEAD' }).then(
      ({ ok }) => ok,
      () => false,
    ),
  );
  const cache = { path: scratch.path('cache'), sizeBytes: 2 ** 24 };
  const copy = scratch.path('copy.img');
  for (let round = 0; round < 2; round++) {
    const image = await openStack({ stack: [{ kind: 'http', url, cache }], readOnly: true });
    scratch.own(image);
    const at = { socket: scratch.path('nbd') };
    const { uri } = (await image.control('export', { at })) as NbdExportStatus;
    writeFileSync(copy, Buffer.alloc(content.length));
    await run('nbdcopy', [uri, copy], { timeout: 30_000 });
    assert.ok(readFileSync(copy).equals(content), `round ${round}`);
    const { httpRequests } = await image.counters();
    assert.equal(httpRequests, round === 0 ? 32 : 0, 'what was read once is kept');
    await image.close();
  }
});
