/** Programs of this machine for a guest: the file itself, and the libraries that it needs. */
import { spawnSync } from 'node:child_process';
import { basename } from 'node:path';
import { VringError } from '../base/errors.ts';
import type { GuestFile } from './linux-guest.ts';
import { requireProgram } from './programs.ts';

/**
 * What the guest needs to run `program`, which is then in its `/bin`. The guest's kernel is newer
 * than what the libraries want, and its processor is QEMU's `max`.
 * @throws VringError `ERR_VRING_MISSING_PROGRAM`; `ERR_VRING_GUEST_PROGRAM`: a library is missing.
 */
export function guestProgram(program: string): GuestFile[] {
  const source = requireProgram(program);
  return [{ path: `bin/${basename(program)}`, source }, ...sharedLibraries(source)];
}

/** Each where the program looks for it. ldd(1): `libc.so.6 => /lib/.../libc.so.6 (0x7f...)`. */
function sharedLibraries(path: string): GuestFile[] {
  const { status, stdout, stderr } = spawnSync(requireProgram('ldd'), [path], { encoding: 'utf8' });
  if (status !== 0 || stdout.includes('not found')) {
    const said = `${stdout}${stderr}`.trim();
    const text = `ldd ${path} does not name all libraries: ${said}; reinstall the package it is of`;
    throw new VringError('ERR_VRING_GUEST_PROGRAM', text);
  }
  const files = stdout.matchAll(/^\s+(?:\S+ => )?(\/\S+) \(0x/gm);
  return [...files].map(([, source]) => ({ path: source!.slice(1), source: source! }));
}
