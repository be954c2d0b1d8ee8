/**
 * Our own small programs that run in a guest, from test/peers/guest/*.c: compiled here, static,
 * into a folder of the caller.
 */
import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { join } from 'node:path';
import type { GuestFile } from '../../src/vmm/index.ts';

export type GuestTool = 'fsx' | 'durable';

/** Needs `gcc`. In the guest the tool is in `/bin`. */
export function buildGuestTool(tool: GuestTool, folder: string): GuestFile {
  const source = fileURLToPath(new URL(`./guest/${tool}.c`, import.meta.url));
  const binary = join(folder, tool);
  const flags = ['-O2', '-Wall', '-Wextra', '-Werror', '-static'];
  execFileSync('gcc', [...flags, '-o', binary, source], { stdio: 'pipe' });
  return { path: `bin/${tool}`, source: binary };
}
