import { deepEqual, equal, match, throws } from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { writeCpio } from './cpio.ts';
import { GUEST_INIT } from './guest-init.ts';
import { findKernel, moduleLoadOrder } from './kernel-modules.ts';
import { kernelCommandLine } from './linux-guest.ts';
import { detectAccelerator, findProgram, requireProgram } from './programs.ts';

test('an archive is headers, names and data, each on four bytes', () => {
  const bytes = writeCpio([
    { kind: 'directory', path: 'etc', mode: 0o755 },
    { kind: 'file', path: 'etc/a', mode: 0o644, bytes: Buffer.from('hello') },
    { kind: 'symlink', path: 'b', target: 'etc/a' },
  ]);
  equal(bytes.length % 4, 0);
  const text = Buffer.from(bytes).toString('latin1');
  equal(text.match(/070701/g)?.length, 4);
  // c_mode of the file, regular and 0644; c_filesize 5; the name with its zero is 6 bytes
  match(text, /070701000000020000\w{4}/);
  match(text, /000081a4.{32}00000005.{32}00000006/);
});

test('cpio lists what was written', (t) => {
  if (findProgram('cpio') === null) {
    if (process.env['VRING_REQUIRE_PEERS'] === '1') throw new Error('apt-get install cpio');
    return t.skip('apt-get install cpio');
  }
  const input = writeCpio([
    { kind: 'directory', path: 'dev', mode: 0o755 },
    { kind: 'character', path: 'dev/console', mode: 0o600, major: 5, minor: 1 },
    { kind: 'file', path: 'x', mode: 0o755, bytes: Buffer.alloc(4097) },
    { kind: 'symlink', path: 'y', target: 'x' },
  ]);
  const list = spawnSync('cpio', ['-itv', '--quiet'], { input, encoding: 'utf8' });
  equal(list.stderr, '');
  const lines = list.stdout.trimEnd().split('\n');
  match(lines[0] ?? '', /^drwxr-xr-x.* dev$/);
  match(lines[1] ?? '', /^crw------- +1 root +root +5, +1 .* dev\/console$/);
  match(lines[2] ?? '', /^-rwxr-xr-x.* 4097 .* x$/);
  match(lines[3] ?? '', /^lrwxrwxrwx.* y -> x$/);
});

test('modules come after what they need, built-in ones not at all', (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'vring-modules-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const dep = 'net/n.ko: net/fail-over.ko core/v.ko core/ring.ko\ncore/v.ko: core/ring.ko\n';
  writeFileSync(join(folder, 'modules.dep'), `${dep}core/ring.ko:\nnet/fail-over.ko:\n`);
  writeFileSync(join(folder, 'modules.builtin'), 'kernel/net/ipv6.ko\n');
  const order = moduleLoadOrder(folder, ['n', 'ipv6', 'v', 'fail_over']);
  deepEqual(order, ['core/ring.ko', 'core/v.ko', 'net/fail-over.ko', 'net/n.ko']);
  throws(() => moduleLoadOrder(folder, ['absent']), { code: 'ERR_VRING_KERNEL_MODULE' });
});

test('the cloud kernel is preferred, then the newest, and only with modules', (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'vring-kernels-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const boot = join(folder, 'boot');
  mkdirSync(boot);
  throws(() => findKernel(boot, folder), /apt-get install .*linux-image-cloud-amd64/);
  for (const release of ['6.1.0-9-cloud-amd64', '6.1.0-10-cloud-amd64', '6.9.0-amd64', 'none']) {
    writeFileSync(join(boot, `vmlinuz-${release}`), '');
    if (release === 'none') continue;
    mkdirSync(join(folder, release));
    writeFileSync(join(folder, release, 'modules.dep'), '');
  }
  equal(findKernel(boot, folder).release, '6.1.0-10-cloud-amd64');
});

test('the kernel command line carries the address and refuses what would break it', () => {
  const line = kernelCommandLine({ ip: '10.0.0.2/24,fd00::2/64', shell: 'script', mtu: 1500 });
  match(line, / vring\.ip=10\.0\.0\.2\/24,fd00::2\/64 vring\.mtu=1500 vring\.shell=script$/);
  const words = kernelCommandLine({ ip: null, shell: 'script', kernelWords: ['iommu=pt'] });
  match(words, / iommu=pt$/);
  throws(() => kernelCommandLine({ ip: null, shell: 'script', kernelWords: ['a b'] }));
  throws(() => kernelCommandLine({ ip: '1 init=/x', shell: 'script' }), { path: 'ip' });
});

test('the first process is a script that a shell can parse', () => {
  const shell = spawnSync('sh', ['-n'], { input: GUEST_INIT, encoding: 'utf8' });
  equal(shell.stderr, '');
});

test('a missing program names its package', () => {
  throws(() => requireProgram('no-such-program'), { code: 'ERR_VRING_MISSING_PROGRAM' });
  match(detectAccelerator(), /^(kvm|tcg)$/);
});
