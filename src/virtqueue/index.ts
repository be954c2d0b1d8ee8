export * from './chain-batch.ts';
export { fillRows } from './chain-segments.hot.ts';
export {
  DeviceQueue,
  decodePackedBase,
  encodePackedBase,
  ringBase,
  setAddressMap,
  type VringConfig,
} from './device-queue.ts';
export * from './device.hot.ts';
export * from './faults.ts';
