/** Rights of this process, by name: for messages that say which one is missing. */
import { readFileSync } from 'node:fs';

/** Bits of a capability set (linux/capability.h); any one of them is enough. */
const BITS = {
  CAP_NET_ADMIN: [12],
  CAP_NET_RAW: [13],
  CAP_IPC_LOCK: [14],
  CAP_BPF: [39, 21], // or CAP_SYS_ADMIN, of which it was a part before Linux 5.8
} as const;

export type Capability = keyof typeof BITS;

/**
 * Those of `needed` that this process does not have. In a user namespace a process may have what
 * the kernel asks the host's for.
 * @syscalls open read close
 */
export function missingCapabilities(needed: readonly Capability[]): Capability[] {
  const status = readFileSync('/proc/self/status', 'latin1');
  const effective = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? '0'}`);
  return needed.filter((name) => !BITS[name].some((bit) => (effective >> BigInt(bit)) & 1n));
}
