/** What is published: built by tsc, complete, and usable without the sources. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { cpSync, globSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';

const ROOT = join(import.meta.dirname, '..');
const PACKAGE = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));
let folder = '';

function run(command: string, args: string[], cwd: string): string {
  const result = spawnSync(command, args, { cwd, encoding: 'utf8', timeout: 120_000 });
  assert.equal(result.status, 0, `${command} ${args.join(' ')}: ${result.stdout}${result.stderr}`);
  return result.stdout;
}

before(() => {
  folder = mkdtempSync(join(tmpdir(), 'vring-package-'));
  const tsc = join(ROOT, 'node_modules/.bin/tsc');
  run(tsc, ['-p', 'tsconfig.build.json', '--outDir', join(folder, 'dist')], ROOT);
  for (const name of ['package.json', 'native', 'schema', 'LICENSE']) {
    cpSync(join(ROOT, name), join(folder, name), { recursive: true });
  }
  symlinkSync(join(ROOT, 'node_modules'), join(folder, 'node_modules'));
});
after(() => rmSync(folder, { recursive: true, force: true }));

test('every subpath export can be imported and has types', () => {
  const names = Object.keys(PACKAGE.exports).filter((name) => name !== './package.json');
  assert.ok(names.length > 5);
  for (const name of names) {
    const { types, default: file } = PACKAGE.exports[name];
    assert.ok(globSync(types, { cwd: folder }).length === 1, `${types} is built`);
    const specifier = JSON.stringify(join(folder, file));
    const script = `const m = await import(${specifier}); console.log(Object.keys(m).length)`;
    const exported = run(process.execPath, ['--input-type=module', '-e', script], folder);
    assert.ok(Number(exported) > 0, `${name} exports something`);
  }
});

test('the command runs from dist', () => {
  const main = join(folder, PACKAGE.bin.vring);
  assert.match(readFileSync(main, 'utf8'), /^#!/);
  assert.match(run(process.execPath, [main, '--version'], folder), /\d+\.\d+\.\d+/);
  assert.match(run(process.execPath, [main, 'switch', '--help'], folder), /Examples/);
});

test('a switch runs from dist, its worker included', () => {
  const script = `
    import { VirtualSwitch } from ${JSON.stringify(join(folder, 'dist/index.js'))};
    const config = { ports: [], control: { path: '/nowhere', mode: null, owner: null }, http: null,
      mac: { ageingSeconds: 300, limit: 16 }, spinMicroseconds: 50 };
    const sw = await VirtualSwitch.start(config);
    console.log((await sw.workers()).length);
    await sw.close();`;
  assert.equal(run(process.execPath, ['--input-type=module', '-e', script], folder).trim(), '1');
});

test('tests and their support are not published', () => {
  const built = globSync('dist/**/*.js', { cwd: folder });
  const unwanted = built.filter((file) =>
    /\.(test|fuzz|bench)\.js$|fake-|fixture|test-plane/.test(file),
  );
  assert.deepEqual(unwanted, []);
});
