import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import {
  arena,
  arenaHostAddress,
  copyUserfault,
  createMemfd,
  createUserfaultfd,
  mapPrivateAt,
  mapRegionAt,
  readUserfault,
  registerUserfault,
  releaseRegion,
  truncate,
  unregisterUserfault,
  type Userfault,
  wakeUserfault,
} from './index.ts';

const PAGE = 4096;
const indexUrl = new URL('./index.ts', import.meta.url).href;
const place = arena().sizeBytes / 2 + 2 ** 40;
const pages = place;
const source = place + 2 ** 21;

/** A thread that reads the byte at an arena offset, and waits where it must. */
function readerOf(offset: number): { worker: Worker; value: Promise<number> } {
  const text = `
    import { arena } from ${JSON.stringify(indexUrl)};
    import { parentPort } from 'node:worker_threads';
    parentPort.postMessage(arena().bytes[${offset}]);
  `;
  const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(text)}`));
  return { worker, value: once(worker, 'message').then(([value]) => value as number) };
}

async function faultOf(uffd: number): Promise<Userfault> {
  for (;;) {
    const fault = readUserfault(uffd);
    if (fault !== null) return fault;
    await sleep(2);
  }
}

test('a page that is not there is waited for until somebody brings it', async () => {
  const memfd = createMemfd('userfaultfd test', 2 * PAGE);
  const region = mapRegionAt(pages, 2 * PAGE, memfd.number, 0);
  const own = mapPrivateAt(source, PAGE);
  const uffd = createUserfaultfd();
  try {
    registerUserfault(uffd.number, pages, 2 * PAGE);
    assert.equal(readUserfault(uffd.number), null);
    const reader = readerOf(pages + PAGE + 5);
    const fault = await faultOf(uffd.number);
    const address = arenaHostAddress() + BigInt(pages + PAGE);
    assert.deepEqual(fault, { address, write: false });
    arena().bytes[source + 5] = 77;
    copyUserfault(uffd.number, address, source, PAGE);
    assert.equal(await reader.value, 77);
    assert.throws(() => copyUserfault(uffd.number, address, source, PAGE), { errnoName: 'EEXIST' });
  } finally {
    uffd.close();
    releaseRegion(region);
    releaseRegion(own);
    memfd.close();
  }
});

test('a page that somebody else brought needs a wake, and an unregistered range none', async () => {
  const memfd = createMemfd('userfaultfd test', 2 * PAGE);
  const region = mapRegionAt(pages, 2 * PAGE, memfd.number, 0);
  const elsewhere = mapRegionAt(source, 2 * PAGE, memfd.number, 0);
  const uffd = createUserfaultfd();
  try {
    registerUserfault(uffd.number, pages, 2 * PAGE);
    const reader = readerOf(pages);
    const { address } = await faultOf(uffd.number);
    arena().bytes[source] = 9; // the same file, in a mapping that nobody guards
    wakeUserfault(uffd.number, address, PAGE);
    assert.equal(await reader.value, 9);
    unregisterUserfault(uffd.number, pages, 2 * PAGE);
    assert.equal(arena().bytes[pages + PAGE], 0);
  } finally {
    uffd.close();
    releaseRegion(region);
    releaseRegion(elsewhere);
    memfd.close();
  }
});

test('what is not mapped cannot be registered', () => {
  using uffd = createUserfaultfd();
  using memfd = createMemfd('userfaultfd test', PAGE);
  truncate(memfd.number, PAGE);
  assert.throws(() => registerUserfault(uffd.number, pages, 12), {
    code: 'ERR_VRING_SYS',
    errnoName: 'EINVAL',
  });
});
