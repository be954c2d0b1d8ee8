/** Frames of the guest's net driver as bytes: the virtio-net header, the announcement. */
import { formatMac } from '../wire/ethernet.ts';
import {
  NetHeader,
  VIRTIO_NET_HDR_F_DATA_VALID,
  VIRTIO_NET_HDR_F_NEEDS_CSUM,
} from '../wire/virtio-net.ts';
import type { FrameOffload } from './link.ts';

export function encodeOffload(offload: FrameOffload): Uint8Array {
  return NetHeader.encode({
    flags: offload.needsCsum ? VIRTIO_NET_HDR_F_NEEDS_CSUM : 0,
    gsoType: offload.gsoType,
    hdrLen: offload.headerBytes,
    gsoSize: offload.gsoSize,
    csumStart: offload.csumStart,
    csumOffset: offload.csumOffset,
    numBuffers: 0,
  });
}

export function decodeOffload(arena: DataView, at: number): FrameOffload {
  const header = NetHeader.read(arena, at);
  return {
    needsCsum: (header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) !== 0,
    dataValid: (header.flags & VIRTIO_NET_HDR_F_DATA_VALID) !== 0,
    csumStart: header.csumStart,
    csumOffset: header.csumOffset,
    gsoType: header.gsoType,
    gsoSize: header.gsoSize,
    headerBytes: header.hdrLen,
  };
}

/** A broadcast RARP frame from `mac`, as QEMU sends it after a migration. */
export function announceFrame(mac: Uint8Array): Uint8Array {
  const frame = new Uint8Array(60);
  const view = new DataView(frame.buffer);
  frame.fill(0xff, 0, 6);
  frame.set(mac, 6);
  view.setUint16(12, 0x8035); // RARP, RFC 903: same packet as ARP, operation 3
  view.setUint16(14, 1);
  view.setUint16(16, 0x0800);
  view.setUint16(18, 0x0604);
  view.setUint16(20, 3);
  frame.set(mac, 22);
  frame.set(mac, 32);
  return frame;
}

export function macToBytes(mac: string): Uint8Array {
  return Uint8Array.from(mac.split(':'), (byte) => Number.parseInt(byte, 16));
}

/** Locally administered, unicast. */
export function randomMac(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(6));
  bytes[0] = (bytes[0] & 0xfc) | 0x02;
  return formatMac(bytes);
}
