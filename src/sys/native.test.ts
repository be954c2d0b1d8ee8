/** How the addon gets onto a machine: checkout, prebuild, build on first use. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';

const root = join(import.meta.dirname, '..', '..');
const folder = mkdtempSync(join(tmpdir(), 'vring-native-'));
after(() => rmSync(folder, { recursive: true }));

/** A folder with what the tarball has of the native layer. */
function packageAt(name: string): string {
  const place = join(folder, name);
  mkdirSync(join(place, 'node_modules'), { recursive: true });
  cpSync(join(root, 'native'), join(place, 'native'), { recursive: true });
  cpSync(join(root, 'package.json'), join(place, 'package.json'));
  const headers = join('node_modules', 'node-api-headers');
  symlinkSync(join(root, headers), join(place, headers));
  return place;
}

function build(place: string, options: { args?: string[]; compiler: boolean }) {
  const env = options.compiler ? process.env : { ...process.env, PATH: join(folder, 'nothing') };
  const args = [join(place, 'native', 'build.cjs'), ...(options.args ?? [])];
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { env, encoding: 'utf8' });
  return { status, text: stdout + stderr };
}

test('a checkout builds, and without a compiler says what to install', () => {
  const place = packageAt('checkout');
  writeFileSync(join(place, 'tsconfig.json'), '{}');
  const refused = build(place, { compiler: false });
  assert.equal(refused.status, 1);
  assert.match(refused.text, /apt-get install build-essential/);
  assert.deepEqual(build(place, { compiler: true }), { status: 0, text: '' });
  assert.equal(existsSync(join(place, 'build', 'vring.node')), true);
  // Current: no compiler is needed any more, until a source changes.
  assert.equal(build(place, { compiler: false }).status, 0);
  writeFileSync(join(place, 'native', 'thread.c'), '\n', { flag: 'a' });
  assert.equal(build(place, { compiler: false }).status, 1);
});

test('an installed package never fails its installation', () => {
  const place = packageAt('installed');
  const without = build(place, { compiler: false });
  assert.equal(without.status, 0);
  assert.match(without.text, /built on first use/);
});

test('a prebuild runs on old systems and makes a compiler unnecessary', () => {
  const place = packageAt('prebuilt');
  assert.equal(build(place, { compiler: true, args: ['--prebuild'] }).status, 0);
  const [folderName] = readdirSync(join(place, 'prebuilds'));
  assert.equal(folderName, `linux-${process.arch}`);
  const file = join(place, 'prebuilds', folderName, 'vring.node');
  const versions = readFileSync(file, 'latin1').matchAll(/GLIBC_2\.(\d+)/g);
  const highest = Math.max(...Array.from(versions, (match) => Number(match[1])));
  // 2.17 is of 2012; Node 24 itself needs 2.28.
  assert.ok(highest <= 28, `needs GLIBC_2.${highest}`);
  assert.deepEqual(build(place, { compiler: false }), { status: 0, text: '' });
  assert.equal(existsSync(join(place, 'build')), false);
});
