import { strict as assert } from 'node:assert';
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { buildConfig } from '../daemon/config.ts';
import type { Command } from 'commander';
import { FakeSwitch } from '../daemon/fake-switch.ts';
import { SwitchDaemon } from '../daemon/switch-daemon.ts';
import { buildProgram } from './program.ts';

const MAIN = fileURLToPath(new URL('main.ts', import.meta.url));
const directory = mkdtempSync(join(tmpdir(), 'vring-cli-'));
const control = join(directory, 'switch.sock');
const nowhere = join(directory, 'nowhere.sock');
let daemon: SwitchDaemon;
let fake: FakeSwitch;

before(async () => {
  const ports = ['vm0=vhost-user:/run/vm0.sock,vlan=10', 'up=tap:tap0,trunk=10+20,native=1'];
  const config = buildConfig({ ports, control });
  daemon = await SwitchDaemon.start(config, async (c) => (fake = await FakeSwitch.start(c)));
  fake.frozen = true;
});

after(async () => {
  await daemon.close();
  rmSync(directory, { recursive: true, force: true });
});

type Result = { status: number | null; out: string; err: string; bytes: Buffer };

function start(args: readonly string[], env: Record<string, string> = {}): ChildProcess {
  const { VRING_CONTROL: _, FORCE_COLOR: __, ...inherited } = process.env;
  const options = { env: { ...inherited, VRING_CONTROL: control, ...env } };
  return spawn(process.execPath, [MAIN, ...args], options);
}

async function finish(child: ChildProcess): Promise<Result> {
  const out: Buffer[] = [];
  let err = '';
  child.stdout!.on('data', (chunk: Buffer) => out.push(chunk));
  child.stderr!.on('data', (chunk) => (err += chunk));
  const status = await new Promise<number | null>((resolve) => child.once('close', resolve));
  const bytes = Buffer.concat(out);
  return { status, out: bytes.toString(), err, bytes };
}

const vring = (...args: string[]) => finish(start(args));

test('help has examples everywhere and goes to stdout', async () => {
  const commands = ['switch', 'ports', 'port', 'stats', 'macs', 'events', 'capture', 'version'];
  const port = ['show', 'add', 'remove', 'set'].map((name) => ['port', name]);
  const all = [[], ...commands.map((name) => [name]), ...port];
  const results = await Promise.all(all.map((words) => vring(...words, '--help')));
  for (const { status, out, err } of results) {
    assert.deepEqual([status, err], [0, '']);
    assert.match(out, /\nExamples:\n  vring /);
    for (const line of out.split('\n')) assert.ok(line.length <= 100, line);
  }
});

const USAGE: readonly (readonly [args: string[], message: RegExp])[] = [
  [[], /^Usage: vring /],
  [['prots'], /^error: unknown command 'prots'\n\(Did you mean ports\?\)/],
  [['ports', '--jsno'], /^error: unknown option '--jsno'\n\(Did you mean --json\?\)/],
  [['ports', 'extra'], /^error: too many arguments/],
  [['switch', '--latency', '--power'], /^vring: --power: contradicts --latency; remove one/],
  [
    ['switch', '--take-over', '--workers', '2'],
    /^vring: --workers: with --take-over alone the new process runs with .* of the old one/,
  ],
  [
    ['switch', '--take-over', '--worker-cores', '0,1'],
    /^vring: --worker-cores: with --take-over alone the new process runs with /,
  ],
  [['port', 'show'], /^error: missing required argument 'name'/],
  [['port', 'add', 'vm1=vhostuser:/x'], /^vring: port vm1: KIND: .* did you mean "vhost-user"\?/],
  [
    ['port', 'set', 'vm0'],
    /^vring: nothing to set; give --link, --vlan, --trunk, --mtu or --policy/,
  ],
  [
    ['port', 'set', 'vm0', '--link', 'sideways'],
    /^vring: --link: "sideways" is not one of up, down/,
  ],
  [['port', 'set', 'vm0', '--vlan', '1', '--trunk', 'all'], /contradicts --trunk and --native/],
  [['port', 'set', 'vm0', '--native', '1'], /^vring: --native belongs to a trunk; add --trunk/],
  [['stats', '--interval', '0'], /^vring: --interval: "0" is not 0.1 to 3600 seconds/],
  [['events', '--last', '-1'], /^vring: --last: "-1" is not a whole number from 0 to 1000/],
  [['capture', 'vm0', '--count', '0'], /^vring: --count: "0" is not a number from 1 to /],
  [['switch', '--port', 'vm0'], /^vring: --port vm0: "vm0" is not a port; write NAME=vhost-user/],
  [
    ['switch', '--config', '/no/such/file'],
    /^vring: --config: \/no\/such\/file: there is no such file/,
  ],
  [['switch', '--http', '0.0.0.0:80'], /^vring: --http: "0.0.0.0:80" is not a loopback address/],
];

describe('a wrong command line ends with status 2', { concurrency: 4 }, () => {
  for (const [args, message] of USAGE) {
    test(`vring ${args.join(' ')}`, async () => {
      const { status, out, err } = await vring(...args);
      assert.match(err, message);
      assert.deepEqual([status, out], [2, '']);
    });
  }
});

test('without a switch the error names the socket and how to start one', async () => {
  for (const args of [['ports'], ['stats'], ['events', '-f'], ['capture', 'vm0'], ['macs']]) {
    const { status, out, err } = await vring(...args, '--control', nowhere);
    assert.equal(status, 1);
    assert.equal(out, '');
    assert.equal(
      err,
      `vring: no switch runs at ${nowhere}: there is no such socket\n` +
        '  start one:     vring switch --port vm0=vhost-user:/run/vring/vm0.sock\n' +
        '  or name its socket with --control PATH or VRING_CONTROL\n',
    );
  }
});

test('ports as a table and as JSON, without colours in a pipe', async () => {
  const { status, out, err } = await vring('ports');
  assert.deepEqual([status, err], [0, '']);
  const rows = [
    'PORT  STATE  VLAN                     MTU  QUEUES  RX FRAMES  TX FRAMES  DROPS  ENDPOINT',
    'vm0   up     10                      1500     2/2      1.00M       500k  1.00k  vhost-user:/run/vm0.sock',
    'up    up     trunk 1+10+20 native 1  1500       -      1.00M       500k  1.00k  tap:tap0',
  ];
  assert.equal(out, `${rows.join('\n')}\n`);
  const json = JSON.parse((await vring('ports', '--json')).out);
  assert.deepEqual(
    json.map((p: { name: string }) => p.name),
    ['vm0', 'up'],
  );
});

test('a port is added, shown, changed and removed', async () => {
  const added = await vring('port', 'add', 'vm1=vhost-user:/run/vm1.sock,vlan=5');
  assert.equal(added.out, 'port vm1 is up: vhost-user:/run/vm1.sock\n');
  const shown = await vring('port', 'show', 'vm1');
  assert.match(shown.out, /^port +vm1\nstate +up\nreason +-\nlink +up\n/);
  assert.match(shown.out, /\nQUEUE .*KICKS .*\nreceiveq1 +256 +running +7 /);
  const down = await vring(
    'port',
    'set',
    'vm1',
    '--link',
    'down',
    '--trunk',
    '1+2',
    '--native',
    '3',
  );
  assert.equal(
    down.out,
    'port vm1: link down, vlan trunk 1+2+3 native 3, mtu 1500, policy balanced\n',
  );
  assert.match((await vring('ports')).out, /\nvm1: link set down \(LINK_DOWN, 2026-/);
  const wrong = await vring('port', 'set', 'vm1', '--vlan', 'ten');
  assert.deepEqual(
    [wrong.status, wrong.err],
    [
      2,
      'vring: vlan: "ten" is not a VLAN ID from 1 to 4094, or a mapping with mode: access or mode: trunk\n',
    ],
  );
  const twice = await vring('port', 'add', 'vm1=tap:t0');
  assert.deepEqual(
    [twice.status, twice.err],
    [1, 'vring: the name "vm1" already belongs to port vm1\n'],
  );
  assert.equal((await vring('port', 'remove', 'vm1')).out, 'port vm1 is removed\n');
  const gone = await vring('port', 'show', 'vm1');
  assert.deepEqual([gone.status, gone.err], [1, 'vring: there is no port named "vm1"\n']);
});

test('addresses are listed and flushed', async () => {
  assert.match(
    (await vring('macs')).out,
    /^MAC +VLAN +PORT +AGE\n52:54:00:12:34:56 +10 +vm0 +3s\n/,
  );
  assert.equal(JSON.parse((await vring('macs', '--port', 'up', '--json')).out).length, 1);
  assert.equal((await vring('macs', '--flush')).out, '2 addresses are forgotten\n');
  assert.equal((await vring('macs')).out, 'no addresses learned yet\n');
});

test('stats once, as a table and as JSON', async () => {
  const { out } = await vring('stats', '--once', '--interval', '0.1');
  assert.match(out, /^PORT +STATE +RX pps +RX bit\/s .*\nvm0 +up +0 +0 +0 +0 +0 +1.00k\n/);
  assert.match(out, /\nworkers' CPU  0: 0.0 %\n$/);
  const json = JSON.parse((await vring('stats', '--once', '--interval', '0.1', '--json')).out);
  assert.equal(json.ports[0].rxFramesPerSecond, 0);
  assert.ok(json.seconds >= 0.1);
});

test('events are shown, and followed until the reader goes', async () => {
  fake.emitEvent('fault', 'vm0', 'evil \x1b[2J text');
  const { out } = await vring('events', '--last', '1');
  assert.match(out, /Z vm0: fault: evil \?\[2J text\n$/);
  const child = start(['events', '--follow', '--json', '--last', '1']);
  const result = finish(child);
  await new Promise((resolve) => child.stdout!.once('data', resolve));
  fake.emitEvent('test', null, 'live');
  await new Promise((resolve) => child.stdout!.once('data', resolve));
  child.kill('SIGINT');
  const { out: lines } = await result;
  assert.deepEqual(
    lines
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line).kind),
    ['fault', 'test'],
  );
});

function frameCount(bytes: Buffer): number {
  let frames = 0;
  let at = 0;
  for (; at < bytes.length; at += bytes.readUInt32LE(at + 4)) {
    if (bytes.readUInt32LE(at) === 6) frames++;
  }
  assert.equal(at, bytes.length, 'ends at a block border');
  return frames;
}

test('capture ends after a count, after a time, and on a signal, always with a whole file', async () => {
  const file = join(directory, 'a.pcapng');
  const counted = await vring('capture', 'vm0', '-w', file, '--count', '5', '--snaplen', '20');
  assert.deepEqual([counted.status, counted.out], [0, '']);
  assert.match(counted.err, /^vring: 5 frames, \d+ bytes in /);
  assert.equal(frameCount(readFileSync(file)), 5);
  assert.equal(statSync(file).mode & 0o777, 0o600);

  const timed = await vring('capture', 'vm0', '--seconds', '0.2');
  assert.equal(timed.status, 0);
  assert.ok(frameCount(timed.bytes) > 0);

  const child = start(['capture', 'vm0', '-w', file, '--json']);
  const result = finish(child);
  while (!existsSync(file) || statSync(file).size < 1000)
    await new Promise((r) => setTimeout(r, 20));
  child.kill('SIGINT');
  const { status, out } = await result;
  assert.equal(status, 0);
  assert.equal(JSON.parse(out).frames, frameCount(readFileSync(file)));
});

/** Runs in a pseudo-terminal of util-linux. */
function inTerminal(command: string): Promise<Result> {
  const env = { ...process.env, VRING_CONTROL: control, TERM: 'xterm', NO_COLOR: '' };
  const line = `${process.execPath} ${MAIN} ${command}`;
  return finish(spawn('script', ['-qec', line, '/dev/null'], { env }));
}

const hasScript = spawnSync('script', ['--version']).status === 0;
const skip = hasScript ? false : 'there is no script(1): apt install bsdutils';

test('on a terminal: capture refuses, stats draws, the cursor comes back', { skip }, async () => {
  const refused = await inTerminal('capture vm0');
  assert.equal(refused.status, 2);
  assert.match(refused.out, /^vring: a capture is binary and standard output is a terminal; write/);
  const ports = await inTerminal('ports');
  assert.ok(ports.out.includes('\x1b[32mup\x1b[39m'), ports.out);
  const { out } = await inTerminal('stats -i 0.1 & sleep 1.5; kill -INT $!; wait $!');
  assert.ok(out.startsWith('\x1b[?25l\x1b[2J\x1b[H'), out);
  assert.match(out, /vring stats.*\r\n.*\r\n.*PORT/);
  assert.ok(out.endsWith('\x1b[?25h\r\n'), out);
});

test('a reader that leaves ends a capture quietly', async () => {
  const child = start(['capture', 'vm0']);
  let err = '';
  child.stderr!.on('data', (chunk) => (err += chunk));
  child.stdout!.once('data', () => child.stdout!.destroy());
  const status = await new Promise((resolve) => child.once('close', resolve));
  assert.deepEqual([status, err], [0, '']);
});

test('a capture that cannot be written or does not exist says so', async () => {
  const unwritable = await vring('capture', 'vm0', '-w', '/no/such/directory/x');
  assert.equal(unwritable.status, 1);
  assert.match(unwritable.err, /^vring: cannot write \/no\/such\/directory\/x: .*ENOENT/);
  const missing = await vring('capture', 'nix');
  assert.deepEqual([missing.status, missing.err], [1, 'vring: there is no port named "nix"\n']);
});

test('version with and without a switch', async () => {
  const { version } = JSON.parse(
    readFileSync(new URL('../../package.json', import.meta.url), 'utf8'),
  );
  assert.equal((await vring('--version')).out, `${version}\n`);
  assert.match(
    (await vring('version')).out,
    new RegExp(`\\nswitch ${version} .* pid ${process.pid},`),
  );
  const { status, out } = await vring('version', '--control', nowhere, '--json');
  assert.deepEqual([status, JSON.parse(out).switch], [0, null]);
});

test('help is fast: it loads neither zod nor the daemon', async () => {
  const list = `data:text/javascript,import{registerHooks}from'node:module';registerHooks({load(u,c,n){process.stderr.write(u+'\\n');return n(u,c)}})`;
  const child = spawn(process.execPath, ['--import', list, MAIN, '--help']);
  const { err } = await finish(child);
  assert.match(err, /commander/);
  assert.doesNotMatch(err, /zod|hono|prom-client|control-api|virtual-switch/);
});

test('vring switch --check tells all problems, and status 0 when there are none', async () => {
  const file = join(directory, 'bad.yaml');
  writeFileSync(file, 'ports:\n- name: a\n  kind: tap\n  interfaec: t\nspin: 1\n');
  const bad = await vring('switch', '--check', '--config', file);
  assert.equal(bad.status, 2);
  assert.deepEqual(bad.err.trim().split('\n'), [
    `vring: ${file}:2:3: ports[0].interface: missing; expected an interface name of 1 to 15 bytes, such as tap0`,
    `vring: ${file}:4:3: ports[0].interfaec: unknown key; did you mean "interface"?`,
    `vring: ${file}:5:1: spin: unknown key; did you mean "spinMicroseconds"?`,
  ]);
  const good = await vring('switch', '--check', '--port', 'a=tap:t', '--json');
  assert.deepEqual([good.status, JSON.parse(good.out).ports[0].name], [0, 'a']);
});

/** `vring switch` as it is, but for the data plane. */
function startFakeSwitch(options: object): ChildProcess {
  const url = (path: string) => JSON.stringify(new URL(path, import.meta.url).href);
  const code = `
    import { runSwitch } from ${url('switch-command.ts')};
    import { FakeSwitch } from ${url('../daemon/fake-switch.ts')};
    process.exitCode = await runSwitch(${JSON.stringify(options)}, (c) => FakeSwitch.start(c));`;
  return spawn(process.execPath, ['--input-type=module', '-e', code]);
}

for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
  test(`vring switch is ready, serves, and ends cleanly on ${signal}`, async () => {
    const path = join(directory, `${signal}.sock`);
    const child = startFakeSwitch({ control: path, port: ['vm0=vhost-user:/run/x.sock'] });
    const result = finish(child);
    await new Promise((resolve) => child.stdout!.once('data', resolve));
    assert.equal((await vring('ports', '--control', path)).status, 0);
    child.kill(signal);
    const { status, out, err } = await result;
    assert.equal(out, `vring: ready: 1 port, control socket ${path}\n`);
    assert.match(err, new RegExp(`^\\S+Z vm0: port-added: .*\\nvring: ${signal}: ending\\n$`));
    assert.equal(status, 0);
    assert.ok(!existsSync(path));
  });
}

test('vring switch --json: readiness and events are JSON lines', async () => {
  const path = join(directory, 'json.sock');
  const child = startFakeSwitch({ control: path, http: '127.0.0.1:0', json: true });
  const result = finish(child);
  await new Promise((resolve) => child.stdout!.once('data', resolve));
  await vring('port', 'add', 'up=tap:tap0', '--control', path);
  child.kill('SIGTERM');
  const lines = (await result).out
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  assert.equal(lines[0].ready, true);
  assert.match(lines[0].http, /^127.0.0.1:\d+$/);
  assert.equal(lines[1].event.kind, 'port-added');
});

test('a data plane that fails ends the switch with status 1', async () => {
  const path = join(directory, 'fails.sock');
  const url = (file: string) => JSON.stringify(new URL(file, import.meta.url).href);
  const code = `
    import { runSwitch } from ${url('switch-command.ts')};
    import { FakeSwitch } from ${url('../daemon/fake-switch.ts')};
    process.exitCode = await runSwitch({ control: ${JSON.stringify(path)} }, async (c) => {
      const fake = await FakeSwitch.start(c);
      setTimeout(() => fake.emit('error', new Error('the worker ended')), 50);
      return fake;
    });`;
  const { status, err } = await finish(
    spawn(process.execPath, ['--input-type=module', '-e', code]),
  );
  assert.deepEqual([status, err], [1, 'vring: the data plane failed: the worker ended\n']);
  assert.ok(!existsSync(path));
});

test('a second switch on the same socket is refused', async () => {
  const { status, out, err } = await finish(startFakeSwitch({ control })).catch((e) => e);
  assert.notEqual(status, 0);
  assert.equal(out, '');
  assert.match(err, /is in use: a switch is running there/);
});

test('docs/cli.md names every command and option', async () => {
  const doc = readFileSync(new URL('../../docs/cli.md', import.meta.url), 'utf8');
  const visit = (command: Command, path: string) => {
    assert.ok(doc.includes(`vring ${path}`), `vring ${path}`);
    for (const { long } of command.options) assert.ok(doc.includes(long!), `vring ${path} ${long}`);
    for (const inner of command.commands) {
      if (inner.name() !== 'help') visit(inner, `${path} ${inner.name()}`);
    }
  };
  for (const command of (await buildProgram([])).commands) {
    if (command.name() !== 'help') visit(command, command.name());
  }
});
