/**
 * RARP as hypervisors use it: not to ask for an address, but because a broadcast from the guest's
 * address makes every switch learn where the guest is now. RFC 903; the layout is ARP's.
 */
import {
  ARP_HLEN,
  ARP_HTYPE,
  ARP_HTYPE_ETHERNET,
  ARP_OPER,
  ARP_PLEN,
  ARP_PTYPE,
  ARP_SHA,
  ARP_THA,
  ETH_DST,
  ETH_HEADER_BYTES,
  ETH_SRC,
  ETH_TYPE,
  ETHERTYPE_IPV4,
} from '../wire/ethernet.ts';
import { type FrameBatch, GSO_NONE, HEADER_SLOT_START } from './frame-batch.ts';

const ETHERTYPE_RARP = 0x8035;
const RARP_REQUEST_REVERSE = 3;
/** Shortest frame on a wire, without its checksum. Fits the header slot. */
const FRAME_BYTES = 60;

/** Makes one RARP request of `mac` the only frame of the batch. */
export function fillRarp(batch: FrameBatch, mac: Uint8Array): void {
  const at = HEADER_SLOT_START;
  const arp = at + ETH_HEADER_BYTES;
  const { headers, headerView: view } = batch;
  headers.fill(0, at, at + FRAME_BYTES);
  headers.fill(0xff, at + ETH_DST, at + ETH_DST + 6);
  headers.set(mac, at + ETH_SRC);
  view.setUint16(at + ETH_TYPE, ETHERTYPE_RARP);
  view.setUint16(arp + ARP_HTYPE, ARP_HTYPE_ETHERNET);
  view.setUint16(arp + ARP_PTYPE, ETHERTYPE_IPV4);
  view.setUint8(arp + ARP_HLEN, 6);
  view.setUint8(arp + ARP_PLEN, 4);
  view.setUint16(arp + ARP_OPER, RARP_REQUEST_REVERSE);
  headers.set(mac, arp + ARP_SHA);
  headers.set(mac, arp + ARP_THA);
  batch.count = 1;
  batch.segments = 0;
  batch.headerAt[0] = at;
  batch.headerLen[0] = FRAME_BYTES;
  batch.frameLen[0] = FRAME_BYTES;
  batch.segFirst[0] = 0;
  batch.segCount[0] = 0;
  batch.offload[0] = 0;
  batch.csumStart[0] = 0;
  batch.csumOffset[0] = 0;
  batch.gsoType[0] = GSO_NONE;
  batch.gsoSize[0] = 0;
  batch.gsoHeaderLen[0] = 0;
}
