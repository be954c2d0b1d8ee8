/**
 * The kernel modules that Debian's cloud kernel lacks: vDPA, its simulators, VDUSE and what binds
 * them. They are built from Debian's own source package against Debian's own headers, so they fit
 * the installed kernel; nothing of the kernel is kept in the repository.
 *
 * A build takes some twenty seconds, most of it the unpacking of the sources, and is kept in the
 * cache under a hash of everything that it is made of.
 */
import { createHash } from 'node:crypto';
import { spawnSync } from 'node:child_process';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { basename, join } from 'node:path';
import { VringError } from '../../src/base/errors.ts';
import type { InstalledKernel } from '../../src/vmm/kernel-modules.ts';
import { cachePath } from '../../src/vmm/linux-guest.ts';
import { missingProgram, requireProgram } from '../../src/vmm/programs.ts';

/** Modules that are built here; `vduse` with the change that lets it make network cards. */
export const BUILT_MODULES = [
  'vdpa',
  'vringh',
  'vdpa_sim',
  'vdpa_sim_net',
  'vdpa_sim_blk',
  'vduse',
  'vhost_vdpa',
  'virtio_vdpa',
  'vp_vdpa',
] as const;

/**
 * The folder with `updates/*.ko` and depmod's lists, which together with `kernel/` of the
 * installed kernel makes a `/lib/modules/RELEASE`. Builds it when it is not cached.
 * @throws VringError `ERR_VRING_MISSING_PROGRAM` for missing headers, sources or tools, with the
 *   apt line; `ERR_VRING_KERNEL_MODULE` for another kernel than 6.1 and when the build fails.
 */
export function testHostModules(kernel: InstalledKernel): string {
  const needs = requireBuildNeeds(kernel);
  const path = join(cachePath(), `test-host-modules-${kernel.release}-${buildKey(kernel, needs)}`);
  if (existsSync(path)) return path;
  const stage = `${path}.${process.pid}`; // two processes may build it at once
  rmSync(stage, { recursive: true, force: true });
  try {
    const result = build(kernel, needs, stage);
    renameSync(result, path);
  } catch (error) {
    if (!existsSync(path)) throw error; // the other process was faster
  } finally {
    rmSync(stage, { recursive: true, force: true });
  }
  return path;
}

/** Programs that a build runs. */
export const BUILD_TOOLS = ['make', 'gcc', 'strip', 'tar', 'xz', 'depmod'];

const SOURCE_PACKAGE = 'linux-source-6.1';
/** Of the package that `aptLine` calls `linux source`. */
export const SOURCE_ARCHIVE = `/usr/src/${SOURCE_PACKAGE}.tar.xz`;

/** Of the source archive, into one flat build folder. */
const SOURCE_FILES: readonly (readonly [from: string, to: string])[] = [
  ['drivers/vdpa/vdpa.c', 'vdpa.c'],
  ['drivers/vdpa/vdpa_sim/vdpa_sim.c', 'vdpa_sim.c'],
  ['drivers/vdpa/vdpa_sim/vdpa_sim.h', 'vdpa_sim.h'],
  ['drivers/vdpa/vdpa_sim/vdpa_sim_net.c', 'vdpa_sim_net.c'],
  ['drivers/vdpa/vdpa_sim/vdpa_sim_blk.c', 'vdpa_sim_blk.c'],
  ['drivers/vdpa/vdpa_user/vduse_dev.c', 'vduse_dev.c'],
  ['drivers/vdpa/vdpa_user/iova_domain.c', 'iova_domain.c'],
  ['drivers/vdpa/vdpa_user/iova_domain.h', 'iova_domain.h'],
  ['drivers/vdpa/virtio_pci/vp_vdpa.c', 'vp_vdpa.c'],
  ['drivers/virtio/virtio_vdpa.c', 'virtio_vdpa.c'],
  ['drivers/vhost/vringh.c', 'vringh.c'],
  ['drivers/vhost/vhost.h', 'vhost.h'],
  // Not vdpa.c: that name is taken in the flat folder.
  ['drivers/vhost/vdpa.c', 'vhost_vdpa_main.c'],
];

const KBUILD = `obj-m += ${BUILT_MODULES.map((name) => `${name}.o`).join(' ')}
vduse-y := vduse_dev.o iova_domain.o
vhost_vdpa-y := vhost_vdpa_main.o
`;

/** 6.1's VDUSE takes block devices only; later kernels take network cards by the same two lists. */
const CHANGES: readonly { file: string; line: string; add: string }[] = [
  { file: 'vduse_dev.c', line: '\tVIRTIO_ID_BLOCK,', add: '\tVIRTIO_ID_NET,' },
  {
    file: 'vduse_dev.c',
    line: '\t{ VIRTIO_ID_BLOCK, VIRTIO_DEV_ANY_ID },',
    add: '\t{ VIRTIO_ID_NET, VIRTIO_DEV_ANY_ID },',
  },
];

type BuildNeeds = { readonly headers: string; readonly sourceVersion: string };

function requireBuildNeeds(kernel: InstalledKernel): BuildNeeds {
  if (!kernel.release.startsWith('6.1.')) {
    const text =
      `the test host knows how to build the vDPA modules of Linux 6.1, not of ${kernel.release} ` +
      `(${kernel.image}); install linux-image-cloud-amd64 of Debian 12`;
    throw new VringError('ERR_VRING_KERNEL_MODULE', text);
  }
  const headers = headersPath(kernel);
  if (headers === null) {
    throw missingProgram(`linux-headers-${kernel.release}`);
  }
  if (!existsSync(SOURCE_ARCHIVE)) throw missingProgram('linux source');
  for (const tool of BUILD_TOOLS) requireProgram(tool);
  const query = ['-W', '-f', '${Version}', SOURCE_PACKAGE];
  const { status, stdout } = spawnSync('dpkg-query', query, { encoding: 'utf8' });
  if (status !== 0) throw missingProgram('linux source', 'is not there as a package');
  return { headers, sourceVersion: stdout };
}

/** Where modules for this kernel are built; null when its headers are not installed. */
export function headersPath({ modulesPath }: InstalledKernel): string | null {
  const path = join(modulesPath, 'build');
  return existsSync(join(path, 'Module.symvers')) ? path : null;
}

function buildKey(kernel: InstalledKernel, { headers, sourceVersion }: BuildNeeds): string {
  const hash = createHash('sha256');
  hash.update(readFileSync(import.meta.filename));
  hash.update(`\0${kernel.release}\0${sourceVersion}\0`);
  hash.update(readFileSync(join(headers, 'Module.symvers'))); // the symbols' versions
  hash.update(readFileSync(join(kernel.modulesPath, 'modules.dep'))); // goes into depmod's lists
  return hash.digest('hex').slice(0, 16);
}

/** Returns the finished folder inside `stage`. */
function build(kernel: InstalledKernel, { headers }: BuildNeeds, stage: string): string {
  const unpacked = join(stage, 'source');
  const folder = join(stage, 'build');
  mkdirSync(unpacked, { recursive: true });
  mkdirSync(folder);
  const members = SOURCE_FILES.map(([from]) => `${SOURCE_PACKAGE}/${from}`);
  const unpack = ['-C', unpacked, '--strip-components=1', '-xf', SOURCE_ARCHIVE, ...members];
  runTool('tar', unpack);
  for (const [from, to] of SOURCE_FILES) copyFileSync(join(unpacked, from), join(folder, to));
  for (const change of CHANGES) applyChange(folder, change);
  writeFileSync(join(folder, 'Kbuild'), KBUILD);
  runTool('make', ['-j2', '-C', headers, `M=${folder}`, 'modules']);

  // depmod wants the whole tree: Debian's modules below kernel/, ours below updates/.
  const tree = join(stage, 'lib', 'modules', kernel.release);
  mkdirSync(join(tree, 'updates'), { recursive: true });
  for (const name of BUILT_MODULES) {
    const module = join(tree, 'updates', `${name}.ko`);
    copyFileSync(join(folder, `${name}.ko`), module);
    runTool('strip', ['--strip-debug', module]);
  }
  for (const list of ['modules.builtin', 'modules.builtin.modinfo', 'modules.order']) {
    copyFileSync(join(kernel.modulesPath, list), join(tree, list));
  }
  const debian = join(tree, 'kernel');
  symlinkSync(join(kernel.modulesPath, 'kernel'), debian);
  runTool('depmod', ['-b', stage, kernel.release]);
  rmSync(debian);
  return tree;
}

function applyChange(folder: string, { file, line, add }: (typeof CHANGES)[number]): void {
  const path = join(folder, file);
  const parts = readFileSync(path, 'utf8').split(`\n${line}\n`);
  if (parts.length !== 2) {
    const text =
      `${SOURCE_PACKAGE}: ${file} has the line '${line.trim()}' ${parts.length - 1} times, ` +
      `expected once: this version of the package needs another change in ${import.meta.filename}`;
    throw new VringError('ERR_VRING_KERNEL_MODULE', text);
  }
  writeFileSync(path, parts.join(`\n${line}\n${add}\n`));
}

function runTool(name: string, args: readonly string[]): void {
  const { status, signal, stdout, stderr } = spawnSync(requireProgram(name), args, {
    encoding: 'utf8',
    maxBuffer: 1 << 26,
  });
  if (status === 0) return;
  const tail = `${stdout}${stderr}`.trimEnd().split('\n').slice(-30).join('\n  | ');
  const text = `${basename(name)} ended with ${signal ?? `status ${status}`}:\n  | ${tail}`;
  throw new VringError('ERR_VRING_KERNEL_MODULE', `the test host's modules: ${text}`);
}
