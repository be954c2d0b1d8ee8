/** The virtual switch: frames in columns, a MAC table, VLANs, offload completion. */
export * from './counters.ts';
export {
  DESTINATION_DROP,
  DESTINATION_FLOOD,
  FRAME_BATCH_BYTES,
  FrameBatch,
  GSO_ECN,
  GSO_NONE,
  GSO_TCPV4,
  GSO_TCPV6,
  GSO_UDP,
  GSO_UDP_L4,
  HEADER_SLOT_BYTES,
  HEADER_SLOT_START,
  OFFLOAD_DATA_VALID,
  OFFLOAD_NEEDS_CSUM,
} from './frame-batch.ts';
export type { FrameTap } from './frame-tap.ts';
export {
  MAC_AGEING_DEFAULT_S,
  MAC_CAPACITY_DEFAULT,
  MAC_CAPACITY_MAX,
  MacTable,
  macWords,
  type MacTableEntry,
  type MacTableOptions,
} from './mac-table.ts';
export * from './port-plane.ts';
export { type PortSettings, Switch, SWITCH_SCRATCH_BYTES, type SwitchOptions } from './switch.ts';
export { type PortVlan } from './vlan.ts';
