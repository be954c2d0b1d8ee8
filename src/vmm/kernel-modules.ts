/**
 * Finds an installed Linux kernel and the modules that a small guest needs, in load order, from
 * the files that depmod left: `modules.dep` and `modules.builtin`.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { basename, join } from 'node:path';
import { gunzipSync, zstdDecompressSync } from 'node:zlib';
import { VringError } from '../base/errors.ts';
import { missingProgram, requireProgram } from './programs.ts';

export type InstalledKernel = {
  readonly image: string;
  readonly release: string;
  readonly modulesPath: string;
};

/**
 * The newest kernel in `/boot` whose modules are installed; the cloud flavour first, because it
 * is small and has virtio as modules.
 * @throws VringError `ERR_VRING_MISSING_PROGRAM` with the apt line when there is none.
 */
export function findKernel(bootPath = '/boot', modulesRoot = '/lib/modules'): InstalledKernel {
  const images = existsSync(bootPath) ? readdirSync(bootPath) : [];
  const releases = images
    .filter((name) => name.startsWith('vmlinuz-'))
    .map((name) => name.slice('vmlinuz-'.length))
    .filter((release) => existsSync(join(modulesRoot, release, 'modules.dep')));
  const byPreference = (a: string, b: string): number =>
    Number(b.includes('cloud')) - Number(a.includes('cloud')) ||
    b.localeCompare(a, 'en', { numeric: true });
  const release = releases.sort(byPreference)[0];
  if (release === undefined) {
    throw missingProgram('linux kernel', `with its modules is not in ${bootPath}`);
  }
  return {
    image: join(bootPath, `vmlinuz-${release}`),
    release,
    modulesPath: join(modulesRoot, release),
  };
}

/** What `modules.dep` calls a file by: `virtio_net` for `.../virtio-net.ko.xz`. */
function moduleName(path: string): string {
  return basename(path)
    .replace(/\.ko(\.\w+)?$/, '')
    .replaceAll('-', '_');
}

/**
 * Paths below `modulesPath` of the named modules and all they depend on, each after what it
 * needs. Built-in ones are left out.
 * @throws VringError `ERR_VRING_KERNEL_MODULE` for a name that this kernel does not have.
 */
export function moduleLoadOrder(modulesPath: string, names: readonly string[]): string[] {
  const dependencies = new Map<string, string[]>();
  const pathOf = new Map<string, string>();
  for (const line of readFileSync(join(modulesPath, 'modules.dep'), 'utf8').split('\n')) {
    const colon = line.indexOf(':');
    if (colon < 0) continue;
    const path = line.slice(0, colon);
    // modules.dep lists the nearest need last in name but gives the whole closure: the last one
    // has to be loaded first.
    dependencies.set(
      path,
      line
        .slice(colon + 1)
        .split(' ')
        .filter(Boolean)
        .toReversed(),
    );
    pathOf.set(moduleName(path), path);
  }
  const builtinText = readFileSync(join(modulesPath, 'modules.builtin'), 'utf8');
  const builtin = new Set(builtinText.split('\n').filter(Boolean).map(moduleName));
  const order = new Set<string>();
  for (const name of names) {
    const path = pathOf.get(name.replaceAll('-', '_'));
    if (path === undefined) {
      if (builtin.has(name.replaceAll('-', '_'))) continue;
      const text = `kernel module ${name} is not in ${modulesPath}`;
      throw new VringError('ERR_VRING_KERNEL_MODULE', text);
    }
    for (const needed of dependencies.get(path) as string[]) order.add(needed);
    order.add(path);
  }
  return [...order];
}

/** A module's bytes, unpacked: the guest's `insmod` reads plain ELF only. */
export function readModule(path: string): Uint8Array {
  const bytes = readFileSync(path);
  if (path.endsWith('.zst')) return zstdDecompressSync(bytes);
  if (path.endsWith('.gz')) return gunzipSync(bytes);
  if (!path.endsWith('.xz')) return bytes;
  const xz = spawnSync(requireProgram('xz'), ['-dc'], { input: bytes, maxBuffer: 1 << 28 });
  if (xz.status === 0) return xz.stdout;
  throw new VringError('ERR_VRING_KERNEL_MODULE', `xz could not unpack ${path}: ${xz.stderr}`);
}
