/** With files that wait: whoever else has them may make them so at any moment. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { constants, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  type Fd,
  openFd,
  openFdCount,
  readNow,
  setNonblocking,
  socketPair,
  writeNow,
} from './index.ts';

type Stream = { readonly from: Fd; readonly into: Fd };

function pipe(): Stream {
  const folder = mkdtempSync(join(tmpdir(), 'vring-now-'));
  const path = join(folder, 'fifo');
  execFileSync('mkfifo', [path]);
  using both = openFd(path, constants.O_RDWR); // so that neither end waits for the other
  const ends = {
    from: openFd(path, constants.O_RDONLY),
    into: openFd(path, constants.O_WRONLY),
  };
  void both;
  rmSync(folder, { recursive: true });
  return ends;
}

function socket(): Stream {
  const [from, into] = socketPair();
  for (const fd of [from, into]) setNonblocking(fd.number, false);
  return { from, into };
}

for (const [name, make] of Object.entries({ pipe, socket })) {
  test(`${name}: nothing to read and no room are answers, not waits`, () => {
    const before = openFdCount();
    const { from, into } = make();
    const some = new Uint8Array(100_000);
    assert.equal(readNow(from.number, some), null);
    const bytes = Uint8Array.from({ length: 3_000_000 }, (_, i) => (i * 31) >> 8);
    const got = new Uint8Array(bytes.length);
    let written = 0;
    let read = 0;
    let full = 0;
    while (read < bytes.length) {
      const now = written < bytes.length ? writeNow(into.number, bytes.subarray(written)) : null;
      if (now !== null) {
        written += now;
        continue;
      }
      full++;
      // Less than a page: a pipe has room for a part of the next write at most.
      const count = readNow(from.number, some.subarray(0, full % 3 === 0 ? 777 : undefined));
      assert(count !== null && count > 0);
      got.set(some.subarray(0, count), read);
      read += count;
    }
    assert.deepEqual(got, bytes);
    assert(full > 20);
    into.close();
    assert.equal(readNow(from.number, some), 0, 'the end');
    from.close();
    assert.equal(openFdCount(), before);
  });

  test(`${name}: who does not read any more is an error`, () => {
    const { from, into } = make();
    from.close();
    assert.throws(() => writeNow(into.number, Uint8Array.of(1)), { errnoName: 'EPIPE' });
    into.close();
    assert.throws(() => readNow(1_000_000, new Uint8Array(1)), { errnoName: 'EBADF' });
  });
}
