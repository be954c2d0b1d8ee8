/** Programs in C of this folder. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { requireProgram } from '../src/vmm/programs.ts';

const compiled = new Map<string, string>();

/** The program of `bench/NAME.c`, compiled once; it is gone when we end. */
export function compiledProgram(name: string): string {
  const known = compiled.get(name);
  if (known !== undefined) return known;
  const folder = mkdtempSync(join(tmpdir(), 'vring-bench-'));
  process.once('exit', () => rmSync(folder, { recursive: true, force: true }));
  const program = join(folder, name);
  const source = join(import.meta.dirname, `${name}.c`);
  const compiler = requireProgram(process.env['CC'] ?? 'cc');
  execFileSync(compiler, ['-O2', '-pthread', '-o', program, source], { stdio: 'pipe' });
  compiled.set(name, program);
  return program;
}
