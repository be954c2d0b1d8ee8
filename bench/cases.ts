/**
 * Benches in one process, a case at a time: V8 compiles for what it has seen, and a worker serves
 * one kind of device. Without arguments a bench runs each case in a process of its own.
 */
import { execFileSync } from 'node:child_process';

export type Case = {
  readonly name: string;
  /** Nanoseconds of one frame or request. */
  measure(seconds: number): number;
};

/** The measured time of a line that `runCases` printed; null: another line. */
export function parseCase(line: string): { name: string; ns: number } | null {
  const match = /^(.+?)\s+([\d.]+) ns$/.exec(line);
  return match === null ? null : { name: match[1]!, ns: Number(match[2]) };
}

/** `node FILE [CASE [SECONDS]]`: one line for each case; `node FILE --list`: their names. */
export function runCases(file: string, cases: readonly Case[]): void {
  const [name, seconds = '1'] = process.argv.slice(2);
  if (name === '--list') {
    for (const one of cases) console.log(one.name);
    return;
  }
  for (const one of cases) {
    if (name === undefined) {
      execFileSync(process.execPath, [file, one.name], { stdio: 'inherit' });
    } else if (name === one.name) {
      one.measure(Number(seconds) / 2); // until everything is compiled
      console.log(`${one.name.padEnd(32)} ${one.measure(Number(seconds)).toFixed(1)} ns`);
      return;
    }
  }
  if (name !== undefined) throw new Error(`no case "${name}": ${file} --list`);
}

/** Of many samples: what the undisturbed ones took. */
export function fifthPercentile(samples: number[]): number {
  samples.sort((a, b) => a - b);
  return samples[Math.floor(samples.length / 20)] ?? NaN;
}
