/**
 * What a frame costs at least, beside what our loop and the others' loops say of themselves:
 * bench/ring-floor.c, C that copies between two rings and does nothing else. The same bytes, ring
 * sizes, places and frames under way as in `npm run bench`, and the same two cores.
 *
 *   node bench/ring-floor.ts [SECONDS]       the four cases, 1 s each
 */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { compiledProgram } from './compile.ts';
import { coreToCoreNs } from './placement.ts';
import { table } from './report.ts';
import { BACKEND_CORE, CLIENT_CORE, type Scenario } from './scenario.ts';

export type Floor = {
  /** Of the device's rounds that found work. */
  readonly nsPerFrame: number;
  readonly framesPerRound: number;
};

export type FloorScenario = Pick<Scenario, 'ring' | 'frameBytes'>;

/** Above what it takes to begin, warm up, and check the frames. */
const GRACE_MS = 20_000;

export async function measureFloor(scenario: FloorScenario, seconds: number): Promise<Floor> {
  const { ring, frameBytes } = scenario;
  const words = [ring, frameBytes, seconds, BACKEND_CORE, CLIENT_CORE].map(String);
  const timeout = seconds * 1000 + GRACE_MS;
  const program = compiledProgram('ring-floor');
  return parseFloor((await promisify(execFile)(program, words, { timeout })).stdout);
}

/** @throws Error when the text is not what bench/ring-floor.c prints. */
export function parseFloor(text: string): Floor {
  const { nsPerFrame, framesPerRound } = JSON.parse(text) as Partial<Floor>;
  for (const value of [nsPerFrame, framesPerRound]) {
    if (typeof value === 'number' && value > 0) continue;
    throw new Error(`bench/ring-floor.c printed "${text.trim()}": expected two figures above 0`);
  }
  return { nsPerFrame: nsPerFrame!, framesPerRound: framesPerRound! };
}

async function main(seconds: number): Promise<void> {
  const rows = [['ring', 'bytes', 'ns a frame', 'frames a round', 'core to core, ns']];
  for (const ring of ['split', 'packed'] as const) {
    for (const frameBytes of [64, 1500]) {
      const lineNs = await coreToCoreNs([BACKEND_CORE, CLIENT_CORE]);
      const floor = await measureFloor({ ring, frameBytes }, seconds);
      const figures = [floor.nsPerFrame, floor.framesPerRound, lineNs];
      rows.push([ring, String(frameBytes), ...figures.map((figure) => figure.toFixed(1))]);
    }
  }
  console.log(table(rows));
}

if (import.meta.main) await main(Number(process.argv[2] ?? '1'));
