/**
 * A normal conversation as a list of messages, in the order of QEMU, for tests that cut, split or
 * mutate it.
 */
import { createEventfd, createMemfd, type Fd } from '../../sys/index.ts';
import * as wire from '../../wire/vhost-user.ts';
import { BACKEND_PROTOCOL_FEATURES, OPT_IN_FEATURES } from '../offered-features.ts';
import { encodeMessage, u64 } from './raw-peer.ts';

/** All that there is, as a front-end like QEMU would ack it: with user addresses and eventfds. */
export const ORDINARY_PROTOCOL_FEATURES =
  [...OPT_IN_FEATURES.keys()].reduce((bits, n) => bits | (1n << BigInt(n)), 0n) |
  (BACKEND_PROTOCOL_FEATURES &
    ~(1n << BigInt(wire.VHOST_USER_PROTOCOL_F_GPA_ADDRESSES)) &
    ~(1n << BigInt(wire.VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS)));

export const REGION_BYTES = 0x100000;
export const UVA_BASE = 0x7f0000000000n;
export const RING_SIZE = 256;

/** Offsets in the first region: one ring each 64 KiB. */
export function ringAddr(index: number): wire.VringAddr {
  const base = UVA_BASE + BigInt(index * 0x10000);
  return {
    index,
    flags: 0,
    descUva: base,
    availUva: base + 0x2000n,
    usedUva: base + 0x4000n,
    logGpa: 0n,
  };
}

/** Region n: a megabyte of guest-physical and user addresses, one after the other. */
export function region(n: number): wire.MemoryRegion {
  const at = BigInt(n) * BigInt(REGION_BYTES);
  return {
    guestPhysAddr: at,
    sizeBytes: BigInt(REGION_BYTES),
    userAddr: UVA_BASE + at,
    fdOffset: 0n,
  };
}

export function memTable(
  regions: readonly wire.MemoryRegion[],
  count = regions.length,
): Uint8Array {
  const header = wire.MemoryTableHeader.encode({ count, padding: 0 });
  return Buffer.concat([header, ...regions.map((each) => wire.MemoryRegion.encode(each))]);
}

export function singleRegion(value: wire.MemoryRegion): Uint8Array {
  return wire.SingleMemoryRegion.encode({ padding: 0n, ...value });
}

export function state(index: number, num: number): Uint8Array {
  return wire.VringState.encode({ index, num });
}

/** The fds that a conversation sends; they stay ours. */
export class ConversationFds {
  readonly memory: readonly Fd[];
  readonly events: readonly Fd[];

  constructor(memory = 2, events = 4) {
    this.memory = Array.from({ length: memory }, (_, i) =>
      createMemfd(`region ${i}`, REGION_BYTES),
    );
    this.events = Array.from({ length: events }, (_, i) => createEventfd(`event ${i}`));
  }

  [Symbol.dispose](): void {
    for (const fd of [...this.memory, ...this.events]) fd.close();
  }
}

export type Step = {
  readonly bytes: Uint8Array;
  readonly fds: readonly number[];
  /** Whether the back-end answers. */
  readonly replies: boolean;
};

const NEED_REPLY = 9;

/** Features that the conversation acks: VERSION_1 and bit 30. */
export const CONVERSATION_FEATURES = (1n << 32n) | (1n << 30n);

export function conversation(fds: ConversationFds, protocolFeatures: bigint): Step[] {
  const steps: Step[] = [];
  const ask = (request: number, payload?: Uint8Array): void => {
    steps.push({ bytes: encodeMessage(request, payload), fds: [], replies: true });
  };
  const tell = (request: number, payload?: Uint8Array, sent: readonly Fd[] = []): void => {
    const numbers = sent.map((fd) => fd.number);
    const bytes = encodeMessage(request, payload, NEED_REPLY);
    steps.push({ bytes, fds: numbers, replies: true });
  };
  ask(wire.VHOST_USER_GET_FEATURES);
  ask(wire.VHOST_USER_GET_PROTOCOL_FEATURES);
  tell(wire.VHOST_USER_SET_PROTOCOL_FEATURES, u64(protocolFeatures));
  ask(wire.VHOST_USER_GET_QUEUE_NUM);
  ask(wire.VHOST_USER_GET_MAX_MEM_SLOTS);
  tell(wire.VHOST_USER_SET_OWNER);
  tell(wire.VHOST_USER_SET_VRING_ENABLE, state(0, 0));
  tell(wire.VHOST_USER_SET_FEATURES, u64(CONVERSATION_FEATURES));
  tell(wire.VHOST_USER_SET_MEM_TABLE, memTable([region(0), region(1)]), fds.memory.slice(0, 2));
  for (let index = 0; index < 2; index++) {
    tell(wire.VHOST_USER_SET_VRING_NUM, state(index, RING_SIZE));
    tell(wire.VHOST_USER_SET_VRING_BASE, state(index, 0));
    tell(wire.VHOST_USER_SET_VRING_ADDR, wire.VringAddr.encode(ringAddr(index)));
    tell(wire.VHOST_USER_SET_VRING_KICK, u64(index), [fds.events[index * 2]!]);
    tell(wire.VHOST_USER_SET_VRING_CALL, u64(index), [fds.events[index * 2 + 1]!]);
    tell(wire.VHOST_USER_SET_VRING_ENABLE, state(index, 1));
  }
  tell(wire.VHOST_USER_SET_STATUS, u64(0xf));
  ask(wire.VHOST_USER_GET_STATUS);
  const header = wire.ConfigHeader.encode({ offset: 0, sizeBytes: 8, flags: 0 });
  ask(wire.VHOST_USER_GET_CONFIG, Buffer.concat([header, new Uint8Array(8)]));
  tell(wire.VHOST_USER_NET_SET_MTU, u64(1500));
  tell(wire.VHOST_USER_SET_VRING_ERR, u64(0x100));
  for (let index = 0; index < 2; index++) {
    tell(wire.VHOST_USER_SET_VRING_ENABLE, state(index, 0));
    ask(wire.VHOST_USER_GET_VRING_BASE, state(index, 0));
  }
  return steps;
}
