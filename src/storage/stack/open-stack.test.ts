import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { openStack } from './open-stack.ts';

const folder = mkdtempSync(join(tmpdir(), 'vring-stack-'));
after(() => rmSync(folder, { recursive: true }));

test('who keeps clear text above a cipher is told so', async () => {
  const path = join(folder, 'a.img');
  writeFileSync(path, '');
  truncateSync(path, 1 << 20);
  const said: string[] = [];
  const onProblem = (message: string): void => void said.push(message);
  const file = { kind: 'file', path } as const;
  const crypt = { kind: 'crypt', keyFile: join(folder, 'no-key') } as const;
  const overlay = { kind: 'overlay', folder: join(folder, 'changes') } as const;
  await assert.rejects(openStack({ stack: [overlay, crypt, file], onProblem }), /crypt|LUKS|key/);
  assert.equal(said.length, 1);
  assert.match(
    said[0]!,
    /changes stands above crypt, so what the guest writes is kept there in the/,
  );
  await assert.rejects(openStack({ stack: [crypt, overlay, file], onProblem }));
  assert.equal(said.length, 1, 'the other way round all is encrypted');
});
