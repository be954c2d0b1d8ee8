/** Where our data plane spends its time: V8's CPU profiles of one run, summed up by function. */
import { readFileSync, readdirSync } from 'node:fs';
import { basename, join } from 'node:path';
import { sleep, waitFor } from '../test/peers/scratch.ts';

type Node = {
  readonly id: number;
  readonly callFrame: { functionName: string; url: string; lineNumber: number };
};
type CpuProfile = {
  readonly nodes: readonly Node[];
  readonly samples: readonly number[];
  readonly timeDeltas: readonly number[];
};

/** Arguments of node for a process whose workers are profiled; `profile-hook.ts` says how. */
export const PROFILE_ARGUMENTS: readonly string[] = [
  '--import',
  new URL('./profile-hook.ts', import.meta.url).href,
];

/** Asks the process for its profiles and sums the busiest worker's up. */
export async function takeProfile(pid: number, folder: string): Promise<string> {
  process.kill(pid, 'SIGUSR2');
  const written = (): boolean => readdirSync(folder).some((name) => name.endsWith('.cpuprofile'));
  await waitFor('a profile', 10_000, written);
  await sleep(500); // it is written in pieces
  return busiestFunctions(folder);
}

/** Functions of the busiest thread by their own time, as lines of text. */
export function busiestFunctions(folder: string, limit = 15): string {
  const profiles = readdirSync(folder)
    .filter((name) => name.endsWith('.cpuprofile'))
    .map((name) => selfTimes(JSON.parse(readFileSync(join(folder, name), 'utf8')) as CpuProfile));
  const busiest = profiles.sort((a, b) => total(b) - total(a))[0];
  if (busiest === undefined) return 'no profile was written';
  const sum = total(busiest);
  return [...busiest]
    .sort((a, b) => b[1] - a[1])
    .slice(0, limit)
    .map(([name, time]) => `  ${((time / sum) * 100).toFixed(1).padStart(5)} %  ${name}`)
    .join('\n');
}

function selfTimes(profile: CpuProfile): Map<string, number> {
  const names = new Map(profile.nodes.map((node) => [node.id, nameOf(node)]));
  const times = new Map<string, number>();
  profile.samples.forEach((id, i) => {
    const name = names.get(id) ?? '(unknown)';
    if (name === '(idle)') return;
    times.set(name, (times.get(name) ?? 0) + (profile.timeDeltas[i] ?? 0));
  });
  return times;
}

function nameOf({ callFrame }: Node): string {
  const { functionName, url, lineNumber } = callFrame;
  if (url === '') return functionName;
  return `${functionName || '(anonymous)'} ${basename(url)}:${lineNumber + 1}`;
}

function total(times: ReadonlyMap<string, number>): number {
  return [...times.values()].reduce((a, b) => a + b, 0);
}
