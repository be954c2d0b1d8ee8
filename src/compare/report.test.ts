import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Comparison, PathResult, SizeSummary } from './comparison.ts';
import { percentile, spread } from './figures.ts';
import { PATHS } from './paths.ts';
import { htmlReport } from './report-html.ts';
import { notes, tableRows } from './rows.ts';

const size = (framesPerSecond: number): SizeSummary => ({
  sizeBytes: 64,
  framesPerSecond: spread([framesPerSecond, framesPerSecond * 2, framesPerSecond * 1.5]),
  gbitPerSecond: spread([1]),
  cpuNsPerFrame: spread([2000]),
  deviceCpuNsPerFrame: spread([500]),
  wakeupsPerFrame: spread([0.01]),
  systemCallsPerFrame: null,
  sent: 1000,
  lost: 2,
  corrupt: 0,
});

const measured = (id: string, framesPerSecond: number): PathResult => ({
  ...described(id),
  summary: {
    sizes: [size(framesPerSecond)],
    roundTripUs: spread([30]),
    roundTripP99Us: spread([90]),
  },
});

function described(id: string): PathResult {
  const { description, exception } = PATHS.find((path) => path.id === id)!;
  const nothing = { missing: null, failure: null, rounds: [], summary: null };
  return { id: id as PathResult['id'], description, exception, ...nothing };
}

const comparison: Comparison = {
  machine: {
    cpu: 'QEMU TCG CPU version 2.5+',
    cores: 2,
    memoryGib: 2,
    kernel: '6.1.0',
    node: 'v26.0.0',
    emulated: true,
    virtual: true,
  },
  takenAt: '2026-01-01T00:00:00.000Z',
  rounds: 3,
  seconds: 1,
  window: 128,
  paths: [
    measured('vhost-user', 1_000_000),
    { ...described('vhost-net'), missing: '/dev/vhost-net does not exist: modprobe vhost_net' },
    { ...described('vdpa-vduse'), failure: 'a <b> & "c"' },
    measured('vdpa-sim', 1000),
  ],
};

test('spread and percentile', () => {
  assert.deepEqual(spread([3, 1, 2]), { median: 2, min: 1, max: 3 });
  assert.deepEqual(spread([4, 2]), { median: 3, min: 2, max: 4 });
  assert.equal(percentile([10], 0.99), 10);
  assert.equal(percentile([0, 100], 0.25), 25);
});

test('every row has a cell for every path, and says what could not be measured', () => {
  const rows = tableRows(comparison);
  for (const { title, cells } of rows) assert.equal(cells.length, 4, title);
  const rate = rows.find((row) => row.title === '64 bytes: kframes/s');
  assert.deepEqual(rate?.cells, [
    '1500.0 (1000.0 .. 2000.0)',
    'not here',
    'failed',
    '1.5 (1.0 .. 2.0)',
  ]);
  const calls = rows.find((row) => row.title === '64 bytes: system calls per frame');
  assert.equal(calls?.cells[0], '-', 'not countable is no zero');
});

test('notes begin with the emulated machine, and name remedies, failures and exceptions', () => {
  const said = notes(comparison);
  assert.match(said[0]!, /^EMULATED MACHINE/);
  assert.ok(said.some((note) => note.includes('not here: /dev/vhost-net does not exist')));
  assert.ok(said.some((note) => note.includes('failed: a <b>')));
  assert.ok(said.some((note) => /vdpa_sim_net: does not end in a TAP/.test(note)));
  const real = { ...comparison, machine: { ...comparison.machine, emulated: false } };
  assert.doesNotMatch(notes(real).join('\n'), /EMULATED/);
});

test('the page holds everything, loads nothing, and escapes what it is told', () => {
  const page = htmlReport(comparison);
  assert.doesNotMatch(page, /https?:|src=|<script|@import/);
  assert.ok(page.includes('a &lt;b> &amp; &quot;c&quot;'));
  assert.ok(page.includes('class="emulated"'));
  // Two paths were measured: each chart has a bar for each.
  assert.equal(page.match(/<rect class="bar"/g)?.length, 2 * 3);
  assert.doesNotMatch(page, /NaN|undefined|Infinity/);
});
