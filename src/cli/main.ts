#!/usr/bin/env node
/** The `vring` program. Exit status: 0 done, 1 failed, 2 wrong command line or configuration. */
import { enableCompileCache } from 'node:module';
import { messageOf, VringError } from '../base/errors.ts';
import { complain, endWithTheReader } from './output.ts';

enableCompileCache?.();
endWithTheReader();

const USAGE_CODES: readonly string[] = ['ERR_VRING_USAGE', 'ERR_VRING_CONFIG'];

try {
  const { runProgram } = await import('./program.ts');
  process.exitCode = await runProgram(process.argv.slice(2));
} catch (thrown) {
  complain(messageOf(thrown));
  const code = thrown instanceof VringError ? thrown.code : '';
  if (code === '' && process.env.VRING_DEBUG) console.error(thrown);
  process.exitCode = USAGE_CODES.includes(code) ? 2 : 1;
}
