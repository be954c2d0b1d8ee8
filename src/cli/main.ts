#!/usr/bin/env node
/** The `vring` program. Exit status: 0 done, 1 failed, 2 wrong command line or configuration. */
import { enableCompileCache } from 'node:module';
import { VringError } from '../base/errors.ts';
import { explain } from './explain.ts';
import { complain, endWithTheReader, printError } from './output.ts';

enableCompileCache?.();
endWithTheReader();

const USAGE_CODES: readonly string[] = ['ERR_VRING_USAGE', 'ERR_VRING_CONFIG'];

const args = process.argv.slice(2);
try {
  const { runProgram } = await import('./program.ts');
  process.exitCode = await runProgram(args);
} catch (thrown) {
  const message = explain(thrown);
  complain(message);
  const code = thrown instanceof VringError ? thrown.code : '';
  // What capture prints is pcapng, or nothing.
  if (args.includes('--json') && args[0] !== 'capture') printError(code, message);
  if (code === '' && process.env.VRING_DEBUG) console.error(thrown);
  process.exitCode = USAGE_CODES.includes(code) ? 2 : 1;
}
