/** An overlay under work and operations, killed at random moments, again and again. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { requirePeer } from '../../../test/peers/require-peer.ts';
import { fileLayer, qemuCheck, randomOf, readAll, temporaryFolder } from '../qcow2/testing.ts';
import { BLOCK_BYTES, BLOCKS, type DiskState, isPossible, replay, stampsOf } from './kill-log.ts';
import { OverlayLayer } from './overlay-layer.ts';

const ROUNDS = Number(process.env['VRING_CRASH_ROUNDS'] ?? 3);
const SEED = Number(process.env['VRING_SEED'] ?? Date.now() % 10_000);

test('kill -9 leaves the old chain or the new, and every answered write', async (t) => {
  if (!requirePeer(t, 'qemu-img')) return;
  console.log(`VRING_SEED=${SEED} VRING_CRASH_ROUNDS=${ROUNDS}`);
  const home = temporaryFolder(t);
  const [folder, basePath] = [join(home, 'vm0'), join(home, 'base')];
  const base = Buffer.alloc(BLOCKS * BLOCK_BYTES);
  for (let at = 0; at < base.length; at += 512)
    base.writeUInt32LE(Math.floor(at / BLOCK_BYTES), at);
  writeFileSync(basePath, base);
  let state: DiskState = new Map(
    Array.from({ length: BLOCKS }, (_, block) => [block, new Set([0])]),
  );
  const random = randomOf(SEED);
  const done = new Map<string, number>();
  for (let round = 1; round <= ROUNDS; round++) {
    const log = join(home, `log${round}`);
    writeFileSync(log, '');
    const script = join(import.meta.dirname, 'kill-child.ts');
    const words = [script, folder, basePath, log, String(round)];
    const child = spawn(process.execPath, words, { stdio: ['ignore', 'pipe', 'inherit'] });
    const ended = once(child, 'exit');
    await once(child.stdout, 'data');
    await sleep(50 + random(600));
    child.kill('SIGKILL');
    const [code] = (await ended) as [number | null];
    assert.equal(code, null, 'it was killed, and did not fail by itself');

    for (const line of readFileSync(log, 'utf8').split('\n')) {
      const word = /^(end|did \w+)/.exec(line)?.[0];
      if (word !== undefined) done.set(word, (done.get(word) ?? 0) + 1);
    }
    const states = replay(state, readFileSync(log, 'utf8').split('\n'));
    const opened = await OverlayLayer.open({
      folder,
      base: fileLayer(basePath, true),
      basePath,
      readOnly: false,
    });
    await opened.settled(); // what was under way is done
    const facts = (await opened.control('commit-status', null)) as { problem: string | null };
    assert.equal(facts.problem, null);
    const stamps = stampsOf(await readAll(opened));
    await opened.close();
    const problems = states.map((possible) => isPossible(stamps, possible));
    assert.ok(problems.includes(null), `round ${round}: ${problems.join('; ')}`);
    state = new Map(stamps.map((stamp, block) => [block, new Set([stamp])]));
    const { files } = JSON.parse(readFileSync(join(folder, 'chain.json'), 'utf8'));
    for (const { file } of files) {
      const { corruptions, leaks, text } = qemuCheck(join(folder, file));
      assert.equal(corruptions + leaks, 0, `round ${round}: ${file}: ${text}`);
    }
  }
  console.log([...done].map(([what, count]) => `${what}: ${count}`).join(', '));
  assert.ok(done.get('end')! > 0, 'something was written');
});
