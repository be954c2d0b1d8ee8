import type { VhostBackend, VringAddresses } from '../base/vhost-backend.ts';

/** Everything that a back-end must know of one ring. */
export type FrontendVring = VringAddresses & {
  readonly size: number;
  readonly base: number;
  /** fds, lent; null: polling on that side. */
  readonly kick: number | null;
  readonly call: number | null;
  readonly err?: number | null;
};

/**
 * Hands a ring over: size, base, addresses, enable, kick, call. Some back-ends take the ring as
 * soon as the kick is there, others (DPDK) wait for the call as well; this order suits both.
 * Enabled before the kick, as QEMU does with rings that were enabled before: a network device
 * discards what it finds to send in a ring that is started and not enabled.
 */
export async function startVring(
  backend: VhostBackend,
  index: number,
  vring: FrontendVring,
): Promise<void> {
  const { descUva, availUva, usedUva } = vring;
  await backend.setVringNum(index, vring.size);
  await backend.setVringBase(index, vring.base);
  await backend.setVringAddr(index, { descUva, availUva, usedUva });
  if (vring.err !== undefined) await backend.setVringErr(index, vring.err);
  await backend.setVringEnable(index, true);
  await backend.setVringKick(index, vring.kick);
  await backend.setVringCall(index, vring.call);
}

/**
 * Takes a ring back. Resolves to its base once the back-end no longer touches it. Disabled only
 * then: a network device discards what it is given to send while its ring is disabled and started.
 */
export async function stopVring(backend: VhostBackend, index: number): Promise<number> {
  const base = await backend.getVringBase(index);
  await backend.setVringEnable(index, false);
  return base;
}
