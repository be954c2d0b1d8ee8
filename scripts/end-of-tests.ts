/**
 * Loaded before each test file: a file that does not end is a failure, told by name and by what
 * keeps it. `node --test` waits for such a file for ever (its `--test-timeout` is for the tests in
 * it): a test that fails before it closes what it opened would take the whole run with it.
 */
import { after } from 'node:test';
import { isMainThread } from 'node:worker_threads';

/** Handles that are being closed when the last test is over have so long. */
const AFTER_TESTS_MS = 30_000;
/** The longest file takes four minutes on two cores. */
const WHOLE_FILE_MS = 15 * 60_000;

function giveUpAfter(ms: number, what: string): void {
  const give = (): never => {
    process.stderr.write(
      `${process.argv[1]}: ${what} ${ms / 1000} s ago, and the process does not end. What keeps ` +
        `it is among ${process.getActiveResourcesInfo().join(', ')}; a test that failed may have ` +
        `left it open.\n`,
    );
    process.exit(1);
  };
  setTimeout(give, ms).unref();
}

// A process that a test forks has our arguments, too: it is no test file.
if (isMainThread && process.argv[1]?.endsWith('.test.ts')) {
  giveUpAfter(WHOLE_FILE_MS, 'started');
  after(() => giveUpAfter(AFTER_TESTS_MS, 'its tests ended'));
}
