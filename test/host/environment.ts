/** The environment of programs inside the test host, and how both sides tell where they are. */
import { dirname, delimiter } from 'node:path';
import { realpathSync } from 'node:fs';
import { COMPILE_CACHE } from './init.ts';

/** Set inside: a host test must not run on the machine of its author. */
export const INSIDE = 'VRING_TEST_HOST';

export function guestEnvironment(): Record<string, string> {
  // The running node, whatever the machine outside has in its path.
  const node = dirname(realpathSync(process.execPath));
  const folders = [node, '/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin'];
  return {
    [INSIDE]: '1',
    PATH: folders.join(delimiter),
    HOME: '/root',
    LANG: 'C.UTF-8',
    TERM: 'vt100',
    NODE_COMPILE_CACHE: COMPILE_CACHE,
    // A peer that is missing inside is missing outside, where its package can be installed.
    VRING_REQUIRE_PEERS: '1',
  };
}
