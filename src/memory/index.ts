/** Guest memory: regions, tables, address maps. Names only; no logic here. */
export type { AddressMap } from './address-map.ts';
export { ArenaRange, reservedRanges, reserveRange } from './arena-range.ts';
export { buildAddressMap, EMPTY_ADDRESS_MAP } from './build-map.ts';
export type { MappedRange } from './build-map.ts';
export { copySmall } from './copy.hot.ts';
export { MemoryError } from './errors.ts';
export type { MemoryErrorCode } from './errors.ts';
export { GuestMemory } from './guest-memory.ts';
export type { GuestMemoryOptions } from './guest-memory.ts';
export { Iotlb, IOTLB_READ, IOTLB_WRITE } from './iotlb.ts';
export type { IotlbEntry } from './iotlb.ts';
export { MemoryTable } from './memory-table.ts';
export type { RegionMatch } from './memory-table.ts';
export { PrivateMemory } from './private-memory.ts';
export { SharedRegion } from './shared-region.ts';
export { mapSharedArea } from './shared-area.ts';
export type { RegionDescription } from './shared-region.ts';
export { translate } from './translate.hot.ts';
