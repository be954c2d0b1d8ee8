import { strict as assert } from 'node:assert';
import { readFileSync } from 'node:fs';
import { basename } from 'node:path';
import { test } from 'node:test';
import { buildConfig, parsePort } from './config.ts';
import { closest, problemLines } from './config-problem.ts';
import { SCHEMA_FILE, schemaText } from './config-schema.ts';
import type { ConfigError } from '../base/errors.ts';
import { onlineCores } from '../sys/index.ts';
import { resolveOwner } from './owner.ts';
import { REFERENCE_DOCS, renewed } from './reference-docs.ts';
import { coreProblems } from './worker-cores.ts';

const PORT = '- name: vm0\n  kind: vhost-user\n  path: /run/vm0.sock\n';

function fromYaml(text: string) {
  return buildConfig({ file: { name: 's.yaml', text } });
}

function linesOf(build: () => unknown): string[] {
  try {
    build();
  } catch (error) {
    assert.equal((error as ConfigError).code, 'ERR_VRING_CONFIG');
    return problemLines(error as ConfigError);
  }
  return ['no error'];
}

test('a port has documented defaults', () => {
  const { ports, ...rest } = fromYaml(`ports:\n${PORT}`);
  assert.deepEqual(ports, [
    {
      name: 'vm0',
      kind: 'vhost-user',
      path: '/run/vm0.sock',
      mode: 'server',
      socketOwner: null,
      socketMode: 0o660,
      queuePairs: 1,
      mac: null,
      packed: true,
      mrgRxbuf: true,
      iommu: false,
      postcopy: false,
      vlan: { mode: 'access', vid: 1 },
      offload: { csum: true, tso: true, uso: true },
      mtu: 1500,
      reflect: false,
      macLimit: 1024,
    },
  ]);
  assert.deepEqual(rest, {
    disks: [],
    scsi: [],
    control: { path: '/run/vring/switch.sock', mode: 0o660, owner: null },
    http: null,
    stateFile: null,
    mac: { ageingSeconds: 300, limit: 16384 },
    spinMicroseconds: 50,
    policy: 'balanced',
    workers: 1,
    workerCores: null,
  });
});

test('an empty file and no file are a switch without ports', () => {
  assert.deepEqual(fromYaml(''), buildConfig({}));
  assert.deepEqual(fromYaml('# nothing\n').ports, []);
});

test('file modes are octal however YAML reads them', () => {
  for (const written of ['0660', '660', '0o660', '"0660"', "'660'"]) {
    const { ports, control } = fromYaml(
      `control: {mode: ${written}}\nports:\n${PORT}  socketMode: ${written}\n`,
    );
    assert.equal(control.mode, 0o660, written);
    assert.equal(ports[0]?.kind === 'vhost-user' && ports[0].socketMode, 0o660, written);
  }
});

test('values that YAML is known to mangle stay what they are', () => {
  const { ports } = fromYaml(`ports:\n${PORT}  mac: 52:54:00:12:34:56\n`);
  assert.equal(ports[0]?.kind === 'vhost-user' && ports[0].mac, '52:54:00:12:34:56');
});

test('the native VLAN is always allowed on its trunk', () => {
  const { ports } = fromYaml(
    `ports:\n${PORT}  vlan: {mode: trunk, allowed: [20, 10], native: 5}\n`,
  );
  assert.deepEqual(ports[0]?.vlan, { mode: 'trunk', allowed: [5, 10, 20], native: 5 });
});

const WRONG: readonly (readonly [yaml: string, ...lines: string[]])[] = [
  [
    'ports: [',
    's.yaml:1:9: s.yaml: not YAML: Flow sequence in block collection must be sufficiently ' +
      'indented and end with a ]',
  ],
  ['a: 1\na: 2\n', 's.yaml:2:1: s.yaml: not YAML: Map keys must be unique'],
  [
    '- vm0',
    's.yaml:1:1: (top level): ["vm0"] is not a mapping with ports, disks, scsi, control, http, ' +
      'mac, spinMicroseconds, policy, workers or workerCores',
  ],
  ['ports:', 's.yaml:1:7: ports: null is not a list of ports'],
  ['prots: []', 's.yaml:1:1: prots: unknown key; did you mean "ports"?'],
  [
    'xyzzy: 1',
    's.yaml:1:1: xyzzy: unknown key; known keys are ports, disks, scsi, stateFile, control, http, ' +
      'mac, spinMicroseconds, policy, workers, workerCores',
  ],
  [
    `ports:\n${PORT}  mtu: 70000\n`,
    's.yaml:5:8: ports[0].mtu: 70000 is not a whole number from 68 to 65535 (bytes of IP in one frame)',
  ],
  [
    `ports:\n${PORT}  mtu: "9000"\n`,
    's.yaml:5:8: ports[0].mtu: "9000" is not a whole number from 68 to 65535 (bytes of IP in one frame)',
  ],
  [
    `ports:\n${PORT}  queues: 2\n`,
    's.yaml:5:3: ports[0].queues: unknown key; did you mean "queuePairs"?',
  ],
  [
    `ports:\n${PORT}  vlan: 4095\n`,
    's.yaml:5:9: ports[0].vlan: 4095 is not a whole number from 1 to 4094 (a VLAN ID)',
  ],
  [
    `ports:\n${PORT}  vlan: {mode: trunk, allowed: [1, 5000]}\n`,
    's.yaml:5:36: ports[0].vlan.allowed[1]: 5000 is not a whole number from 1 to 4094 (a VLAN ID)',
  ],
  [
    `ports:\n${PORT}  vlan: {mode: trunk, allowed: [7, 7]}\n`,
    's.yaml:5:36: ports[0].vlan.allowed[1]: VLAN 7 is listed twice; remove one',
  ],
  [
    `ports:\n${PORT}  vlan: {mode: tunk}\n`,
    's.yaml:5:16: ports[0].vlan.mode: "tunk" is not one of access, trunk; did you mean "trunk"?',
  ],
  [
    'ports:\n- name: vm0\n  kind: vhost\n',
    's.yaml:3:9: ports[0].kind: "vhost" is not one of vhost-user, tap, packet, xdp, vduse',
  ],
  [
    'ports:\n- name: vm0\n',
    's.yaml:2:3: ports[0].kind: missing; expected one of vhost-user, tap, packet, xdp, vduse',
  ],
  [
    'ports:\n- name: vm0\n  kind: vhost-user\n',
    's.yaml:2:3: ports[0].path: missing; expected an absolute path of at most 107 bytes, such as ' +
      '/run/vring/vm0.sock',
  ],
  [
    `ports:\n- name: vm0\n  kind: vhost-user\n  path: /${'ä'.repeat(60)}\n`,
    `s.yaml:4:9: ports[0].path: "/${'ä'.repeat(55)}... has 121 bytes; Unix sockets allow 107`,
  ],
  [
    `ports:\n${PORT}  mode: client\n  socketMode: 0600\n`,
    's.yaml:6:15: ports[0].socketMode: the other side makes the socket in client mode; remove ' +
      'this or client mode',
  ],
  [
    `ports:\n${PORT}  socketMode: 0999\n`,
    's.yaml:5:15: ports[0].socketMode: "0999" is not a file mode as octal digits in quotes, such as "0660"',
  ],
  [
    `ports:\n${PORT}  socketOwner: no-such-user\n`,
    's.yaml:5:16: ports[0].socketOwner: no user "no-such-user" in /etc/passwd; create it, or give ' +
      'numbers as uid:gid',
  ],
  [
    `ports:\n${PORT}  mac: 53:54:00:12:34:56\n`,
    's.yaml:5:8: ports[0].mac: "53:54:00:12:34:56" is not a unicast MAC address, such as "52:54:00:12:34:56"',
  ],
  [
    `ports:\n${PORT}  offload: {csum: false, tso: true}\n`,
    's.yaml:5:31: ports[0].offload.tso: tso needs checksum offload; turn csum on or tso off',
  ],
  [
    `ports:\n${PORT}${PORT}`,
    's.yaml:5:9: ports[1].name: "vm0" belongs to another port; give each its own',
    's.yaml:7:9: ports[1].path: "/run/vm0.sock" belongs to another port vm0; give each its own',
  ],
  [
    'http: 0.0.0.0:80',
    's.yaml:1:7: http: "0.0.0.0:80" is not a loopback address and port, such as 127.0.0.1:9100',
  ],
  ['http: 127.0.0.1:99999', 's.yaml:1:7: http: "127.0.0.1:99999" has no port from 0 to 65535'],
];

for (const [yaml, ...lines] of WRONG) {
  test(`is wrong: ${lines[0]!.slice(0, 90)}`, () =>
    assert.deepEqual(
      linesOf(() => fromYaml(yaml)),
      lines,
    ));
}

test('everything wrong is told at once', () => {
  const lines = linesOf(() =>
    buildConfig({
      file: { name: 's.yaml', text: `ports:\n${PORT}  mtu: 1\nspin: 3\n` },
      ports: ['vm1=tap:', 'vm2=vhost-user:/x,mtu=9'],
    }),
  );
  assert.equal(lines.length, 4);
});

test('more ports than a switch has are refused', () => {
  const ports = Array.from({ length: 257 }, (_, i) => `p${i}=vhost-user:/run/${i}.sock`);
  assert.deepEqual(
    linesOf(() => buildConfig({ ports })),
    ['--port p256: NAME: this is port 257; one switch has at most 256'],
  );
  assert.equal(buildConfig({ ports: ports.slice(0, 256) }).ports.length, 256);
});

test('file and command line join, and must not collide', () => {
  const file = { name: 's.yaml', text: `control: {path: /a}\nhttp: 127.0.0.1:1\nports:\n${PORT}` };
  const config = buildConfig({ file, ports: ['up=tap:tap0'], control: '/b', http: '127.0.0.1:2' });
  assert.deepEqual(
    [config.ports.map((p) => p.name), config.control.path, config.http],
    [['vm0', 'up'], '/b', '127.0.0.1:2'],
  );
  assert.deepEqual(
    linesOf(() => buildConfig({ file, ports: ['x=vhost-user:/run/vm0.sock'] })),
    ['--port x: PATH: "/run/vm0.sock" belongs to another port vm0; give each its own'],
  );
  assert.deepEqual(
    linesOf(() => buildConfig({ control: 'relative', http: 'x' })).map((l) => l.split(' ')[0]),
    ['--control:', '--http:'],
  );
});

test('a file that is no configuration is refused before it is parsed', () => {
  assert.match(linesOf(() => fromYaml('#'.repeat(1024 * 1024 + 1)))[0]!, /more than 1048576 bytes/);
  const bomb = `a: &a [x,x,x,x,x,x,x,x,x]\n${Array.from({ length: 8 }, (_, i) => {
    const [name, of] = [String.fromCharCode(98 + i), String.fromCharCode(97 + i)];
    return `${name}: &${name} [${`*${of},`.repeat(9)}]`;
  }).join('\n')}\n`;
  assert.match(linesOf(() => fromYaml(bomb))[0]!, /not YAML: .*alias/i);
});

test('the body of POST /v1/ports passes the same checks', () => {
  assert.equal(parsePort({ name: 'up', kind: 'tap', interface: 'tap0' }).name, 'up');
  assert.deepEqual(
    linesOf(() => parsePort(null)),
    ['(top level): null is not one of vhost-user, tap, packet, xdp, vduse'],
  );
  assert.deepEqual(
    linesOf(() => parsePort({ name: 'up', kind: 'tap', interface: 'a/b' })),
    ['interface: "a/b" is not an interface name of 1 to 15 bytes, such as tap0'],
  );
});

test('"did you mean" knows neighbours and other tools, and keeps quiet otherwise', () => {
  const known = ['name', 'kind', 'queuePairs', 'path'];
  assert.equal(closest('quuePairs', known), 'queuePairs');
  assert.equal(closest('Kind', known), 'kind');
  assert.equal(closest('socket', known), 'path');
  assert.equal(closest('frobnicate', known), null);
  assert.equal(closest('x', known), null);
});

test('owners are names or numbers', () => {
  assert.deepEqual(resolveOwner('root'), { uid: 0, gid: 0 });
  assert.deepEqual(resolveOwner('root:root'), { uid: 0, gid: 0 });
  assert.deepEqual(resolveOwner('1234:5678'), { uid: 1234, gid: 5678 });
  assert.deepEqual(resolveOwner(':root'), { uid: process.getuid?.(), gid: 0 });
  assert.match(String(resolveOwner('root:no-such-group')), /^no group "no-such-group" in /);
  assert.match(String(resolveOwner('4000000001')), /^user 4000000001 has no entry/);
  assert.match(String(resolveOwner('4294967295:0')), /^no user/);
});

test('schema/switch.schema.json is current: node src/daemon/reference-docs.ts', () => {
  assert.equal(readFileSync(SCHEMA_FILE, 'utf8'), schemaText());
});

for (const { file, generate } of REFERENCE_DOCS) {
  test(`${basename(file)} is current: node src/daemon/reference-docs.ts`, () => {
    const doc = readFileSync(file, 'utf8');
    assert.equal(doc, renewed(doc, generate()));
  });
}

test('the example of docs/config.md is a configuration', () => {
  const doc = readFileSync(REFERENCE_DOCS[0]!.file, 'utf8');
  const [, example] = /```yaml\n([\s\S]*?)```/.exec(doc)!;
  assert.equal(fromYaml(example!.replaceAll(':kvm', ':root')).ports.length, 3);
});

test('each worker can have a core', () => {
  const [core] = onlineCores();
  const named = (cores: unknown, workers = 1) =>
    linesOf(() => fromYaml(`workers: ${workers}\nworkerCores: ${JSON.stringify(cores)}\n`));
  assert.deepEqual(fromYaml(`workerCores: [${core}]`).workerCores, [core]);
  assert.deepEqual(named([core], 2), [
    's.yaml:2:14: workerCores: names 1 core, and the switch has 2 workers; name one core for ' +
      'each worker',
  ]);
  assert.deepEqual(named([core, core], 2), [
    `s.yaml:2:17: workerCores[1]: core ${core} is named twice; two workers would take turns on it`,
  ]);
  const [problem, ...others] = coreProblems([1, 7], 2, new Set([0, 1, 2, 4]));
  assert.deepEqual(others, []);
  assert.deepEqual(problem, {
    at: 1,
    problem: 'core 7 is not there; this host has 0-2, 4',
  });
  const expected = 'a list of cores, one for each worker, such as [2, 3]; or null';
  assert.deepEqual(named([]), [`s.yaml:2:14: workerCores: [] is not ${expected}`]);
  assert.deepEqual(named(2), [`s.yaml:2:14: workerCores: 2 is not ${expected}`]);
  const lines = linesOf(() => buildConfig({ workers: 2, workerCores: [1023] }));
  assert.match(lines.join('\n'), /^--worker-cores: names 1 core.*\n--worker-cores: core 1023 is/);
});
