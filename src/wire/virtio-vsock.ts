/**
 * The socket device on the wire: packet header, operations, configuration space. Pure. Virtio 1.2,
 * section 5.10 "Socket Device"; constants are spelled as in linux/virtio_vsock.h and
 * linux/vm_sockets.h.
 */
import { struct, u16, u32, u64, type Value } from './struct.ts';

/** Feature bit: message boundaries. */
export const VIRTIO_VSOCK_F_SEQPACKET = 1;

/** `struct virtio_vsock_hdr`: in front of every packet, both ways. 5.10.6. */
export const VsockHeader = struct('virtio_vsock_hdr', 44, {
  srcCid: u64(0),
  dstCid: u64(8),
  srcPort: u32(16),
  dstPort: u32(20),
  len: u32(24), //      payload bytes behind this header
  type: u16(28), //     VIRTIO_VSOCK_TYPE_*
  op: u16(30), //       VIRTIO_VSOCK_OP_*
  flags: u32(32), //    of SHUTDOWN: VIRTIO_VSOCK_SHUTDOWN_*
  bufAlloc: u32(36), // receive buffer of the sender, bytes
  fwdCnt: u32(40), //   bytes that the sender's application took, modulo 2^32
});
export type VsockHeader = Value<typeof VsockHeader.fields>;

/** `struct virtio_vsock_config`. 5.10.4. */
export const VsockConfig = struct('virtio_vsock_config', 8, { guestCid: u64(0) });

export const VIRTIO_VSOCK_TYPE_STREAM = 1;
export const VIRTIO_VSOCK_TYPE_SEQPACKET = 2;

export const VIRTIO_VSOCK_OP_INVALID = 0;
export const VIRTIO_VSOCK_OP_REQUEST = 1;
export const VIRTIO_VSOCK_OP_RESPONSE = 2;
export const VIRTIO_VSOCK_OP_RST = 3;
export const VIRTIO_VSOCK_OP_SHUTDOWN = 4;
export const VIRTIO_VSOCK_OP_RW = 5;
export const VIRTIO_VSOCK_OP_CREDIT_UPDATE = 6;
export const VIRTIO_VSOCK_OP_CREDIT_REQUEST = 7;

/** The sender will receive no more; send no more. 5.10.6.5. */
export const VIRTIO_VSOCK_SHUTDOWN_RCV = 1;
export const VIRTIO_VSOCK_SHUTDOWN_SEND = 2;

/** linux/vm_sockets.h; 5.10.4: 0, 1, 2 and 2^32 - 1 are nobody's. */
export const VMADDR_CID_HOST = 2;
export const VMADDR_PORT_ANY = 0xffff_ffff;
export const VSOCK_FIRST_GUEST_CID = 3;
export const VSOCK_LAST_GUEST_CID = 0xffff_fffe;
