import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { StackSpec } from '../../storage/index.ts';
import { buildConfig } from '../config.ts';
import { ConfigProblems, problemLines } from '../config-problem.ts';
import { diskInput, parseDisk } from './disk-input.ts';
import { layerText } from './layer-input.ts';

const BASE = { name: 'vm0', socket: '/run/vm0.sock' };

function problemsOf(text: string): string[] {
  try {
    buildConfig({ file: { name: 'd.yaml', text } });
  } catch (error) {
    if (error instanceof ConfigProblems) return problemLines(error);
    throw error;
  }
  return [];
}

test('a disk has documented defaults', () => {
  const { disks } = buildConfig({
    file: { name: 'd.yaml', text: 'disks: [{name: vm0, socket: /run/a, layers: [/srv/a.img]}]' },
  });
  assert.deepEqual(disks, [
    {
      name: 'vm0',
      socket: '/run/a',
      socketOwner: null,
      socketMode: 0o660,
      layers: [{ kind: 'file', path: '/srv/a.img' }],
      readOnly: false,
      queues: 1,
      serial: 'vm0',
      blockSize: 512,
      packed: true,
      iommu: false,
      secureErase: false,
      lifetime: null,
      limits: null,
      export: null,
    },
  ]);
});

test('layers are text or mappings, and both are the same', () => {
  const text = ['limit:iops=500', 'crypt:/k', 'nbd://localhost/x'];
  const mappings = [
    { limit: { iops: 500 } },
    { crypt: { keyFile: '/k' } },
    { nbd: 'nbd://localhost/x' },
  ];
  const parsed = parseDisk({ ...BASE, layers: text }).layers;
  assert.deepEqual(parsed, parseDisk({ ...BASE, layers: mappings }).layers);
  assert.deepEqual(parsed.map(layerText), ['limit:iops=500', 'crypt:/k', 'nbd:nbd://localhost/x']);
});

test('what is written of a disk is read back as the same disk', () => {
  const stacks: StackSpec[] = [
    [{ kind: 'file', path: '/a b,c.img', direct: 'on', lock: false }],
    [{ kind: 'overlay', folder: '/o' }, { kind: 'qcow2', backing: 'follow' }, FILE],
    [{ kind: 'fault', rules: [{ op: 'read', at: 512, action: 'delay', ms: 5 }] }, FILE],
    [{ kind: 's3', endpoint: 'https://e', region: 'r', bucket: 'b', key: 'k', cache: CACHE }],
  ];
  for (const layers of stacks) {
    const disk = {
      ...parseDisk({ ...BASE, layers: ['memory:1M'] }),
      layers,
      socketOwner: { uid: 64055, gid: 108 },
      socketMode: 0o600,
      lifetime: { preEolInfo: 1, deviceLifetimeEstTypA: 3, deviceLifetimeEstTypB: 11 },
      limits: { iops: 100, burstSeconds: 2 },
      export: { socket: '/run/n', readOnly: true },
    };
    assert.deepEqual(parseDisk(JSON.parse(JSON.stringify(diskInput(disk)))), disk);
  }
});
const FILE = { kind: 'file', path: '/f' } as const;
const CACHE = { path: '/c', sizeBytes: 1048576 } as const;

const WEAR = 'deviceLifetimeEstTypA: 0, deviceLifetimeEstTypB: 0';

const WRONG: readonly (readonly [layers: string, rest: string, RegExp])[] = [
  ['[]', '', /^d\.yaml:\d+:\d+: disks\[0\]\.layers: \[\] is not a list with at least one layer/],
  ['[limit:iops=5]', '', /disks\[0\]\.layers: limit stands on something: add file, memory/],
  ['[/a, /b]', '', /disks\[0\]\.layers: file holds the bytes and comes last, but file follows/],
  ['[floppy:/a]', '', /disks\[0\]\.layers\[0\]: 'floppy' is no kind of layer/],
  ['[{fiel: /a}]', '', /layers\[0\]\.fiel: unknown key; did you mean "file"\?/],
  ['[{file: {path: /a, dirct: on}}]', '', /unknown key; did you mean "direct"\?/],
  ['[{file: /a, memory: 1M}]', '', /disks\[0\]\.layers\[0\]: is not a layer: text such as/],
  ['[/a]', 'queues: 65', /disks\[0\]\.queues: 65 is not a whole number from 1 to 64/],
  ['[/a]', 'blockSize: 513', /disks\[0\]\.blockSize: 513 is not one of 512, 1024, 2048, 4096/],
  ['[/a]', 'serial: 0123456789012345678901', /serial: .* is not at most 20 characters of ASCII/],
  ['[/a]', `lifetime: {preEolInfo: 4, ${WEAR}}`, /lifetime\.preEolInfo: 4 is not a .* 0 to 3/],
  ['[/a]', 'limits: {iops: -1}', /disks\[0\]\.limits\.iops: -1 is not requests per second/],
  ['[/a]', 'export: {}', /disks\[0\]\.export\.socket: missing; expected an absolute path/],
];

for (const [layers, rest, expected] of WRONG) {
  test(`is wrong: layers ${layers} ${rest}`, () => {
    const lines = [
      'disks:',
      '  - name: vm0',
      '    socket: /run/a',
      `    layers: ${layers}`,
      `    ${rest}`,
    ];
    const problems = problemsOf(lines.join('\n'));
    assert.equal(problems.length, 1, problems.join('\n'));
    assert.match(problems[0]!, expected);
  });
}

test('names and sockets belong to one disk each, and no port has them', () => {
  const disk = (name: string, socket: string, more = '') =>
    `  - {name: ${name}, socket: ${socket}, layers: [/a]${more}}`;
  const text = [
    'ports: [{name: p, kind: vhost-user, path: /run/p}]',
    'disks:',
    disk('a', '/run/a'),
    disk('a', '/run/b'),
    disk('c', '/run/a'),
    disk('d', '/run/p'),
    disk('e', '/run/e', ', export: {socket: /run/b}'),
  ].join('\n');
  assert.deepEqual(problemsOf(text), [
    'd.yaml:4:12: disks[1].name: "a" belongs to another disk; give each its own',
    'd.yaml:5:23: disks[2].socket: "/run/a" belongs to disk a; give each its own',
    'd.yaml:6:23: disks[3].socket: "/run/p" belongs to port p; give each its own',
    'd.yaml:7:62: disks[4].export.socket: "/run/b" belongs to disk a; give each its own',
  ]);
});
