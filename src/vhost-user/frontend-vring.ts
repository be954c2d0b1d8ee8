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
 * Hands a ring over; the kick comes last, because it starts the ring, and what lies in it since the
 * back-end before this one may be answered before the next message is read. QEMU's libvhost-user
 * (7.2) ends the session where it has no call to write to by then: "vu_panic: Error writing
 * eventfd: Bad file descriptor". Enabled before that, as QEMU does with rings that were enabled
 * before: a network device discards what it finds to send in a ring that is started and not
 * enabled.
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
  await backend.setVringCall(index, vring.call);
  await backend.setVringEnable(index, true);
  await backend.setVringKick(index, vring.kick);
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
