/**
 * STYLE.md's measurable rules. Each names its exceptions here, with the reason.
 */
import assert from 'node:assert/strict';
import { globSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';

const ROOT = join(import.meta.dirname, '..');
const sources = globSync('{src,test,bench,scripts}/**/*.ts', { cwd: ROOT });
const read = (file: string): string => readFileSync(join(ROOT, file), 'utf8');
const isTest = (file: string): boolean => /\.(test|fuzz|bench)\.ts$/.test(file);

/** What must not stand in a hot file, and what to do instead. */
const BANNED_IN_HOT: readonly (readonly [RegExp, string])[] = [
  [/=>/, 'no closures: a free function'],
  [/\btry\b|\bthrow\b/, 'no exceptions: a negative code'],
  [/\basync\b|\bawait\b|\byield\b/, 'nothing that suspends'],
  [/\bfor \(const\b.*\bof\b/, 'no iterators: an index'],
  [/\.(map|filter|forEach|slice|subarray|push|concat)\(/, 'no allocation: columns'],
  [/\b\d+n\b|\bBigInt\(/, 'no bigint: two u32, or numbers below 2^53'],
  [/\{ *\.\.\.|\[ *\.\.\./, 'no spreading'],
];

function withoutComments(text: string): string {
  return text
    .replace(/\/\*[\s\S]*?\*\//g, (comment) => comment.replace(/[^\n]/g, ' '))
    .replace(/\/\/.*$/gm, '');
}

test('hot files hold to the hot rules', () => {
  const wrong: string[] = [];
  for (const file of sources.filter((name) => name.endsWith('.hot.ts'))) {
    const lines = withoutComments(read(file)).split('\n');
    for (const [i, line] of lines.entries()) {
      for (const [banned, instead] of BANNED_IN_HOT) {
        if (banned.test(line)) wrong.push(`${file}:${i + 1}: ${instead}: ${line.trim()}`);
      }
    }
  }
  assert.deepEqual(wrong, []);
});

test('files stay below 500 lines, lines below 101 columns; tests may quote long messages', () => {
  const wrong: string[] = [];
  for (const file of sources) {
    const lines = read(file).split('\n');
    if (!isTest(file) && lines.length > 501) wrong.push(`${file} has ${lines.length - 1} lines`);
    if (isTest(file)) continue;
    for (const [i, line] of lines.entries()) {
      if (line.length > 100 && !/https?:/.test(line))
        wrong.push(`${file}:${i + 1} has ${line.length} columns`);
    }
  }
  assert.deepEqual(wrong, []);
});

test('TypeScript is erasable and without blanket suppressions', () => {
  const wrong = sources
    .filter((file) => file !== 'test/tidy.test.ts')
    .flatMap((file) => {
      const text = withoutComments(read(file));
      const found = [];
      if (/^\s*(export )?(const )?enum /m.test(text)) found.push(`${file}: enum`);
      if (/^\s*(export )?namespace /m.test(text)) found.push(`${file}: namespace`);
      if (/@ts-(ignore|nocheck)|oxlint-disable(?!-next-line)/.test(read(file)))
        found.push(`${file}: suppression`);
      return found;
    });
  assert.deepEqual(wrong, []);
});

test('only sys/ reaches the native addon', () => {
  const wrong = sources.filter(
    (file) => !file.startsWith('src/sys/') && /from '.*\/native\.ts'|vring\.node/.test(read(file)),
  );
  assert.deepEqual(
    wrong.filter((file) => file !== 'test/tidy.test.ts' && file !== 'test/abi.test.ts'),
    [],
  );
});
