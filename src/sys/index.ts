/** System calls, each with one owner and clear errors. Names only; no logic here. */
export {
  arena,
  arenaHostAddress,
  claimFaults,
  CopyPlan,
  mapPrivateAt,
  mapRegionAt,
  readArena,
  regionFaults,
  regionGeneration,
  releaseRegion,
  retainRegion,
  STRAY_FAULTS,
  writevArena,
} from './arena.ts';
export type { Arena, RegionHandle } from './arena.ts';
export { attachXdp, BPF_SCRATCH_BYTES, createXskMap, loadXdpProgram, updateXskMap } from './bpf.ts';
export { type Capability, missingCapabilities } from './capabilities.ts';
export { ioctlBytes, ioctlValue, openDeviceNode, readBytes, writeBytes } from './device-node.ts';
export {
  diskFileBytes,
  fallocate,
  fdatasync,
  preadvArena,
  pwritevArena,
  seekFile,
  zeroArenaPages,
} from './disk-file.ts';
export { Epoll } from './epoll.ts';
export type { EpollOptions } from './epoll.ts';
export {
  check,
  EAGAIN,
  EDQUOT,
  EFAULT,
  EFBIG,
  EINTR,
  EINVAL,
  EIO,
  ENOSPC,
  EOPNOTSUPP,
  EPERM,
  EROFS,
  errnoName,
  sysError,
} from './errors.ts';
export { createEventfd, drainEventfd, signalEventfd, signalForeignEventfd } from './eventfd.ts';
export {
  closeFd,
  closeRecordedFds,
  dupFd,
  Fd,
  FD_RECORD_BYTES,
  fdStat,
  fdTarget,
  openFd,
  openFdCount,
  recordFds,
  setNonblocking,
} from './fd.ts';
export type { FdStat } from './fd.ts';
export { interfaceQueues, interfaceState, watchInterfaces } from './interface.ts';
export type { InterfaceState } from './interface.ts';
export {
  directAlignment,
  enterUring,
  isByteLocked,
  logicalBlockBytes,
  mapUring,
  registerUring,
  setupUring,
  shareByte,
  unlockByte,
  unmapUring,
} from './io-uring.ts';
export type { DirectAlignment } from './io-uring.ts';
export { createMemfd, truncate } from './memfd.ts';
export type { MemfdOptions } from './memfd.ts';
export { NetlinkSocket } from './netlink-socket.ts';
export {
  addPromiscuous,
  bindPacketSocket,
  filterPackets,
  holdPromiscuous,
  joinFanout,
  openPacketSocket,
  PACKET_FILTER_BYTES,
  ringReceive,
  ringSend,
  takePacketDrops,
} from './packet-socket.ts';
export type { PacketRing, PacketSocketOptions } from './packet-socket.ts';
export { readNow, writeNow } from './stream-now.ts';
export { PerfCounter, tracepointId } from './perf.ts';
export { NotifyArea } from './notify-area.ts';
export { pollFd } from './poll.ts';
export { ReceivedFd } from './received-fd.ts';
export type { Poll, PollEvents } from './poll.ts';
export {
  addInterfaceAddress,
  interfaceMac,
  openTap,
  setInterfaceMtu,
  setInterfaceUp,
  setTapHeader,
  setTapOffloads,
  tapState,
} from './tap.ts';
export type { TapOffloads, TapOptions, TapState } from './tap.ts';
export {
  enterNetns,
  hurryThread,
  onlineCores,
  pinThread,
  pauseWatch,
  processCpuSeconds,
  watchThread,
  yieldThread,
  setThreadName,
  threadCpuSeconds,
} from './thread.ts';
export { Timerfd } from './timerfd.ts';
export {
  copyUserfault,
  createUserfaultfd,
  readUserfault,
  registerUserfault,
  unregisterUserfault,
  wakeUserfault,
} from './userfaultfd.ts';
export type { Userfault } from './userfaultfd.ts';
export { signalCall } from './vring-call.ts';
export {
  acceptUnix,
  connectUnix,
  listenUnix,
  peerCredentials,
  receiveWithFds,
  sendWithFds,
  socketPair,
} from './unix-socket.ts';
export type { ListenOptions, PeerCredentials, Received } from './unix-socket.ts';
export { bindXdpSocket, isZeroCopy, openXdpSocket, xdpStatistics } from './xdp-socket.ts';
export type { XdpLayout, XdpRingLayout, XdpSocketOptions } from './xdp-socket.ts';
