/** What commands print: text or JSON on stdout, messages on stderr, nothing to a closed pipe. */
import picocolors from 'picocolors';
import { VringError } from '../base/errors.ts';

/** The command line is wrong: exit status 2. */
export class UsageError extends VringError {
  constructor(message: string) {
    super('ERR_VRING_USAGE', message);
  }
}

/** `vring events | head` ends quietly when head does. */
export function endWithTheReader(): void {
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(0);
    process.stderr.write(`vring: cannot write to standard output: ${error.message}\n`);
    process.exit(1);
  });
}

export function print(text: string): void {
  process.stdout.write(`${text}\n`);
}

/** Indented for people when it is one answer, one line when more follow. */
export function printJson(value: unknown, form: 'answer' | 'line' = 'answer'): void {
  print(JSON.stringify(value, null, form === 'answer' ? 2 : 0));
}

/** What `--json` prints when a command fails; the form of the control API. */
export function printError(code: string, message: string): void {
  printJson({ error: { code: code === '' ? 'ERR_VRING_UNEXPECTED' : code, message } }, 'line');
}

export function complain(message: string): void {
  process.stderr.write(`vring: ${message}\n`);
}

/** Text of peers and guests must not steer the terminal. */
export function printable(text: string): string {
  return text.replaceAll(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, '?');
}

/**
 * Colours only on a terminal, unless NO_COLOR is set; FORCE_COLOR has them anywhere. Asked here
 * because picocolors also colours what a CI system writes to a file.
 */
export const pc = picocolors.createColors(
  Boolean(process.env['FORCE_COLOR']) ||
    (process.stdout.isTTY === true && !process.env['NO_COLOR'] && process.env['TERM'] !== 'dumb'),
);

export const STATE_COLOURS: Readonly<Record<string, (text: string) => string>> = {
  up: pc.green,
  listening: pc.cyan,
  connecting: pc.cyan,
  negotiating: pc.yellow,
  broken: pc.red,
  down: pc.red,
};

export type Column = { readonly title: string; readonly align?: 'right' };

/** A table without lines, for reading and for awk. */
export async function table(
  columns: readonly Column[],
  rows: readonly (readonly string[])[],
): Promise<string> {
  const { default: Table } = await import('cli-table3');
  const none = ['top', 'top-mid', 'top-left', 'top-right', 'bottom', 'bottom-mid', 'bottom-left']
    .concat(['bottom-right', 'left', 'left-mid', 'mid', 'mid-mid', 'right', 'right-mid'])
    .map((name) => [name, '']);
  const grid = new Table({
    head: columns.map((column) => pc.bold(column.title)),
    colAligns: columns.map((column) => column.align ?? 'left'),
    chars: { ...Object.fromEntries(none), middle: '  ' },
    style: { 'padding-left': 0, 'padding-right': 0, head: [], border: [] },
  });
  grid.push(...rows.map((row) => [...row]));
  return grid
    .toString()
    .split('\n')
    .map((line) => line.trimEnd())
    .join('\n');
}

/** `1 session`, `2 sessions`. */
export function counted(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? '' : 's'}`;
}

const UNITS = ['', 'k', 'M', 'G', 'T', 'P'];

/** `1234567` to `1.23M`; four characters of digits at most. */
export function short(value: number): string {
  let scaled = value;
  let unit = 0;
  while (Math.abs(scaled) >= 999.5 && unit < UNITS.length - 1) {
    scaled /= 1000;
    unit++;
  }
  if (unit === 0) return String(Math.round(scaled));
  const digits = scaled < 9.995 ? 2 : scaled < 99.95 ? 1 : 0;
  return `${scaled.toFixed(digits)}${UNITS[unit]}`;
}
