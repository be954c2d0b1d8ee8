/** `vring compare` as a user runs it, in a network namespace of the test's own. */
import { equal, match, ok } from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import type { Comparison } from '../../src/compare/index.ts';
import { NetNamespace } from '../peers/netns.ts';
import { requirePeer, requireRoot } from '../peers/require-peer.ts';
import { Scratch } from '../peers/scratch.ts';

const MAIN = `${import.meta.dirname}/../../src/cli/main.ts`;

test('every path is measured, or says what this machine lacks', { timeout: 90_000 }, async (t) => {
  if (!requirePeer(t, 'ip', 'tc') || !requireRoot(t)) return;
  await using scratch = new Scratch();
  const host = scratch.own(await NetNamespace.create());
  const page = scratch.path('compare.html');
  const words = `--rounds 1 --seconds 0.3 --trips 20 --quiet --json --html ${page}`;
  const output = await host.shell(`${process.execPath} ${MAIN} compare ${words}`, 80_000);
  const comparison = JSON.parse(output) as Comparison;

  const found = new Map(comparison.paths.map((path) => [path.id, path]));
  equal(found.size, 5);
  for (const id of ['in-process', 'vhost-user'] as const) {
    const path = found.get(id)!;
    equal(path.missing ?? path.failure, null, id);
    equal(path.exception, null);
    for (const size of path.summary!.sizes) {
      equal(size.corrupt, 0, `${id}, ${size.sizeBytes} bytes`);
      ok(size.sent > 0 && size.lost < size.sent / 10, `${size.lost} of ${size.sent} lost`);
      ok(size.cpuNsPerFrame.median > 0);
      ok((size.systemCallsPerFrame?.median ?? 1) > 0);
    }
    ok(path.summary!.roundTripUs.median > 0);
  }
  equal(found.get('in-process')!.summary!.sizes[0]!.deviceCpuNsPerFrame, null);
  ok(found.get('vhost-user')!.summary!.sizes[0]!.deviceCpuNsPerFrame!.median > 0);
  for (const path of comparison.paths) {
    if (path.missing !== null) match(path.missing, /modprobe|root/, path.id);
  }
  match(readFileSync(page, 'utf8'), /<svg/);
  equal((await host.ip('-o', 'link')).match(/vrcmp/), null, 'no interface is left behind');
});

test('wrong use is refused with what is expected', { timeout: 30_000 }, async (t) => {
  if (!requirePeer(t, 'ip')) return;
  await using scratch = new Scratch();
  const host = scratch.own(await NetNamespace.create());
  const said = await host.shell(
    `${process.execPath} ${MAIN} compare --only vhost-usr 2>&1; echo status $?; ` +
      `${process.execPath} ${MAIN} compare --sizes 20 2>&1; echo status $?`,
  );
  match(said, /vhost-usr: expected is one of in-process, vhost-net/);
  match(said, /Bytes from 62 to 1514 are expected/);
  equal(said.match(/status 2/g)?.length, 2);
});
