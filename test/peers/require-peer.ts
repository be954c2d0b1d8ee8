/**
 * What a test needs from other packages. A missing peer is said aloud with the line that brings
 * it; with `VRING_REQUIRE_PEERS=1` (CI) it fails the test instead.
 */
import type { TestContext } from 'node:test';
import { aptLine, findKernel, findProgram } from '../../src/vmm/index.ts';

/**
 * True when all `programs` are there. Otherwise marks the test as skipped, or throws in CI.
 * `linux kernel` stands for an installed kernel with its modules.
 */
export function requirePeer(test: TestContext, ...programs: string[]): boolean {
  const missing = programs.filter((program) => !isInstalled(program));
  if (missing.length === 0) return true;
  return giveUp(test, missing.map((name) => `${name} is missing: ${aptLine(name)}`).join('; '));
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

function isInstalled(program: string): boolean {
  if (program !== 'linux kernel') return findProgram(program) !== null;
  try {
    findKernel();
    return true;
  } catch {
    return false;
  }
}
