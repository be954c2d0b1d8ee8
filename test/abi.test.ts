/**
 * Compares `src/wire` with the kernel's headers, by way of the sizes, offsets and constants that
 * native/abi.c exports. Exported numbers are compared by name; structs and renamed constants have
 * one line each below.
 */
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { test } from 'node:test';
import * as ioUring from '../src/wire/io-uring.ts';
import type { Ioctl } from '../src/wire/ioctl.ts';
import * as linux from '../src/wire/linux.ts';
import * as netlink from '../src/wire/netlink.ts';
import * as packet from '../src/wire/packet.ts';
import * as vdpaNetlink from '../src/wire/vdpa-netlink.ts';
import * as vduse from '../src/wire/vduse.ts';
import * as vhostKernel from '../src/wire/vhost-kernel.ts';
import * as vhostUser from '../src/wire/vhost-user.ts';
import * as virtioBlk from '../src/wire/virtio-blk.ts';
import * as virtioNet from '../src/wire/virtio-net.ts';
import * as virtioScsi from '../src/wire/virtio-scsi.ts';
import * as virtioVsock from '../src/wire/virtio-vsock.ts';
import * as virtio from '../src/wire/virtio.ts';
import * as xdp from '../src/wire/xdp.ts';

const require = createRequire(import.meta.url);
const builder = require('../native/build.cjs') as { ensureAbi(): string };
const abi = require(builder.ensureAbi()) as Record<string, number>;

/** An ioctl table as the header has it: names and numbers. */
function requests(table: Readonly<Record<string, Ioctl>>): Record<string, number> {
  return Object.fromEntries(Object.values(table).map(({ name, request }) => [name, request]));
}

/** Modules, with the fewest names that this machine's headers must know of each. */
const modules: [string, Record<string, unknown>, number][] = [
  ['linux', linux, 45],
  ['io-uring', ioUring, 20],
  ['virtio', virtio, 30],
  ['virtio-net', virtioNet, 50],
  ['virtio-blk', virtioBlk, 28],
  ['virtio-scsi', virtioScsi, 36],
  ['vhost-user', vhostUser, 1],
  ['vhost-kernel', vhostKernel, 15],
  ['virtio-vsock', virtioVsock, 15],
  ['vduse', vduse, 6],
  ['netlink', netlink, 18],
  ['vdpa-netlink', vdpaNetlink, 28],
  ['packet', packet, 23],
  ['xdp', xdp, 30],
  ['the ioctls of VDUSE', requests(vduse.VDUSE_IOCTL), 15],
  ['the ioctls of vhost', requests(vhostKernel.VHOST_IOCTL), 38],
];

/** Our constant, and what the kernel calls it. */
const renamed: [string, number, number | undefined][] = [
  ['VIRTQ_DESC_F_NEXT', virtio.VIRTQ_DESC_F_NEXT, abi['VRING_DESC_F_NEXT']],
  ['VIRTQ_DESC_F_WRITE', virtio.VIRTQ_DESC_F_WRITE, abi['VRING_DESC_F_WRITE']],
  ['VIRTQ_DESC_F_INDIRECT', virtio.VIRTQ_DESC_F_INDIRECT, abi['VRING_DESC_F_INDIRECT']],
  ['VIRTQ_DESC_F_AVAIL', virtio.VIRTQ_DESC_F_AVAIL, 1 << abi['VRING_PACKED_DESC_F_AVAIL']!],
  ['VIRTQ_DESC_F_USED', virtio.VIRTQ_DESC_F_USED, 1 << abi['VRING_PACKED_DESC_F_USED']!],
  ['NO_INTERRUPT', virtio.VIRTQ_AVAIL_F_NO_INTERRUPT, abi['VRING_AVAIL_F_NO_INTERRUPT']],
  ['NO_NOTIFY', virtio.VIRTQ_USED_F_NO_NOTIFY, abi['VRING_USED_F_NO_NOTIFY']],
  ['EVENT_ENABLE', virtio.RING_EVENT_FLAGS_ENABLE, abi['VRING_PACKED_EVENT_FLAG_ENABLE']],
  ['EVENT_DISABLE', virtio.RING_EVENT_FLAGS_DISABLE, abi['VRING_PACKED_EVENT_FLAG_DISABLE']],
  ['EVENT_DESC', virtio.RING_EVENT_FLAGS_DESC, abi['VRING_PACKED_EVENT_FLAG_DESC']],
  ['RING_DESC_ALIGN', virtio.RING_DESC_ALIGN, abi['VRING_DESC_ALIGN_SIZE']],
  ['RING_AVAIL_ALIGN', virtio.RING_AVAIL_ALIGN, abi['VRING_AVAIL_ALIGN_SIZE']],
  ['RING_USED_ALIGN', virtio.RING_USED_ALIGN, abi['VRING_USED_ALIGN_SIZE']],
  ['VHOST_VRING_F_LOG', 1 << abi['VHOST_VRING_F_LOG']!, vhostUser.VHOST_VRING_F_LOG],
  ['VHOST_FILE_UNBIND', vhostKernel.VHOST_FILE_UNBIND, abi['VHOST_FILE_UNBIND']! >>> 0],
  ['VDUSE_EVENTFD', vduse.VDUSE_EVENTFD_DEASSIGN, abi['VDUSE_EVENTFD_DEASSIGN']! >>> 0],
  ['URING_SQE_BYTES', ioUring.URING_SQE_BYTES, abi['sizeof(io_uring_sqe)']],
  ['URING_CQE_BYTES', ioUring.URING_CQE_BYTES, abi['sizeof(io_uring_cqe)']],
  ['IFREQ_BYTES', linux.IFREQ_BYTES, abi['sizeof(ifreq)']],
  ['IFREQ_UNION_AT', linux.IFREQ_UNION_AT, abi['offsetof(ifreq,ifr_ifru)']],
  ['ETHTOOL_CHANNELS_BYTES', linux.ETHTOOL_CHANNELS_BYTES, abi['sizeof(ethtool_channels)']],
  ['RX_AT', linux.ETHTOOL_CHANNELS_RX_AT, abi['offsetof(ethtool_channels,rx_count)']],
  [
    'COMBINED_AT',
    linux.ETHTOOL_CHANNELS_COMBINED_AT,
    abi['offsetof(ethtool_channels,combined_count)'],
  ],
  ['SOCKADDR_NL_BYTES', linux.SOCKADDR_NL_BYTES, abi['sizeof(sockaddr_nl)']],
  ['SOCKADDR_NL_GROUPS_AT', linux.SOCKADDR_NL_GROUPS_AT, abi['offsetof(sockaddr_nl,nl_groups)']],
  ['XDP_MMAP_OFFSETS_BYTES', xdp.XDP_MMAP_OFFSETS_BYTES, abi['sizeof(xdp_mmap_offsets)']],
  ['XDP_MMAP_OFFSETS_TX_AT', xdp.XDP_MMAP_OFFSETS_TX_AT, abi['offsetof(xdp_mmap_offsets,tx)']],
  ['XDP_MMAP_OFFSETS_FR_AT', xdp.XDP_MMAP_OFFSETS_FR_AT, abi['offsetof(xdp_mmap_offsets,fr)']],
  ['XDP_MMAP_OFFSETS_CR_AT', xdp.XDP_MMAP_OFFSETS_CR_AT, abi['offsetof(xdp_mmap_offsets,cr)']],
  ['BPF_INSN_BYTES', xdp.BPF_INSN_BYTES, abi['sizeof(bpf_insn)']],
  ['RX_QUEUE_INDEX', xdp.XDP_MD_RX_QUEUE_INDEX_AT, abi['offsetof(xdp_md,rx_queue_index)']],
  ['SOCKADDR_IN_ADDR_AT', linux.SOCKADDR_IN_ADDR_AT, abi['offsetof(sockaddr_in,sin_addr)']],
  [
    'UNIX_PATH_BYTES',
    linux.UNIX_PATH_BYTES,
    abi['sizeof(sockaddr_un)']! - abi['offsetof(sockaddr_un,sun_path)']!,
  ],
];

/** Names that mean something else here, tested under `renamed`. */
const homonyms = new Set(['VHOST_VRING_F_LOG', 'VHOST_FILE_UNBIND', 'VDUSE_EVENTFD_DEASSIGN']);

type AnyStruct = { size: number; fields: Record<string, { at: number }> };

/** The message in the union of vhost_msg. */
const IOTLB_FIELDS = {
  iova: 'iotlb.iova',
  sizeBytes: 'iotlb.size',
  userAddr: 'iotlb.uaddr',
  permissions: 'iotlb.perm',
  iotlbType: 'iotlb.type',
  padding: null,
};

/** The two tables of offsets in io_uring_params; what is reserved has no name in all headers. */
const URING_FIELDS = {
  sqEntries: 'sq_entries',
  cqEntries: 'cq_entries',
  sqThreadCpu: 'sq_thread_cpu',
  sqThreadIdle: 'sq_thread_idle',
  wqFd: 'wq_fd',
  resv0: null,
  resv1: null,
  resv2: null,
  sqHead: 'sq_off.head',
  sqTail: 'sq_off.tail',
  sqRingMask: 'sq_off.ring_mask',
  sqRingEntries: 'sq_off.ring_entries',
  sqFlags: 'sq_off.flags',
  sqDropped: 'sq_off.dropped',
  sqArray: 'sq_off.array',
  sqResv1: null,
  sqUserAddr: null,
  cqHead: 'cq_off.head',
  cqTail: 'cq_off.tail',
  cqRingMask: 'cq_off.ring_mask',
  cqRingEntries: 'cq_off.ring_entries',
  cqOverflow: 'cq_off.overflow',
  cqCqes: 'cq_off.cqes',
  cqFlags: 'cq_off.flags',
  cqResv1: null,
  cqUserAddr: null,
};

const SOCKADDR_LL_FIELDS = {
  family: null,
  protocol: 'sll_protocol',
  ifindex: 'sll_ifindex',
  hatype: null,
  pkttype: 'sll_pkttype',
  halen: 'sll_halen',
  addr: 'sll_addr',
};
const TPACKET_REQ_FIELDS = {
  blockSize: 'tp_block_size',
  blockNr: 'tp_block_nr',
  frameSize: 'tp_frame_size',
  frameNr: 'tp_frame_nr',
  retireBlkTov: 'tp_retire_blk_tov',
  sizeofPriv: 'tp_sizeof_priv',
  featureReqWord: 'tp_feature_req_word',
};
const TPACKET_HEADER_FIELDS = {
  nextOffset: 'tp_next_offset',
  sec: null,
  nsec: null,
  snaplen: 'tp_snaplen',
  len: 'tp_len',
  status: 'tp_status',
  mac: 'tp_mac',
  net: null,
  rxhash: null,
  vlanTci: 'hv1.tp_vlan_tci',
  vlanTpid: 'hv1.tp_vlan_tpid',
  padding0: null,
  padding1: null,
};
const TPACKET_BLOCK_FIELDS = {
  version: null,
  offsetToPriv: null,
  blockStatus: 'hdr.bh1.block_status',
  numPkts: 'hdr.bh1.num_pkts',
  offsetToFirstPkt: 'hdr.bh1.offset_to_first_pkt',
  blkLen: null,
  seqNum: null,
  firstAt: null,
  lastAt: null,
};

/** Where the headers' struct is longer than ours, or shorter. */
type Age = 'older' | 'younger';

/** Our struct, the kernel's, and the kernel's names of our fields; null has no counterpart. */
const structs: [AnyStruct, string, Record<string, string | null>, Age?][] = [
  [virtio.SplitDescriptor, 'vring_desc', {}],
  [virtio.PackedDescriptor, 'vring_packed_desc', {}],
  [virtio.EventSuppress, 'vring_packed_desc_event', { desc: 'off_wrap' }],
  [linux.UffdioApi, 'uffdio_api', {}],
  [linux.UffdioRange, 'uffdio_range', {}],
  [linux.UffdioRegister, 'uffdio_register', { start: null, len: null }],
  [linux.UffdioCopy, 'uffdio_copy', {}],
  [
    linux.UffdMessage,
    'uffd_msg',
    {
      flags: 'arg.pagefault.flags',
      address: 'arg.pagefault.address',
      reserved: 'reserved1',
      features: 'arg.pagefault.feat.ptid',
    },
  ],
  [ioUring.UringParams, 'io_uring_params', URING_FIELDS],
  [virtioNet.NetHeader, 'virtio_net_hdr_v1', {}],
  [linux.PerfEventAttr, 'perf_event_attr', { flags: null }, 'older'],
  // Linux 6.1 ends before supported_tunnel_types.
  [virtioNet.NetConfig, 'virtio_net_config', { supportedTunnelTypes: null }, 'younger'],
  [virtioNet.NetControlHeader, 'virtio_net_ctrl_hdr', { command: 'cmd' }],
  [
    virtioVsock.VsockHeader,
    'virtio_vsock_hdr',
    {
      srcCid: 'src_cid',
      dstCid: 'dst_cid',
      srcPort: 'src_port',
      dstPort: 'dst_port',
      bufAlloc: 'buf_alloc',
      fwdCnt: 'fwd_cnt',
    },
  ],
  [virtioScsi.ScsiConfig, 'virtio_scsi_config', {}],
  [virtioScsi.ScsiTaskRequest, 'virtio_scsi_ctrl_tmf_req', {}],
  [virtioScsi.ScsiNotifyRequest, 'virtio_scsi_ctrl_an_req', {}],
  [virtioScsi.ScsiNotifyResponse, 'virtio_scsi_ctrl_an_resp', {}],
  [virtioScsi.ScsiEvent, 'virtio_scsi_event', {}],
  [virtioVsock.VsockConfig, 'virtio_vsock_config', { guestCid: 'guest_cid' }],
  // Linux 6.1 ends before zones.
  [
    virtioBlk.BlkConfig,
    'virtio_blk_config',
    {
      cylinders: 'geometry.cylinders',
      heads: 'geometry.heads',
      sectors: 'geometry.sectors',
      writeback: 'wce',
      unused0: 'unused',
      zoneSectors: null,
      maxOpenZones: null,
      maxActiveZones: null,
      maxAppendSectors: null,
      writeGranularity: null,
      zonedModel: null,
      unused2: null,
    },
    'younger',
  ],
  [virtioBlk.BlkRequestHeader, 'virtio_blk_outhdr', {}],
  [virtioBlk.BlkRange, 'virtio_blk_discard_write_zeroes', {}],
  [vhostUser.VringState, 'vhost_vring_state', {}],
  [
    vhostUser.VringAddr,
    'vhost_vring_addr',
    {
      descUva: 'desc_user_addr',
      usedUva: 'used_user_addr',
      availUva: 'avail_user_addr',
      logGpa: 'log_guest_addr',
    },
  ],
  [
    vhostUser.IotlbMessage,
    'vhost_iotlb_msg',
    { sizeBytes: 'size', userAddr: 'uaddr', permissions: 'perm', padding: null },
  ],
  [vhostKernel.VringFile, 'vhost_vring_file', {}],
  [vhostKernel.VhostMemoryHeader, 'vhost_memory', {}],
  [vhostKernel.VhostMemoryRegion, 'vhost_memory_region', {}],
  [vhostKernel.VhostMessageV2, 'vhost_msg_v2', IOTLB_FIELDS],
  [vhostKernel.VhostMessage, 'vhost_msg', { ...IOTLB_FIELDS, hole: null }],
  [vhostKernel.VdpaConfigHeader, 'vhost_vdpa_config', {}],
  [vhostKernel.VdpaIovaRange, 'vhost_vdpa_iova_range', {}],
  [netlink.NetlinkHeader, 'nlmsghdr', {}],
  [netlink.GenericHeader, 'genlmsghdr', {}],
  [netlink.AttributeHeader, 'nlattr', {}],
  [vduse.VduseDevConfig, 'vduse_dev_config', {}],
  [vduse.VduseIotlbEntry, 'vduse_iotlb_entry', { padding: null }],
  [vduse.VduseConfigData, 'vduse_config_data', {}],
  [vduse.VduseVqConfig, 'vduse_vq_config', {}],
  [vduse.VduseVqInfo, 'vduse_vq_info', { state: 'split', padding: null }],
  [vduse.VduseVqStateSplit, 'vduse_vq_state_split', {}],
  [vduse.VduseVqStatePacked, 'vduse_vq_state_packed', {}],
  [vduse.VduseVqEventfd, 'vduse_vq_eventfd', {}],
  [vduse.VduseIovaUmem, 'vduse_iova_umem', {}],
  [vduse.VduseIovaInfo, 'vduse_iova_info', {}],
  [vduse.VduseDevRequest, 'vduse_dev_request', { payload: 'vq_state' }],
  [vduse.VduseDevResponse, 'vduse_dev_response', { payload: 'vq_state' }],
  [vduse.VduseVqState, 'vduse_vq_state', { state: 'split' }],
  [vduse.VduseIovaRange, 'vduse_iova_range', {}],
  [packet.SockaddrLl, 'sockaddr_ll', SOCKADDR_LL_FIELDS],
  [packet.SockFilter, 'sock_filter', {}],
  [packet.SockFprog, 'sock_fprog', { padding: null }],
  [packet.TpacketReq3, 'tpacket_req3', TPACKET_REQ_FIELDS],
  [packet.Tpacket3Header, 'tpacket3_hdr', TPACKET_HEADER_FIELDS],
  [packet.TpacketBlock, 'tpacket_block_desc', TPACKET_BLOCK_FIELDS],
  [
    packet.TpacketStats,
    'tpacket_stats_v3',
    { packets: 'tp_packets', drops: 'tp_drops', freezes: 'tp_freeze_q_cnt' },
  ],
  [
    packet.PacketMreq,
    'packet_mreq',
    { ifindex: 'mr_ifindex', type: 'mr_type', alen: 'mr_alen', address: 'mr_address' },
  ],
  [
    xdp.SockaddrXdp,
    'sockaddr_xdp',
    {
      family: null,
      flags: 'sxdp_flags',
      ifindex: 'sxdp_ifindex',
      queueId: 'sxdp_queue_id',
      sharedUmemFd: 'sxdp_shared_umem_fd',
    },
  ],
  [xdp.XdpUmemReg, 'xdp_umem_reg', { txMetadataLen: null }],
  [xdp.XdpRingOffset, 'xdp_ring_offset', {}],
  [xdp.XdpDesc, 'xdp_desc', {}],
  [xdp.XdpStatistics, 'xdp_statistics', {}],
];

test('constants of the same name have the same value', () => {
  for (const [file, names, atLeast] of modules) {
    const compared = Object.entries(names).filter(
      ([name, value]) => typeof value === 'number' && name in abi && !homonyms.has(name),
    );
    for (const [name, value] of compared) assert.equal(value, abi[name], `${file}: ${name}`);
    const text = `${file}: only ${compared.length} names found in the headers`;
    assert.ok(compared.length >= atLeast, text);
  }
});

test('constants of another name have the same value', () => {
  for (const [name, ours, theirs] of renamed) assert.equal(ours, theirs, name);
});

/** One union serves all commands: a part each, with the fields that the header has there. */
const bpfParts: [AnyStruct, Record<string, string | null>][] = [
  [xdp.BpfMapCreate, { mapIfindex: null }],
  [xdp.BpfMapUpdate, { padding: null }],
  [xdp.BpfProgLoad, {}],
  [
    xdp.BpfLinkCreate,
    {
      progFd: 'link_create.prog_fd',
      targetIfindex: 'link_create.target_ifindex',
      attachType: 'link_create.attach_type',
      flags: 'link_create.flags',
    },
  ],
];

test('parts of union bpf_attr have the offsets of the kernel', () => {
  for (const [part, fieldNames] of bpfParts) compareFields(part, 'bpf_attr', fieldNames);
});

test('structs have the sizes and offsets of the kernel', () => {
  for (const [ours, name, fieldNames, age] of structs) {
    const size = abi[`sizeof(${name})`];
    if (age === undefined) assert.equal(ours.size, size, `sizeof ${name}`);
    else if (age === 'older') assert.ok(ours.size <= size!, `sizeof ${name}`);
    else assert.ok(ours.size >= size!, `sizeof ${name}`);
    compareFields(ours, name, fieldNames);
  }
});

function compareFields(
  ours: AnyStruct,
  name: string,
  fieldNames: Record<string, string | null>,
): void {
  for (const [field, { at }] of Object.entries(ours.fields)) {
    const snake = field.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
    const theirs = field in fieldNames ? fieldNames[field] : snake;
    if (theirs !== null) assert.equal(at, abi[`offsetof(${name},${theirs})`], `${name}.${field}`);
  }
}
