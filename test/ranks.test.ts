/**
 * The folder tree is the architecture: a folder imports folders of a lower rank only, folders of
 * the same rank are strangers (ARCHITECTURE.md, "Folders and ranks").
 */
import assert from 'node:assert/strict';
import { globSync, readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { test } from 'node:test';

const RANKS: Readonly<Record<string, number>> = {
  base: 0,
  wire: 0,
  sys: 0,
  memory: 1,
  switch: 1,
  virtqueue: 2,
  'vhost-user': 2,
  'vhost-kernel': 2,
  uplinks: 2,
  storage: 2,
  capture: 2,
  runtime: 3,
  devices: 4,
  guest: 5,
  vmm: 5,
  recorder: 5,
  conformance: 5,
  daemon: 5,
  compare: 6,
  cli: 7,
  dashboard: 7,
};

/** Rank 0 is not quite flat: errors are for everybody, and syscalls need the kernel's layouts. */
const SAME_RANK_ALLOWED = new Set(['wire > base', 'sys > base', 'sys > wire']);

/** Folders that may use packages; ranks 0-4 have no run-time dependencies. */
const MAY_USE_PACKAGES = new Set(['daemon', 'cli', 'dashboard']);

const SRC = join(import.meta.dirname, '..', 'src');
const IMPORT = /(?:\bfrom\s*|\bimport\s*\(?\s*)'([^']+)'/g;

type Import = { file: string; folder: string; target: string; kind: 'folder' | 'package' };

function folderOf(file: string): string {
  return relative(SRC, file).split('/')[0];
}

function importsOf(file: string): Import[] {
  const folder = folderOf(file);
  const found: Import[] = [];
  for (const [, specifier] of readFileSync(file, 'utf8').matchAll(IMPORT)) {
    if (specifier.startsWith('node:')) continue;
    if (!specifier.startsWith('.')) {
      found.push({ file, folder, target: specifier, kind: 'package' });
      continue;
    }
    const target = folderOf(join(dirname(file), specifier));
    if (target !== folder) found.push({ file, folder, target, kind: 'folder' });
  }
  return found;
}

const files = globSync('**/*.ts', { cwd: SRC }).map((file) => join(SRC, file));
const shipped = files.filter(
  (file) => !/\.(test|fuzz|bench)\.ts$/.test(file) && file !== join(SRC, 'index.ts'),
);

test('every folder has a rank', () => {
  for (const file of shipped)
    assert.ok(folderOf(file) in RANKS, `${relative(SRC, file)} has no rank`);
});

test('imports point to lower ranks', () => {
  const wrong = shipped
    .flatMap(importsOf)
    .filter((i) => i.kind === 'folder')
    .filter((i) => RANKS[i.target] >= RANKS[i.folder])
    .filter((i) => !SAME_RANK_ALLOWED.has(`${i.folder} > ${i.target}`))
    .map((i) => `${relative(SRC, i.file)} imports ${i.target}`);
  assert.deepEqual(wrong, []);
});

test('ranks 0-4 import no packages', () => {
  const wrong = shipped
    .flatMap(importsOf)
    .filter((i) => i.kind === 'package' && !MAY_USE_PACKAGES.has(i.folder))
    .map((i) => `${relative(SRC, i.file)} imports ${i.target}`);
  assert.deepEqual(wrong, []);
});

test('the reader of imports sees them', () => {
  // The rules above pass vacuously if the expression finds nothing.
  const imports = shipped.flatMap(importsOf);
  assert.ok(imports.some((i) => i.folder === 'runtime' && i.target === 'sys'));
  assert.ok(imports.some((i) => i.kind === 'package'));
});
