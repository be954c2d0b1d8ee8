/** The parts of the test host that need no machine; test/e2e/host.test.ts boots one. */
import { deepEqual, equal, match, throws } from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { globSync } from 'node:fs';
import { test } from 'node:test';
import { missingPeers } from '../peers/require-peer.ts';
import {
  DEFAULT_MACHINE,
  machineKey,
  orderByMachine,
  parseHostFile,
  readHostFile,
} from './host-file.ts';
import { FIRST_INIT, quote, secondInit } from './init.ts';
import { KernelLog } from './kernel-log.ts';
import { machineCommand } from './machine-command.ts';
import { headersPath, testHostModules } from './modules.ts';

test('a file without a tag gets the ordinary machine and five minutes', () => {
  const file = parseHostFile('a.host.ts', '/** Mentions @test-host cards=x in the middle. */\n');
  deepEqual(file.machine, DEFAULT_MACHINE);
  deepEqual([file.timeLimitMs, file.isAlone, file.isLong], [300_000, false, false]);
});

test('a tag stands in either kind of comment', () => {
  const words = 'cards=vp-vdpa-pair memory=2048 cpus=1 time-limit=60 long alone';
  for (const text of [
    `// @test-host ${words}\n`,
    `/**\n * Why.\n *\n * @test-host ${words}\n */`,
  ]) {
    const file = parseHostFile('a.host.ts', text);
    deepEqual(file.machine, { memoryMib: 2048, cpus: 1, cards: 'vp-vdpa-pair' });
    deepEqual([file.timeLimitMs, file.isAlone, file.isLong], [60_000, true, true]);
  }
});

test('a wrong word of a tag names the file, the word and what is expected', () => {
  const wrong = (word: string, expected: RegExp): void => {
    const text = `// @test-host ${word}\n`;
    throws(() => parseHostFile('a.host.ts', text), { code: 'ERR_VRING_CONFIG', path: 'a.host.ts' });
    throws(() => parseHostFile('a.host.ts', text), expected);
  };
  wrong('memroy=1', /'memroy=1', expected memory= cpus= cards=/);
  wrong('memory=many', /'memory=many', expected a whole number from 512 on/);
  wrong('cpus=0', /'cpus=0', expected a whole number from 1 on/);
  wrong('cards=three', /'cards=three', expected none or vp-vdpa-pair/);
});

test('files of one machine are together, one that is alone is by itself', () => {
  const file = (path: string, words: string) => parseHostFile(path, `// @test-host ${words}`);
  const files = [
    file('a', 'long'),
    file('b', 'memory=2048'),
    file('c', 'time-limit=9'),
    file('d', 'memory=2048 alone'),
    file('e', 'memory=2048'),
  ];
  deepEqual(
    orderByMachine(files).map(({ path }) => path),
    ['a', 'c', 'b', 'e', 'd'],
  );
  equal(new Set(files.map(machineKey)).size, 3);
});

test('every host file of the repository has a tag that can be read', () => {
  const paths = globSync('test/host/*.host.ts');
  equal(paths.includes('test/host/smoke.host.ts'), true);
  for (const path of paths) readHostFile(path);
});

test('the kernel log finds reports in pieces of lines, and gives each once', () => {
  const log = new KernelLog();
  log.append('[    1.0] BUG: kernel NULL pointer deref');
  deepEqual(log.takeReports(), []);
  log.append('erence, address: 0\r\n[    1.1] WARNING: CPU: 1 PID: 7 at x.c:1\r\nvdpa: fine\r\n');
  deepEqual(log.takeReports(), [
    { kind: 'broken', line: '[    1.0] BUG: kernel NULL pointer dereference, address: 0' },
    { kind: 'warned', line: '[    1.1] WARNING: CPU: 1 PID: 7 at x.c:1' },
  ]);
  deepEqual(log.takeReports(), []);
  match(log.tail, /address: 0\n.*\nvdpa: fine$/);
});

test('the kernel log knows the reports of the kernel and not those of programs', () => {
  const kindOf = (line: string): string | undefined => {
    const log = new KernelLog();
    log.append(`${line}\n`);
    return log.takeReports()[0]?.kind;
  };
  for (const line of [
    '[    9.9] kernel BUG at drivers/vhost/vhost.c:1!',
    '[    9.9] general protection fault, probably for non-canonical address',
    '[    9.9] Kernel panic - not syncing: Fatal exception',
    '[    9.9] watchdog: BUG: soft lockup - CPU#0 stuck for 22s!',
    '[    9.9] Oops: 0000 [#1] PREEMPT SMP NOPTI',
  ]) {
    equal(kindOf(line), 'broken', line);
  }
  for (const line of [
    '[    9.9] WARNING: CPU: 0 PID: 1 at drivers/vdpa/vdpa.c:1 vdpa_reset+0x1/0x2 [vdpa]',
    '[    9.9] INFO: task node:77 blocked for more than 120 seconds.',
    '[    9.9] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:',
  ]) {
    equal(kindOf(line), 'warned', line);
  }
  equal(kindOf('[    9.9] vdpa: loading out-of-tree module taints kernel.'), undefined);
  equal(kindOf('[    9.9] mtrr: your CPUs had inconsistent MTRRdefType settings'), undefined);
});

test('a kernel that warns without end fills no memory', () => {
  const log = new KernelLog();
  for (let i = 0; i < 1000; i++) log.append(`WARNING: CPU: 0 PID: ${i}\n`);
  log.append('x'.repeat(1 << 20));
  equal(log.takeReports().length, 50);
  equal(log.tail.length, 32_768);
});

test('both scripts are ones that a shell can parse, whatever stands in the environment', () => {
  const options = { folder: "/a b/it's", environment: { X: "it's $HOME `x`" } };
  const served = secondInit({ ...options, interactive: null });
  const shown = secondInit({ ...options, interactive: [`node ${quote('a b.ts')}`] });
  for (const script of [FIRST_INIT, served, shown]) {
    equal(spawnSync('sh', ['-n'], { input: script, encoding: 'utf8' }).stderr, '');
  }
  const echo = `${served.split('\n')[1]}; printf %s "$X"`;
  equal(spawnSync('sh', ['-c', echo], { encoding: 'utf8' }).stdout, "it's $HOME `x`");
});

test('the pair of cards comes with an IOMMU, the ordinary machine with neither', () => {
  const paths = { qemu: 'q', kernel: 'k', initramfs: 'i', shareSocket: 's', qmp: 'm' };
  const served = { ...paths, console: 'c', control: 'o' };
  const pair = machineCommand({ ...DEFAULT_MACHINE, cards: 'vp-vdpa-pair' }, served, 'tcg');
  equal(pair.filter((word) => word.startsWith('virtio-net-pci')).length, 2);
  match(pair.join(' '), /-device intel-iommu.*hubport,hubid=0,id=wire0.*iommu_platform=on/);
  match(pair.join(' '), / intel_iommu=on -device intel-iommu/);
  const plain = machineCommand(DEFAULT_MACHINE, served, 'tcg').join(' ');
  equal(/iommu|virtio-net/.test(plain), false);
});

test('what the modules cannot be built for is named, with what helps', () => {
  const kernel = { image: '/boot/vmlinuz-6.1.0-1-test', release: '6.1.0-1-test' };
  const absent = { ...kernel, modulesPath: '/nonexistent' };
  equal(headersPath(absent), null);
  const line = /apt-get install --no-install-recommends linux-headers-6\.1\.0-1-test/;
  throws(() => testHostModules(absent), line);
  const newer = { ...absent, release: '6.12.1-amd64' };
  throws(() => testHostModules(newer), /Linux 6\.1, not of 6\.12\.1-amd64/);
});

test('missing peers are named together, with one line for all', () => {
  equal(missingPeers(['sh', 'cat']), null);
  const problem = missingPeers(['sh', 'no-such-a', 'no-such-b']);
  equal(
    problem,
    'no-such-a, no-such-b missing: apt-get install --no-install-recommends no-such-a no-such-b',
  );
});

test('a host file that runs outside says how it is run', () => {
  const file = 'test/host/smoke.host.ts';
  const env = { ...process.env, VRING_TEST_HOST: '' };
  const { status, stderr } = spawnSync(process.execPath, [file], { encoding: 'utf8', env });
  equal(status, 1);
  match(stderr, /runs inside the test host: npm run test:host -- smoke\.host\.ts/);
});
