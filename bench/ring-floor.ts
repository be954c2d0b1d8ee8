/**
 * What a frame costs at least, beside what our loop and the others' loops say of themselves:
 * bench/ring-floor.c, C that copies between two rings and does nothing else. The same bytes, ring
 * sizes, places and frames under way as in `npm run bench`, and the same two cores.
 *
 *   node bench/ring-floor.ts [SECONDS]       the four cases, 1 s each
 *
 * On a virtual machine the result is of two kinds, as the other loops' are: where the hypervisor
 * has put the two virtual cores decides what a cache line between them costs. `coreToCoreNs`, the
 * round trip of one line just before, is an indication of the kind, no more: about 110 ns mostly
 * goes with 7 ns a frame of 64 bytes, about 530 ns with 13 to 27, but the cores may be moved
 * between the two.
 */
import { execFile, execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { requireProgram } from '../src/vmm/programs.ts';
import { Scratch } from '../test/peers/scratch.ts';
import { table } from './report.ts';
import { BACKEND_CORE, CLIENT_CORE, type Scenario } from './scenario.ts';

export type Floor = {
  /** Of the device's rounds that found work. */
  readonly nsPerFrame: number;
  readonly framesPerRound: number;
  /** Round trip of one cache line between the device's core and the driver's. */
  readonly coreToCoreNs: number;
};

export type FloorScenario = Pick<Scenario, 'ring' | 'frameBytes'>;

const SOURCE = fileURLToPath(new URL('./ring-floor.c', import.meta.url));
/** Above what it takes to begin, warm up, and check the frames. */
const GRACE_MS = 20_000;

/** Compiles bench/ring-floor.c, which takes half a second, and runs it. */
export async function measureFloor(scenario: FloorScenario, seconds: number): Promise<Floor> {
  await using scratch = new Scratch();
  const program = scratch.path('ring-floor');
  const compiler = requireProgram(process.env['CC'] ?? 'cc');
  execFileSync(compiler, ['-O2', '-pthread', '-o', program, SOURCE], { stdio: 'pipe' });
  const { ring, frameBytes } = scenario;
  const words = [ring, frameBytes, seconds, BACKEND_CORE, CLIENT_CORE].map(String);
  const timeout = seconds * 1000 + GRACE_MS;
  return parseFloor((await promisify(execFile)(program, words, { timeout })).stdout);
}

/** @throws Error when the text is not what bench/ring-floor.c prints. */
export function parseFloor(text: string): Floor {
  const { nsPerFrame, framesPerRound, coreToCoreNs } = JSON.parse(text) as Partial<Floor>;
  for (const value of [nsPerFrame, framesPerRound, coreToCoreNs]) {
    if (typeof value === 'number' && value > 0) continue;
    throw new Error(`bench/ring-floor.c printed "${text.trim()}": expected three figures above 0`);
  }
  return { nsPerFrame: nsPerFrame!, framesPerRound: framesPerRound!, coreToCoreNs: coreToCoreNs! };
}

async function main(seconds: number): Promise<void> {
  const rows = [['ring', 'bytes', 'ns a frame', 'frames a round', 'core to core, ns']];
  for (const ring of ['split', 'packed'] as const) {
    for (const frameBytes of [64, 1500]) {
      const floor = await measureFloor({ ring, frameBytes }, seconds);
      const figures = [floor.nsPerFrame, floor.framesPerRound, floor.coreToCoreNs];
      rows.push([ring, String(frameBytes), ...figures.map((figure) => figure.toFixed(1))]);
    }
  }
  console.log(table(rows));
}

if (import.meta.main) await main(Number(process.argv[2] ?? '1'));
