/** The devices that a front-end under test is offered: the least that lets a guest use them. */
import type { ChainBatch } from '../virtqueue/index.ts';
import { arena } from '../sys/index.ts';
import * as wire from '../wire/vhost-user.ts';
import { VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS } from '../wire/virtio-net.ts';
import {
  featureSet,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
} from '../wire/virtio.ts';

export type FrontEndDevice = {
  readonly name: string;
  readonly features: bigint;
  readonly protocolFeatures: bigint;
  /** Rings that a message may name, and what GET_QUEUE_NUM says. */
  readonly rings: number;
  readonly queueNum: number;
  readonly config: Uint8Array;
  /** Whether chains of this ring are completed as they come. */
  consumes(ring: number): boolean;
  /** Fills the answer of one chain and says how much was written. */
  complete(batch: ChainBatch, row: number): void;
};

const COMMON = featureSet(
  VIRTIO_F_VERSION_1,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
  VIRTIO_F_RING_PACKED,
  wire.VHOST_F_LOG_ALL,
  wire.VHOST_USER_F_PROTOCOL_FEATURES,
);

const PROTOCOL = featureSet(
  wire.VHOST_USER_PROTOCOL_F_MQ,
  wire.VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  wire.VHOST_USER_PROTOCOL_F_REPLY_ACK,
  wire.VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  wire.VHOST_USER_PROTOCOL_F_CONFIG,
  wire.VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD,
  wire.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  wire.VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  wire.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  wire.VHOST_USER_PROTOCOL_F_STATUS,
);

function nothingWritten(batch: ChainBatch, row: number): void {
  batch.written[row] = 0;
}

/** Everything that may be written becomes zeros; the last byte is the status, 0 for OK. */
function zeros(batch: ChainBatch, row: number): void {
  const first = (batch.segFirst[row] as number) + (batch.readSegs[row] as number);
  const end = first + (batch.writeSegs[row] as number);
  for (let s = first; s < end; s++) {
    const at = batch.segOffset[s] as number;
    arena().bytes.fill(0, at, at + (batch.segLen[s] as number));
  }
  batch.written[row] = batch.writeBytes[row] as number;
}

function blkConfig(): Uint8Array {
  const view = new DataView(new ArrayBuffer(60));
  view.setBigUint64(0, 131072n, true); // 64 MiB
  view.setUint32(20, 512, true);
  view.setUint16(34, 1, true);
  return new Uint8Array(view.buffer);
}

const net: FrontEndDevice = {
  name: 'net',
  features: COMMON | featureSet(VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS),
  protocolFeatures:
    PROTOCOL | featureSet(wire.VHOST_USER_PROTOCOL_F_RARP, wire.VHOST_USER_PROTOCOL_F_MTU),
  rings: 16,
  queueNum: 8,
  config: Uint8Array.of(0x02, 0, 0, 0xc0, 0x4f, 2, 1, 0, 1, 0, 0xdc, 5),
  consumes: (ring) => ring % 2 === 1,
  complete: nothingWritten,
};

const blk: FrontEndDevice = {
  name: 'blk',
  features: COMMON,
  protocolFeatures: PROTOCOL,
  rings: 16,
  queueNum: 16,
  config: blkConfig(),
  consumes: () => true,
  complete: zeros,
};

const generic: FrontEndDevice = {
  ...blk,
  name: 'generic',
  config: new Uint8Array(256),
  consumes: () => false,
};

export const FRONT_END_DEVICES: Readonly<Record<string, FrontEndDevice>> = {
  net,
  blk,
  generic,
  fs: { ...generic, name: 'fs', config: new TextEncoder().encode('vring'.padEnd(40, '\0')) },
};
