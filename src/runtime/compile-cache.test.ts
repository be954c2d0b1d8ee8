import assert from 'node:assert/strict';
import { test } from 'node:test';
import { mkdtempDisposableSync } from 'node:fs';
import { join } from 'node:path';
import { tmpdir } from 'node:os';
import { workerEnvironment } from './compile-cache.ts';

test('an unbuilt worker has a compile cache, unless there is one or it cannot be', () => {
  using folder = mkdtempDisposableSync(join(tmpdir(), 'vring-cache-'));
  const before = { ...process.env };
  const cacheWith = (caches: string, isUnbuilt = true): string | undefined => {
    process.env['XDG_CACHE_HOME'] = caches;
    return workerEnvironment(isUnbuilt)['NODE_COMPILE_CACHE'];
  };
  try {
    delete process.env['NODE_COMPILE_CACHE'];
    assert.equal(cacheWith(folder.path), join(folder.path, 'vring/compile'));
    assert.equal(cacheWith(folder.path), join(folder.path, 'vring/compile'));
    assert.equal(cacheWith(folder.path, false), undefined);
    assert.equal(cacheWith('/proc/nowhere'), undefined);
    process.env['NODE_COMPILE_CACHE'] = '/elsewhere';
    assert.equal(cacheWith(folder.path), '/elsewhere');
  } finally {
    process.env = before;
  }
});
