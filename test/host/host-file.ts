/**
 * A test file of the test host, and what it asks for. It says so in a comment of its own:
 *
 *   // @test-host cards=vp-vdpa-pair memory=1024 time-limit=600 long
 *
 *   memory=MIB           memory of the machine, default 1024
 *   cpus=COUNT           processors of the machine, default 2
 *   cards=vp-vdpa-pair   two network cards, joined outside, behind an IOMMU (machine-command.ts)
 *   time-limit=SECONDS   after which the file counts as hanging, default 300
 *   alone                a machine that no other file ran in
 *   long                 left out of `npm test`; `npm run test:host:all` runs it
 *
 * Files that ask for the same machine share one boot.
 */
import { readFileSync } from 'node:fs';
import { ConfigError } from '../../src/base/errors.ts';

export const CARDS = ['none', 'vp-vdpa-pair'] as const;

export type MachineOptions = {
  readonly memoryMib: number;
  readonly cpus: number;
  readonly cards: (typeof CARDS)[number];
};

export type HostFile = {
  readonly path: string;
  readonly machine: MachineOptions;
  readonly timeLimitMs: number;
  readonly isAlone: boolean;
  readonly isLong: boolean;
};

export const DEFAULT_MACHINE: MachineOptions = { memoryMib: 1024, cpus: 2, cards: 'none' };
const DEFAULT_TIME_LIMIT_MS = 300_000;

/** @throws ConfigError for a word after `@test-host` that nobody knows. */
export function readHostFile(path: string): HostFile {
  return parseHostFile(path, readFileSync(path, 'utf8'));
}

export function parseHostFile(path: string, text: string): HostFile {
  let machine = DEFAULT_MACHINE;
  let timeLimitMs = DEFAULT_TIME_LIMIT_MS;
  let isAlone = false;
  let isLong = false;
  const tags = [...text.matchAll(/^(?:\/\/| \*) @test-host (.*)$/gm)];
  for (const word of tags.flatMap(([, words]) => (words as string).trim().split(/\s+/))) {
    const [key, value] = word.split('=', 2) as [string, string | undefined];
    if (word === 'alone') isAlone = true;
    else if (word === 'long') isLong = true;
    else if (key === 'memory') machine = { ...machine, memoryMib: count(path, word, value, 512) };
    else if (key === 'cpus') machine = { ...machine, cpus: count(path, word, value, 1) };
    else if (key === 'time-limit') timeLimitMs = count(path, word, value, 1) * 1000;
    else if (key === 'cards') machine = { ...machine, cards: cardsOf(path, word, value) };
    else throw wrongWord(path, word, 'memory= cpus= cards= time-limit= alone long');
  }
  return { path, machine, timeLimitMs, isAlone, isLong };
}

/** Equal for files that may run in the same machine. */
export function machineKey(file: HostFile): string {
  return JSON.stringify([file.machine, file.isAlone ? file.path : null]);
}

/** In the order given, but those of one machine together. */
export function orderByMachine(files: readonly HostFile[]): HostFile[] {
  const keys = [...new Set(files.map(machineKey))];
  return keys.flatMap((key) => files.filter((file) => machineKey(file) === key));
}

function count(path: string, word: string, value: string | undefined, least: number): number {
  const number = Number(value);
  if (/^\d+$/.test(value ?? '') && number >= least) return number;
  throw wrongWord(path, word, `a whole number from ${least} on`);
}

function cardsOf(path: string, word: string, value: string | undefined): MachineOptions['cards'] {
  const found = CARDS.find((name) => name === value);
  if (found !== undefined) return found;
  throw wrongWord(path, word, CARDS.join(' or '));
}

function wrongWord(path: string, word: string, expected: string): ConfigError {
  return new ConfigError(path, `its line '@test-host' says '${word}', expected ${expected}`);
}
