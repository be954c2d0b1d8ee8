/** Help, wrong usage and failures of the commands that work without a switch. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { SysError } from '../base/errors.ts';
import { explain } from './explain.ts';

const MAIN = fileURLToPath(new URL('main.ts', import.meta.url));
const folder = mkdtempSync(join(tmpdir(), 'vring-messages-'));
const at = (name: string): string => join(folder, name);
after(() => rmSync(folder, { recursive: true, force: true }));

type Result = { status: number | null; out: string; err: string };

async function vring(...args: readonly string[]): Promise<Result> {
  const child = spawn(process.execPath, [MAIN, ...args], {
    env: { ...process.env, NO_COLOR: '1' },
  });
  let [out, err] = ['', ''];
  child.stdout.on('data', (chunk) => (out += chunk));
  child.stderr.on('data', (chunk) => (err += chunk));
  const status = await new Promise<number | null>((resolve) => child.once('close', resolve));
  return { status, out, err };
}

test('help has examples everywhere and is not too wide', async () => {
  const net = ['ping', 'echo', 'bulk-send', 'bulk-receive', 'info', 'pps', 'sink'];
  const commands = ['record', 'replay', 'vm', 'conform', 'guest']
    .map((name) => [name])
    .concat([
      ['conform', 'back-end'],
      ['conform', 'front-end'],
      ['guest', 'net'],
    ])
    .concat(net.map((name) => ['guest', 'net', name]));
  const results = await Promise.all(commands.map((words) => vring(...words, '--help')));
  for (const [i, { status, out, err }] of results.entries()) {
    assert.deepEqual([status, err], [0, ''], commands[i]!.join(' '));
    assert.match(out, /\nExamples:\n/, commands[i]!.join(' '));
    for (const line of out.split('\n')) assert.ok(line.length <= 110, line);
  }
});

const HINT = '(add --help for usage and examples)';
const to = ['--socket', at('nobody.sock'), '--device', 'net'];

const WRONG: readonly (readonly [args: readonly string[], status: number, message: RegExp])[] = [
  [['record'], 2, /^error: required option '--socket <path>'/],
  [['replay', 'x', '--socket', 'y', '--session', '0'], 2, /"0" is not a number from 1 on/],
  [['replay', at('none.jsonl'), '--socket', 'x'], 1, /none\.jsonl: there is no such file\n/],
  [['replay', folder, '--socket', 'x'], 1, /: it is a folder, not a recording\n/],
  [['replay', MAIN, '--socket', 'x'], 1, /line 1 is no JSON object; was it made by vring record/],
  [['conform', 'back-end', '--device', 'net'], 2, /^vring: --socket: give the path of the peer/],
  [['conform', 'back-end', '--socket', 'x'], 2, /^vring: --device: say what it is, one of net/],
  [['conform', 'back-end', ...to, '--only', 'BE-NO'], 2, /no check is called BE-NO; --list shows/],
  [
    ['conform', 'back-end', ...to, '--html', at('no/r.html')],
    1,
    /^vring: --html: cannot write .*no\/r\.html: there is no such file or folder\n/,
  ],
  [
    ['conform', 'front-end', '--socket', at('no/f.sock'), '--device', 'net'],
    1,
    /no\/f\.sock: the folder of this socket does not exist; make it first/,
  ],
  [
    ['record', '--socket', at('no/a.sock'), '--upstream', 'b', '--out', at('a.jsonl')],
    1,
    /no\/a\.sock: the folder of this socket does not exist; make it first/,
  ],
  [
    ['record', '--socket', at('a.sock'), '--upstream', 'b', '--out', at('no/a.jsonl')],
    1,
    /cannot write .*no\/a\.jsonl: its folder does not exist; make it first/,
  ],
  [
    ['record', '--socket', 'x', '--upstream', './x', '--out', at('a.jsonl')],
    2,
    /^vring: --upstream: \.\/x is --socket, too: the recorder listens there/,
  ],
  [
    ['record', '--socket', 'x', '--upstream', 'y', '--out', 'z', '--pcapng', 'z'],
    2,
    /^vring: --pcapng: z is --out, too; give two files/,
  ],
  [
    ['guest', 'net', '--socket', 'x', '--migrate-to', './x', 'info'],
    2,
    /^vring guest: --migrate-to: \.\/x is --socket, too/,
  ],
  [
    ['guest', 'net', '--socket', 'x', '--iommu', 'echo'],
    2,
    /Expected is offset or scatter; in front of a command write --iommu offset\./,
  ],
];

describe('wrong usage and failures', { concurrency: 4 }, () => {
  for (const [args, expected, message] of WRONG) {
    test(`vring ${args.join(' ').replaceAll(folder, '')}`, async () => {
      const { status, out, err } = await vring(...args);
      assert.match(err, message);
      assert.deepEqual([status, out], [expected, '']);
      if (err.startsWith('error: ')) assert.ok(err.includes(HINT), err);
    });
  }
});

test('nothing is left behind by a recorder that could not start', async () => {
  await vring('record', '--socket', at('c.sock'), '--upstream', 'b', '--out', at('no/c.jsonl'));
  assert.equal(existsSync(at('c.sock')), false);
});

test('a recorder whose socket is in use leaves the recording there alone', async () => {
  const server = createServer().listen(at('used.sock'));
  await new Promise((resolve) => server.once('listening', resolve));
  writeFileSync(at('kept.jsonl'), 'kept');
  const files = ['--upstream', 'b', '--out', at('kept.jsonl')];
  const { status, err } = await vring('record', '--socket', at('used.sock'), ...files);
  server.close();
  assert.equal(status, 1);
  assert.match(err, /another process listens on this socket/);
  assert.equal(readFileSync(at('kept.jsonl'), 'utf8'), 'kept');
});

test('with --json a failure is an object on standard output, too', async () => {
  const { status, out, err } = await vring('replay', at('none.jsonl'), '--socket', 'x', '--json');
  const message = `${at('none.jsonl')}: there is no such file`;
  assert.deepEqual([status, err], [1, `vring: ${message}\n`]);
  assert.deepEqual(JSON.parse(out), { error: { code: 'ERR_VRING_RECORDING_FILE', message } });

  const wrong = await vring('switch', '--port', 'a=x:/y', '--json');
  assert.equal(wrong.status, 2);
  assert.equal(JSON.parse(wrong.out).error.code, 'ERR_VRING_CONFIG');
});

test('checks are listed without a peer', async () => {
  const { status, out } = await vring('conform', 'back-end', '--list', '--only', 'BE-RING');
  assert.equal(status, 0);
  for (const line of out.trim().split('\n')) assert.match(line, /^BE-RING-\d+ +(must|should|may) /);
  const json = JSON.parse((await vring('conform', 'front-end', '--list', '--json')).out);
  assert.deepEqual(Object.keys(json[0]), ['id', 'severity', 'level', 'title']);
});

test('errors of the kernel about paths say what helps', () => {
  const error = (syscall: string, name: string) => new SysError(syscall, 2, name, '/a: b.sock');
  assert.match(
    explain(error('connect', 'ENOENT')),
    /^\/a: b\.sock: there is no such socket; start/,
  );
  assert.match(explain(error('connect', 'ECONNREFUSED')), /^\/a: b\.sock: nobody listens/);
  assert.match(explain(error('bind', 'ENOENT')), /^\/a: b\.sock: the folder of this socket/);
  assert.equal(explain(error('mmap', 'ENOMEM')), 'mmap failed with ENOMEM: /a: b.sock');
  assert.equal(explain('text'), 'text');
});
