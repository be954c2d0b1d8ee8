/** What each bench says beside its figures: the machine first, all results as JSON at the end. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { type Machine, machineFacts } from './machine.ts';

/** The facts of this machine, printed, for `writeResults`. */
export function printMachine(): Machine {
  const machine = machineFacts();
  for (const [key, value] of Object.entries(machine)) console.log(`${key.padEnd(12)} ${value}`);
  return machine;
}

/** Writes `{ at, machine, ...results }` to `file`, and says so. */
export function writeResults(file: string, machine: Machine, results: object): void {
  mkdirSync(dirname(file), { recursive: true });
  const all = { at: new Date().toISOString(), machine, ...results };
  writeFileSync(file, `${JSON.stringify(all, null, 1)}\n`);
  console.log(`\nwritten to ${file}`);
}
