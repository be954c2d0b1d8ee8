/** Options of the repository's programs: `--help` prints their usage, a wrong one ends with 2. */
import { parseArgs, type ParseArgsConfig } from 'node:util';

/** Like `parseArgs`; prints `usage` and ends the process for `--help` and for what is unknown. */
export function readOptions<T extends ParseArgsConfig>(
  usage: string,
  config: T,
): ReturnType<typeof parseArgs<T>> {
  if (process.argv.slice(2).some((word) => word === '--help' || word === '-h')) {
    process.stdout.write(`${usage}\n`);
    process.exit(0);
  }
  try {
    return parseArgs(config);
  } catch (error) {
    return wrongUsage(usage, (error as Error).message);
  }
}

/** Says what is wrong, and the usage; ends the process. */
export function wrongUsage(usage: string, problem: string): never {
  process.stderr.write(`${problem}\n\n${usage}\n`);
  process.exit(2);
}

/** The whole number of an option, at least `least`. */
export function wholeNumber(usage: string, name: string, text: string, least: number): number {
  const value = Number(text);
  if (/^\d+$/.test(text) && value >= least) return value;
  return wrongUsage(usage, `${name}: "${text}" is not a whole number from ${least} on`);
}
