/**
 * The test host: what `npm run test:host` runs, and that it notices what goes wrong inside. Its
 * files stand in test/host/; those that are marked `long` run in `npm run test:host:all` only.
 */
import { equal, fail, match } from 'node:assert/strict';
import { existsSync, globSync } from 'node:fs';
import { test, type TestContext } from 'node:test';
import { OutputTail } from '../../src/vmm/index.ts';
import { orderByMachine, readHostFile, type HostFile } from '../host/host-file.ts';
import { TEST_HOST_PEERS } from '../host/peers.ts';
import { HostRunner } from '../host/run.ts';
import { requirePeer, requireRoot } from '../peers/require-peer.ts';

function requireTestHost(t: TestContext): boolean {
  return requireRoot(t) && requirePeer(t, ...TEST_HOST_PEERS);
}

test('files of the test host', async (t) => {
  if (!requireTestHost(t)) return;
  const paths = globSync('test/host/*.host.ts').toSorted();
  const files = orderByMachine(paths.map(readHostFile).filter(({ isLong }) => !isLong));
  const output = new OutputTail(65_536);
  const runner = new HostRunner({
    onOutput: (text) => output.append(text),
    onConsole: () => {},
  });
  t.after(() => runner.close());
  for (const file of files) {
    await t.test(file.path, async () => {
      output.text = '';
      const { problem } = await runner.run(file);
      if (problem !== null) fail(`${problem}\n${output.text}`);
    });
  }
});

test('what goes wrong inside is noticed', async (t) => {
  if (!requireTestHost(t)) return;
  let output = '';
  const runner = new HostRunner({ onOutput: (text) => (output += text), onConsole: () => {} });
  t.after(() => runner.close());
  const flawed = async (name: string, more: Partial<HostFile> = {}): Promise<string | null> => {
    output = '';
    const file = { ...readHostFile(`test/host/flawed/${name}.ts`), ...more };
    return (await runner.run(file)).problem;
  };

  await t.test('a test that fails', async () => {
    equal(await flawed('fails'), 'ended with status 1');
    match(output, /✔ one is one[^]*✖ one is two/);
  });
  await t.test('a warning of the kernel is shown and is no failure', async () => {
    equal(await flawed('warns'), null);
    match(output, /^# kernel warned: .*WARNING: CPU: 0 PID: 1 at drivers\/vdpa/m);
    equal(await flawed('fails'), 'ended with status 1'); // the warning was that file's alone
    equal(output.includes('# kernel'), false);
  });
  await t.test('a file that hangs is ended, with what the kernel says', async () => {
    const problem = (await flawed('hangs', { timeLimitMs: 8000 })) ?? '';
    match(problem, /hangs\.ts'' hangs \(not within 8 s\); its console:/);
    match(problem, /sysrq: Show Blocked State/);
  });
  await t.test('a kernel that dies ends its file at once, in a machine of its own', async () => {
    // Not by the time limit; and the machine in which a file hung is not used again.
    match((await flawed('oopses')) ?? '', /QEMU ended with status 0[^]*Kernel panic/);
    match(output, /^# booting/m);
  });
});

test('nothing written inside is outside', (t) => {
  if (!requireTestHost(t)) return;
  // smoke.host.ts, above, has written both.
  equal(existsSync('written'), false);
  equal(existsSync('/etc/written'), false);
});
