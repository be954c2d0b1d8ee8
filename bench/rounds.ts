/** Rounds of one scenario: a run of each back-end in each, close together. */
import { messageOf } from '../src/base/errors.ts';
import type { BackendKind } from './backends.ts';
import { coreToCoreNs, placementBetween, type Placement } from './placement.ts';
import { pairProblem, type Rounds } from './report.ts';
import { measureFloor, type Floor } from './ring-floor.ts';
import { BACKEND_CORE, CLIENT_CORE, scenarioName, type Run, type Scenario } from './scenario.ts';
import { Stand } from './stand.ts';

export type FloorRun = Floor & { readonly placement: Placement | null };

/** Rounds are added for those in which a run does not count, up to so many for each. */
const MOST_ROUNDS = 2;

/**
 * `pairs` rounds in which every run counts, and those between them. With `floors`, the C loop has a
 * turn in each as well.
 */
export async function measureRounds(
  scenario: Scenario,
  kinds: readonly BackendKind[],
  pairs: number,
  seconds: number,
  floors: FloorRun[] | null = null,
): Promise<Rounds> {
  const rounds: Run[][] = [];
  const stands: Stand[] = [];
  try {
    for (const kind of kinds) {
      const stand = await startStand(kind, scenario);
      if (stand !== null) stands.push(stand);
    }
    let good = 0;
    while (good < pairs && rounds.length < MOST_ROUNDS * pairs) {
      const runs: Run[] = [];
      const order = rounds.length % 2 === 0 ? stands : stands.toReversed();
      for (const stand of order) runs.push(await stand.run(seconds));
      rounds.push(runs);
      if (runs.every((run) => pairProblem(run, runs[0]!) === null)) good++;
      if (floors !== null) floors.push(await floorRun(scenario, seconds));
    }
  } finally {
    for (const stand of stands.toReversed()) await stand.close();
  }
  return { scenario, rounds };
}

/** A stand that does not start is said aloud and tried once more; it never ends the bench. */
async function startStand(kind: BackendKind, scenario: Scenario): Promise<Stand | null> {
  for (let attempt = 0; attempt < 2; attempt++) {
    try {
      return await Stand.start(kind, scenario);
    } catch (error) {
      console.error(`${kind.name}, ${scenarioName(scenario)}: ${messageOf(error)}`);
    }
  }
  return null;
}

async function floorRun(scenario: Scenario, seconds: number): Promise<FloorRun> {
  const before = await coreToCoreNs([BACKEND_CORE, CLIENT_CORE]);
  const floor = await measureFloor(scenario, seconds);
  const after = await coreToCoreNs([BACKEND_CORE, CLIENT_CORE]);
  return { ...floor, placement: placementBetween(before, after) };
}
