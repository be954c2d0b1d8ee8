/**
 * The test host: what `npm run test:host` runs, and that it notices what goes wrong inside. Its
 * files stand in test/host/; those that are marked `long` run in `npm run test:host:all` only.
 *
 * Two machines take turns in what there is to do: programs of ours use one processor of a machine
 * most of the time. Each boots once, or once more for what wants another kind of machine.
 */
import { equal, fail, match } from 'node:assert/strict';
import { existsSync, globSync } from 'node:fs';
import { test, type TestContext } from 'node:test';
import { OutputTail } from '../../src/vmm/index.ts';
import { CARDS, readHostFile, type HostFile } from '../host/host-file.ts';
import { TEST_HOST_PEERS } from '../host/peers.ts';
import { HostRunner } from '../host/run.ts';
import { requirePeer, requireRoot } from '../peers/require-peer.ts';

const LANES = 2;

function requireTestHost(t: TestContext): boolean {
  return requireRoot(t) && requirePeer(t, ...TEST_HOST_PEERS);
}

/** A machine, and what the file that runs in it said. */
class Lane {
  readonly output = new OutputTail(65_536);
  readonly runner = new HostRunner({
    onOutput: (text) => this.output.append(text),
    onConsole: () => {},
  });

  /** What was wrong, or null. */
  async run(file: HostFile): Promise<string | null> {
    this.output.text = '';
    return (await this.runner.run(file)).problem;
  }
}

/** Those that may take longest first, and at the end what needs a machine of its own. */
function inOrder(files: readonly HostFile[]): HostFile[] {
  const kind = ({ machine }: HostFile): number => CARDS.indexOf(machine.cards);
  return files.toSorted((a, b) => kind(a) - kind(b) || b.timeLimitMs - a.timeLimitMs);
}

test('files of the test host, and what goes wrong inside', { concurrency: LANES }, async (t) => {
  if (!requireTestHost(t)) return;
  const paths = globSync('test/host/*.host.ts').toSorted();
  const files = inOrder(paths.map(readHostFile).filter(({ isLong }) => !isLong));
  const jobs = files.map((file) => (lane: Lane): Promise<void> => {
    return t.test(file.path, async () => {
      const problem = await lane.run(file);
      if (problem !== null) fail(`${problem}\n${lane.output.text}`);
    });
  });
  const cards = files.filter(({ machine }) => machine.cards !== 'none').length;
  jobs.splice(jobs.length - cards, 0, (lane) => {
    return t.test('what goes wrong inside is noticed', (sub) => noticeFlaws(sub, lane));
  });
  const work = async (): Promise<void> => {
    const lane = new Lane();
    t.after(() => lane.runner.close());
    for (let job = jobs.shift(); job !== undefined; job = jobs.shift()) await job(lane);
    await lane.runner.close();
  };
  await Promise.all(Array.from({ length: LANES }, work));
});

async function noticeFlaws(t: TestContext, lane: Lane): Promise<void> {
  const flawed = (name: string, more: Partial<HostFile> = {}): Promise<string | null> =>
    lane.run({ ...readHostFile(`test/host/flawed/${name}.ts`), ...more });

  await t.test('a test that fails', async () => {
    equal(await flawed('fails'), 'ended with status 1');
    match(lane.output.text, /✔ one is one[^]*✖ one is two/);
  });
  await t.test('a warning of the kernel is shown and is no failure', async () => {
    equal(await flawed('warns'), null);
    match(lane.output.text, /^# kernel warned: .*WARNING: CPU: 0 PID: 1 at drivers\/vdpa/m);
    equal(await flawed('fails'), 'ended with status 1'); // the warning was that file's alone
    equal(lane.output.text.includes('# kernel'), false);
  });
  await t.test('a file that hangs is ended, with what the kernel says', async () => {
    const problem = (await flawed('hangs', { timeLimitMs: 8000 })) ?? '';
    match(problem, /hangs\.ts'' hangs \(not within 8 s\); its console:/);
    match(problem, /sysrq: Show Blocked State/);
  });
  await t.test('a kernel that dies ends its file at once, in a machine of its own', async () => {
    // Not by the time limit; and the machine in which a file hung is not used again.
    match((await flawed('oopses')) ?? '', /QEMU ended with status 0[^]*Kernel panic/);
    match(lane.output.text, /^# booting/m);
  });
}

test('nothing written inside is outside', (t) => {
  if (!requireTestHost(t)) return;
  // smoke.host.ts, above, has written both.
  equal(existsSync('written'), false);
  equal(existsSync('/etc/written'), false);
});
