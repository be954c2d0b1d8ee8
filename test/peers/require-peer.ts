/**
 * What a test needs from other packages. A missing peer is said aloud with the line that brings
 * it; with `VRING_REQUIRE_PEERS=1` (CI) it fails the test instead.
 */
import { existsSync } from 'node:fs';
import type { TestContext } from 'node:test';
import { aptLine, findKernel, findProgram, type InstalledKernel } from '../../src/vmm/index.ts';
import { headersPath, SOURCE_ARCHIVE } from '../host/modules.ts';

/**
 * True when all `programs` are there. Otherwise marks the test as skipped, or throws in CI.
 * `linux kernel` stands for an installed kernel with its modules, `linux headers` for what builds
 * modules for it, `linux source` for the archive of its sources.
 */
export function requirePeer(test: TestContext, ...programs: string[]): boolean {
  const problem = missingPeers(programs);
  return problem === null || giveUp(test, problem);
}

/** What is missing, and the line that brings it; null when nothing is. */
export function missingPeers(programs: readonly string[]): string | null {
  const missing = programs.filter((program) => !isInstalled(program));
  if (missing.length === 0) return null;
  return `${missing.join(', ')} missing: ${aptLine(...missing)}`;
}

/** Needs root: TAP devices, network namespaces, huge pages. */
export function requireRoot(test: TestContext): boolean {
  return process.getuid?.() === 0 || giveUp(test, 'needs root');
}

export function giveUp(test: TestContext, reason: string): false {
  if (process.env['VRING_REQUIRE_PEERS'] === '1') throw new Error(reason);
  console.error(`SKIPPED ${test.name}: ${reason}`);
  test.skip(reason);
  return false;
}

/** What is no program on the path. */
const OTHERS: Readonly<Record<string, () => boolean>> = {
  'linux kernel': () => installedKernel() !== null,
  'linux headers': () => {
    const kernel = installedKernel();
    return kernel !== null && headersPath(kernel) !== null;
  },
  'linux source': () => existsSync(SOURCE_ARCHIVE),
};

function isInstalled(name: string): boolean {
  return OTHERS[name]?.() ?? findProgram(name) !== null;
}

function installedKernel(): InstalledKernel | null {
  try {
    return findKernel();
  } catch {
    return null;
  }
}
