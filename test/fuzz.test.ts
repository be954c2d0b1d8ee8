/** Every fuzzer for ten seconds, with a fresh seed that is printed; longer by `npm run fuzz`. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { globSync } from 'node:fs';
import { basename, join } from 'node:path';
import { test } from 'node:test';

const ROOT = join(import.meta.dirname, '..');
const SECONDS = 10;

for (const file of globSync('src/**/*.fuzz.ts', { cwd: ROOT })) {
  const name = basename(file, '.fuzz.ts');
  test(`${name} survives ${SECONDS} s of garbage`, (t) => {
    const args = [join(ROOT, 'scripts/fuzz.ts'), '--seconds', String(SECONDS), name];
    const run = spawnSync(process.execPath, args, { encoding: 'utf8', timeout: SECONDS * 4000 });
    t.diagnostic(run.stdout.trim());
    assert.equal(run.status, 0, `${run.stdout}${run.stderr}`);
  });
}
