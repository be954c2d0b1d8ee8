/**
 * `npm run test:host`: test files inside the test host, a virtual machine with a kernel that has
 * vhost, vDPA and VDUSE (docs/test-host.md).
 */
import { globSync } from 'node:fs';
import { join, relative } from 'node:path';
import { messageOf, VringError } from '../src/base/errors.ts';
import {
  DEFAULT_MACHINE,
  orderByMachine,
  readHostFile,
  type HostFile,
} from '../test/host/host-file.ts';
import { runInteractively } from '../test/host/machine.ts';
import { TEST_HOST_PEERS } from '../test/host/peers.ts';
import { hostCommand, HostRunner, type HostOutcome } from '../test/host/run.ts';
import { missingPeers } from '../test/peers/require-peer.ts';
import { readOptions, wholeNumber, wrongUsage } from './options.ts';

const USAGE = `usage: npm run test:host -- [options] FILE|WORD...
       npm run test:host:all

Runs test/host/*.host.ts in a virtual machine; a WORD takes every file whose path contains it.

  --all            every file
  --limit SECONDS  end a file after so long, instead of what it says itself
  --console        print the console of the kernel inside, too
  --shell          a shell in the machine, after the files if there are any; no time limit`;

const ROOT = join(import.meta.dirname, '..');

// Through 'exit', where QEMU and the daemon are ended and their files removed.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.once(signal, () => process.exit(130));
}
process.exitCode = await main().catch((error: unknown) => {
  process.stderr.write(`${messageOf(error)}\n`);
  return 1;
});

async function main(): Promise<number> {
  const { values, positionals } = readOptions(USAGE, {
    args: process.argv.slice(2),
    allowPositionals: true,
    options: {
      all: { type: 'boolean', default: false },
      limit: { type: 'string' },
      console: { type: 'boolean', default: false },
      shell: { type: 'boolean', default: false },
    },
  });
  const { limit } = values;
  const found = findFiles(positionals, values.all).map((path) => readHostFile(path));
  const files = limit === undefined ? found : found.map((file) => withLimit(file, limit));
  if (files.length === 0 && !values.shell) wrongUsage(USAGE, 'no file and no word was given');
  const missing = missingPeers(TEST_HOST_PEERS);
  if (missing !== null) throw new VringError('ERR_VRING_MISSING_PROGRAM', missing);
  if (process.getuid?.() !== 0) {
    throw new VringError('ERR_VRING_TEST_HOST', 'the test host needs root, for its read-only tree');
  }
  if (values.shell) {
    const machine = files[0]?.machine ?? DEFAULT_MACHINE;
    await runInteractively(machine, files.map(hostCommand));
    return 0;
  }
  const write = (text: string): void => void process.stdout.write(text);
  const runner = new HostRunner({
    onOutput: write,
    onConsole: values.console ? write : () => {},
  });
  const outcomes: HostOutcome[] = [];
  for (const file of orderByMachine(files)) outcomes.push(await runner.run(file));
  await runner.close();
  for (const outcome of outcomes) write(summaryOf(outcome));
  return outcomes.every(({ problem }) => problem === null) ? 0 : 1;
}

function summaryOf({ path, seconds, problem }: HostOutcome): string {
  const line = `# ${problem === null ? 'ok    ' : 'FAILED'} ${path}, ${seconds} s\n`;
  return line + (problem === null ? '' : problem.replace(/^/gm, '#   ') + '\n');
}

function withLimit(file: HostFile, limit: string): HostFile {
  return { ...file, timeLimitMs: wholeNumber(USAGE, '--limit', limit, 1) * 1000 };
}

/** Paths relative to the repository. */
function findFiles(words: readonly string[], isAll: boolean): string[] {
  process.chdir(ROOT);
  const all = globSync('test/host/*.host.ts').toSorted();
  if (isAll) return all;
  const found = new Set<string>();
  for (const word of words) {
    const matching = all.filter((path) => path.includes(relative(ROOT, join(ROOT, word))));
    if (matching.length === 0) wrongUsage(USAGE, `no test/host/*.host.ts matches ${word}`);
    for (const path of matching) found.add(path);
  }
  return [...found];
}
