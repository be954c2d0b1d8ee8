/** The software guest: driver, network stack, traffic. Names only; no logic here. */
export type { BlkMix, BlkRegion, OpName } from './blk-chooser.ts';
export type { BlkDeviceConfig, RangeLimits } from './blk-config.ts';
export { BLK_BACKEND_FORMS, connectBlkGuest, type BlkConnectOptions } from './blk-connect.ts';
export { BlkDisk } from './blk-disk.ts';
export { ZonedDisk, type ZoneAction, type ZoneReport } from './zoned-disk.ts';
export {
  runZoneWorkload,
  type ZoneWorkloadOptions,
  type ZoneWorkloadReport,
} from './zone-workload.ts';
export { BlkGuest, type BlkGuestOptions, type DoneHandler } from './blk-driver.ts';
export { parseBlkFeatures } from './blk-features.ts';
export { MAX_JOURNAL_UNITS, type Finding, type JournalReport } from './blk-journal.ts';
export type { BlkCompletion, BlkRequest } from './blk-requests.ts';
export {
  runBlkWorkload,
  type BlkReport,
  type BlkWorkloadOptions,
  type OpReport,
} from './blk-workload.ts';
export * from './bulk-message.ts';
export { receiveBulk, type ReceiveBulkOptions } from './bulk-receiver.ts';
export { sendBulk, type BulkSource, type SendBulkOptions } from './bulk-sender.ts';
export { fileSource, patternSource } from './bulk-source.ts';
export {
  introduceDriver,
  reconnect,
  startRings,
  type DriverRing,
  type DriverSetup,
  type ReconnectOptions,
} from './attach.ts';
export {
  BACKEND_FORMS,
  backendText,
  parseBackendOrSocket,
  parseBackendSpec,
  type BackendKind,
  type BackendSpec,
} from './backend-spec.ts';
export { openInProcessNet, type InProcessNetOptions } from './in-process-net.ts';
export { connectNetGuest, NetConnector, type ConnectOptions } from './connect.ts';
export { ControlQueue } from './control-queue.ts';
export type { DeviceConfig } from './device-config.ts';
export {
  NO_CHOICE,
  chooseFeatures,
  parseFeatureChoice,
  type FeatureChoice,
  type FeatureWishes,
} from './features.ts';
export { GuestQueue, type QueuePlan } from './guest-queue.ts';
export { LatencyHistogram, type LatencySummary } from './latency-histogram.ts';
export { migrateGuest, type MigrateOptions, type MigrationReport } from './migrate.ts';
export { MAX_PENDING_PINGS, type PingOptions, type PingResult } from './icmp.ts';
export {
  ipFromBytes,
  parseIp,
  parsePrefix,
  prefixHas,
  type IpAddress,
  type IpPrefix,
} from './ip-address.ts';
export {
  NO_OFFLOAD,
  linkPair,
  type FrameHandler,
  type FrameLink,
  type FrameOffload,
  type LinkOffloads,
  type LinkPairOptions,
} from './link.ts';
export { GuestIommu, remapFreeSlots, type AddressSpace, type IommuMode } from './iommu.ts';
export { NetGuest, type LinkEvent, type NetGuestLink, type NetGuestOptions } from './net-driver.ts';
export { recoverBase } from './ring-recovery.ts';
export { ScsiDisk, scsiCdb, type ScsiCapacity } from './scsi-disk.ts';
export {
  describeReply,
  ScsiGuest,
  type ScsiCommand,
  type ScsiGuestOptions,
  type ScsiReply,
} from './scsi-driver.ts';
export { NetStack, type StackCounters, type StackOptions } from './stack.ts';
export {
  MAX_FLOWS,
  RECORD_BYTES,
  buildTestFrame,
  smallestTestFrame,
  type GsoKind,
  type TestFrame,
  type TestFrameOptions,
} from './test-frame.ts';
export {
  runTraffic,
  type GenerateOptions,
  type Rate,
  type TrafficOptions,
  type TrafficReport,
} from './traffic.ts';
export { MAX_UDP_PORTS, type UdpHandler } from './udp.ts';
export { VsockGuest, type VsockGuestOptions } from './vsock-driver.ts';
export { MAX_VSOCK_STREAMS, VsockStack, type VsockListener } from './vsock-stack.ts';
export { VsockStream } from './vsock-stream.ts';
