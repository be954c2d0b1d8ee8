/**
 * Compares `src/wire` with the kernel's headers, by way of the sizes, offsets and constants that
 * native/abi.c exports. Exported numbers are compared by name; structs and renamed constants have
 * one line each below.
 */
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { test } from 'node:test';
import * as linux from '../src/wire/linux.ts';
import * as vhostUser from '../src/wire/vhost-user.ts';
import * as virtioNet from '../src/wire/virtio-net.ts';
import * as virtio from '../src/wire/virtio.ts';

const require = createRequire(import.meta.url);
const builder = require('../native/build.cjs') as { ensureAbi(): string };
const abi = require(builder.ensureAbi()) as Record<string, number>;

/** Modules, with the fewest names that this machine's headers must know of each. */
const modules: [string, Record<string, unknown>, number][] = [
  ['linux', linux, 45],
  ['virtio', virtio, 30],
  ['virtio-net', virtioNet, 50],
  ['vhost-user', vhostUser, 1],
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
  ['IFREQ_BYTES', linux.IFREQ_BYTES, abi['sizeof(ifreq)']],
  ['IFREQ_UNION_AT', linux.IFREQ_UNION_AT, abi['offsetof(ifreq,ifr_ifru)']],
  ['SOCKADDR_IN_ADDR_AT', linux.SOCKADDR_IN_ADDR_AT, abi['offsetof(sockaddr_in,sin_addr)']],
  [
    'UNIX_PATH_BYTES',
    linux.UNIX_PATH_BYTES,
    abi['sizeof(sockaddr_un)']! - abi['offsetof(sockaddr_un,sun_path)']!,
  ],
];

/** Names that mean something else here, tested under `renamed`. */
const homonyms = new Set(['VHOST_VRING_F_LOG']);

type AnyStruct = { size: number; fields: Record<string, { at: number }> };

/** Our struct, the kernel's, and the kernel's names of our fields; null has no counterpart. */
const structs: [AnyStruct, string, Record<string, string | null>, 'younger'?][] = [
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
  [virtioNet.NetHeader, 'virtio_net_hdr_v1', {}],
  // Linux 6.1 ends before supported_tunnel_types.
  [virtioNet.NetConfig, 'virtio_net_config', { supportedTunnelTypes: null }, 'younger'],
  [virtioNet.NetControlHeader, 'virtio_net_ctrl_hdr', { command: 'cmd' }],
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

test('structs have the sizes and offsets of the kernel', () => {
  for (const [ours, name, fieldNames, younger] of structs) {
    const size = abi[`sizeof(${name})`];
    if (younger === undefined) assert.equal(ours.size, size, `sizeof ${name}`);
    else assert.ok(ours.size >= size!, `sizeof ${name}`);
    for (const [field, { at }] of Object.entries(ours.fields)) {
      const snake = field.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
      const theirs = field in fieldNames ? fieldNames[field] : snake;
      if (theirs !== null) assert.equal(at, abi[`offsetof(${name},${theirs})`], `${name}.${field}`);
    }
  }
});
