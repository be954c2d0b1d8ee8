/**
 * From what the messages said of a ring, and what surrounds it, to what a target starts. Decides
 * nothing about when: vring-control.ts does.
 */
import { ProtocolError } from '../base/errors.ts';
import type { AddressMap } from '../memory/address-map.ts';
import type { Fd } from '../sys/index.ts';
import { VHOST_VRING_F_LOG, type VringAddr } from '../wire/vhost-user.ts';
import {
  VIRTIO_F_ACCESS_PLATFORM,
  VIRTIO_F_VERSION_1,
  hasFeature,
  PACKED_BASE_FRESH,
} from '../wire/virtio.ts';
import { ringLog } from './dirty-log.ts';
import type { InflightRegion } from './inflight-region.ts';
import type { IotlbControl } from './iotlb-control.ts';
import {
  checkSizeAndBase,
  isPacked,
  memoryLookup,
  ringAreas,
  type RingLookup,
  translateRing,
} from './ring-addresses.ts';
import type { SharedArea } from './session-area.ts';
import type { StartVring } from './target.ts';

/** The maps of the present memory table. */
export type MemoryMaps = { readonly gpa: AddressMap; readonly uva: AddressMap };

/** What all rings of a session share. Set by the session while no ring runs. */
export type RingSurroundings = {
  /** Acked virtio features without the session's own, null before SET_FEATURES. */
  features: bigint | null;
  /** Null before the first region. */
  maps: MemoryMaps | null;
  /** GPA_ADDRESSES: the front-end's addresses are guest-physical. */
  gpaAddresses: boolean;
  /** VHOST_F_LOG_ALL is acked. */
  logging: boolean;
  log: SharedArea | null;
  inflight: InflightRegion | null;
  /** What holds every ring back, for displays; null: nothing. */
  held: string | null;
};

/** A ring as the messages described it. */
export type RingSetup = {
  readonly index: number;
  /** 0: not known yet. */
  readonly size: number;
  /** Null: never said. */
  readonly base: number | null;
  readonly addr: VringAddr | null;
  /** SET_VRING_KICK came, with an fd or with the no-fd bit. */
  readonly kicked: boolean;
  readonly enabled: boolean;
  /** SET_VRING_ENDIAN. */
  readonly bigEndian: boolean;
  readonly fds: { readonly kick: Fd | null; readonly call: Fd | null; readonly err: Fd | null };
};

/** What the ring lacks before it can be looked at. */
export function missingOf(ring: RingSetup, around: RingSurroundings): string[] {
  const missing: string[] = [];
  if (ring.size === 0) missing.push('size');
  if (ring.addr === null) missing.push('addresses');
  if (!ring.kicked) missing.push('kick');
  if (around.features === null) missing.push('features');
  if (around.maps === null) missing.push('memory');
  return missing;
}

/** Whether ring addresses and descriptors are I/O virtual. */
export function usesIotlb(features: bigint | null): boolean {
  return features !== null && hasFeature(features, VIRTIO_F_ACCESS_PLATFORM);
}

/** Where a ring starts whose base the front-end did not say. */
export function freshBase(features: bigint | null): number {
  return isPacked(features ?? 0n) ? PACKED_BASE_FRESH : 0;
}

/**
 * Null: translations of its areas are missing, and were asked for.
 * @throws ProtocolError when the ring is impossible with what was said.
 */
export function composeStart(
  ring: RingSetup,
  around: RingSurroundings,
  iotlb: IotlbControl,
): StartVring | null {
  const { index, size } = ring;
  const addr = ring.addr!;
  const features = around.features!;
  const maps = around.maps!;
  const base = ring.base ?? freshBase(features);
  checkSizeAndBase(index, size, base, features);
  const translated = usesIotlb(features);
  if (translated && missAreas(ring, features, iotlb) > 0) return null;
  const offsets = translateRing(index, addr, size, features, lookupOf(around, iotlb));
  const logsUsed = (addr.flags & VHOST_VRING_F_LOG) !== 0;
  const { usedOffset } = offsets;
  const { logGpa } = addr;
  const logged = { index, size, features, usedOffset, logsUsed, logGpa, iotlb: translated };
  return {
    size,
    packed: isPacked(features),
    base,
    ...offsets,
    features,
    enabled: ring.enabled,
    ...ring.fds,
    map: translated ? iotlb.iotlb.snapshot() : maps.gpa,
    iotlb: translated,
    log: around.logging && around.log !== null ? ringLog(around.log, maps.gpa, logged) : null,
    inflight: around.inflight?.of(index, size, features) ?? null,
    // Only legacy rings have a byte order of their guest; since virtio 1.0 all are little-endian.
    bigEndian: ring.bigEndian && !hasFeature(features, VIRTIO_F_VERSION_1),
  };
}

function lookupOf(around: RingSurroundings, { iotlb }: IotlbControl): RingLookup {
  if (usesIotlb(around.features)) {
    return (iova, lenBytes, permissions) => iotlb.translate(iova, lenBytes, permissions);
  }
  const maps = around.maps!;
  return memoryLookup(around.gpaAddresses ? maps.gpa : maps.uva);
}

/** Misses every page of the ring's areas that is not known. Returns how many. */
export function missAreas(ring: RingSetup, features: bigint, iotlb: IotlbControl): number {
  let count = 0;
  for (const { field, bytes, permissions } of ringAreas(ring.size, features)) {
    count += iotlb.missRange(Number(ring.addr![field]), bytes, permissions);
  }
  return count;
}

/** Whether the IOTLB still leads to where a ring was started. */
export function leadsTo(
  ring: RingSetup,
  features: bigint,
  { iotlb }: IotlbControl,
  started: Pick<StartVring, 'descOffset' | 'availOffset' | 'usedOffset'>,
): boolean {
  const offsets = [started.descOffset, started.availOffset, started.usedOffset];
  return ringAreas(ring.size, features).every(({ field, bytes, permissions }, i) => {
    return iotlb.translate(Number(ring.addr![field]), bytes, permissions) === offsets[i];
  });
}

/** Whether a range of I/O virtual addresses has part of the ring. */
export function ringTouches(
  ring: RingSetup,
  features: bigint,
  iova: number,
  sizeBytes: number,
): boolean {
  if (ring.addr === null) return false;
  return ringAreas(ring.size, features).some(({ field, bytes }) => {
    const start = Number(ring.addr![field]);
    return start < iova + sizeBytes && iova < start + bytes;
  });
}

/** @throws ProtocolError ERR_VRING_NOT_NEGOTIATED: a used ring to be logged, and nobody logs. */
export function checkLogFlag(request: string, addr: VringAddr, logging: boolean): void {
  if ((addr.flags & VHOST_VRING_F_LOG) === 0 || logging) return;
  const problem = 'bit 0 (VHOST_VRING_F_LOG) without VHOST_F_LOG_ALL, which was not negotiated';
  throw new ProtocolError('ERR_VRING_NOT_NEGOTIATED', request, 'flags', problem);
}
