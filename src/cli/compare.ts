/** `vring compare`: the command, its options and what it prints. */
import { writeFileSync } from 'node:fs';
import { Command, InvalidArgumentError } from 'commander';
import {
  columnTitles,
  compare,
  type ComparedPath,
  type Comparison,
  htmlReport,
  machineLine,
  notes,
  PATHS,
  tableRows,
  vdpaDevice,
} from '../compare/index.ts';
import { fileProblem } from './explain.ts';
import { complain, pc, print, printJson, table, UsageError } from './output.ts';

const EXAMPLES = `
Examples:
  vring compare                                 every path that this machine has
  vring compare --only vhost-user vhost-net     two of them
  vring compare --rounds 10 --seconds 3 --html compare.html --json compare.json
  vring compare --vdpa /dev/vhost-vdpa-0=eth1   a vDPA device too; its wire ends in eth1

Every path carries the same frames to a TAP interface, whose other side returns them; a path that
cannot end there says so. Needs root for TAP interfaces. Paths that this machine lacks are listed
with what brings them.
Exit status: 0 success, 1 a path failed although nothing is missing, 2 wrong usage.`;

type Options = {
  only?: string[];
  vdpa?: string[];
  rounds: number;
  seconds: number;
  sizes: number[];
  window: number;
  trips: number;
  html?: string;
  json?: string | true;
  quiet: boolean;
};

export function compareCommand(): Command {
  return new Command('compare')
    .summary('one workload over every data path, measured')
    .description(
      'Runs one workload (frames there and back, round trips) over every data path that this ' +
        'machine offers, and prints what each costs.',
    )
    .option('--only <paths...>', `some of ${PATHS.map((path) => path.id).join(', ')}`)
    .option('--vdpa <devices...>', 'also this vhost-vDPA device: NODE, or NODE=FAR-INTERFACE')
    .option('--rounds <n>', 'rounds, interleaved', whole(1, 1000), 3)
    .option('--seconds <n>', 'for each frame size of each round', seconds, 1)
    .option('--sizes <bytes>', 'frame sizes', sizes, [64, 1500])
    .option('--window <frames>', 'frames under way', whole(1, 256), 128)
    .option('--trips <n>', 'round trips of a single frame', whole(10, 1_000_000), 500)
    .option('--html <file>', 'a page with plots')
    .option('--json [file]', 'as JSON, on standard output or to a file')
    .option('-q, --quiet', 'no progress on standard error', false)
    .addHelpText('after', EXAMPLES)
    .action(async (options: Options) => {
      process.exitCode = await runCompare(options);
    });
}

async function runCompare(options: Options): Promise<number> {
  const abort = new AbortController();
  const stop = (): void => abort.abort();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, stop);
  const { rounds, seconds: length, sizes: sizeList, window, trips } = options;
  const comparison = await compare({
    paths: chosenPaths(options),
    rounds,
    sizes: sizeList,
    seconds: length,
    window,
    trips,
    onProgress: (text) => {
      if (!options.quiet) complain(`${text} ...`);
    },
    signal: abort.signal,
  });
  if (typeof options.json === 'string') write(options.json, JSON.stringify(comparison, null, 2));
  if (options.html !== undefined) write(options.html, htmlReport(comparison));
  if (options.json === true) printJson(comparison);
  else await show(comparison);
  return comparison.paths.some((path) => path.failure !== null) || abort.signal.aborted ? 1 : 0;
}

function chosenPaths({ only, vdpa = [] }: Options): ComparedPath[] {
  const known = PATHS.map((path) => path.id as string);
  for (const id of only ?? []) {
    if (!known.includes(id)) {
      throw new UsageError(`--only ${id}: expected is one of ${known.join(', ')}`);
    }
  }
  const devices = vdpa.map((text) => {
    const [node = '', farEnd = null] = text.split('=');
    return vdpaDevice(node, farEnd);
  });
  const paths = PATHS.filter((path) => only === undefined || only.includes(path.id));
  return [...paths, ...devices];
}

async function show(comparison: Comparison): Promise<void> {
  const titles = columnTitles(comparison);
  const rows = tableRows(comparison).map(({ title, cells }) => [title, ...cells.map(wrapped)]);
  print(await table([{ title: '' }, ...titles.map((title) => ({ title: wrapped(title) }))], rows));
  print('');
  print(machineLine(comparison));
  for (const note of notes(comparison)) {
    print(note.startsWith('EMULATED') ? pc.yellow(note) : `- ${note}`);
  }
}

const COLUMN = 26;

/** A cell of words in lines of a column's width. */
function wrapped(text: string): string {
  const lines: string[] = [''];
  for (const word of text.split(' ')) {
    const line = lines.at(-1)!;
    if (line !== '' && line.length + 1 + word.length > COLUMN) lines.push(word);
    else lines[lines.length - 1] = line === '' ? word : `${line} ${word}`;
  }
  return lines.join('\n');
}

function write(path: string, text: string): void {
  try {
    writeFileSync(path, `${text}\n`);
  } catch (cause) {
    throw new UsageError(`${path} cannot be written: ${fileProblem(cause)}`);
  }
}

function whole(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (/^\d+$/.test(text) && value >= least && value <= most) return value;
    throw new InvalidArgumentError(`A whole number from ${least} to ${most} is expected.`);
  };
}

function seconds(text: string): number {
  const value = Number(text);
  if (value >= 0.1 && value <= 3600) return value;
  throw new InvalidArgumentError('A number from 0.1 to 3600 is expected.');
}

function sizes(text: string): number[] {
  const values = text.split(',').map(Number);
  if (values.every((value) => Number.isInteger(value) && value >= 62 && value <= 1514)) {
    return values;
  }
  throw new InvalidArgumentError('Bytes from 62 to 1514 are expected, such as 64,1500.');
}
