/** Every way to say something wrong, with the error it must end as, and no fd left open. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { ProtocolError, type VringError } from '../base/errors.ts';
import { createMemfd, type Fd, openFd, openFdCount, socketPair, truncate } from '../sys/index.ts';
import * as wire from '../wire/vhost-user.ts';
import { BackendSession } from './backend-session.ts';
import { handlerOf } from './backend-dispatch.ts';
import { MAX_PAYLOAD_BYTES } from './limits.ts';
import { BACK_END_MESSAGES, FRONT_END_MESSAGES } from './message-table.ts';
import {
  conversation,
  ConversationFds,
  ORDINARY_PROTOCOL_FEATURES,
  memTable,
  region,
  REGION_BYTES,
  ringAddr,
  singleRegion,
  state,
} from './testing/conversation.ts';
import { FakeTarget } from './testing/fake-target.ts';
import { encodeMessage, RawPeer, u64 } from './testing/raw-peer.ts';

type Peer = { peer: RawPeer; fds: ConversationFds };
type Expected = { code: string; field: string; request?: string; text?: RegExp };

const F30 = 1n << 30n;
const PACKED = 1n << 34n;

/** Negotiates, shares one region. Nothing asks for replies. */
async function prepare({ peer, fds }: Peer, features = F30): Promise<void> {
  const inband = 1n << BigInt(wire.VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS);
  await peer.send(wire.VHOST_USER_SET_PROTOCOL_FEATURES, u64(ORDINARY_PROTOCOL_FEATURES | inband));
  await peer.send(wire.VHOST_USER_SET_FEATURES, u64(features));
  await peer.send(wire.VHOST_USER_SET_MEM_TABLE, memTable([region(0)]), [fds.memory[0]!.number]);
}

async function ring(p: Peer, addr: Partial<wire.VringAddr>, size = 256, base = 0): Promise<void> {
  await p.peer.send(wire.VHOST_USER_SET_VRING_NUM, state(0, size));
  await p.peer.send(wire.VHOST_USER_SET_VRING_BASE, state(0, base));
  const all = wire.VringAddr.encode({ ...ringAddr(0), ...addr });
  await p.peer.send(wire.VHOST_USER_SET_VRING_ADDR, all);
  await p.peer.send(wire.VHOST_USER_SET_VRING_KICK, u64(0x100));
}

/**
 * Sends something wrong and demands: the session ends with exactly this error, all fds are
 * closed, and the next session of the same target works.
 */
async function endsWith(expected: Expected, send: (p: Peer) => Promise<unknown>): Promise<void> {
  const before = openFdCount();
  const target = new FakeTarget();
  {
    using fds = new ConversationFds(3);
    const [ours, theirs] = socketPair();
    const session = new BackendSession(ours, target);
    const peer = new RawPeer(theirs);
    await send({ peer, fds });
    const survives = delay(4000, undefined, { ref: false }).then(
      () => new Error('the session did not end'),
    );
    const reason = (await Promise.race([session.closed, survives])) as ProtocolError;
    peer.close();
    assert.ok(reason instanceof ProtocolError, `${reason}`);
    assert.equal(reason.code, expected.code, reason.message);
    assert.equal(reason.field, expected.field, reason.message);
    assert.equal(reason.recovery, 'reconnect');
    assert.ok(reason.message.startsWith(`${reason.request}: ${reason.field}: `), reason.message);
    if (expected.request !== undefined) assert.equal(reason.request, expected.request);
    if (expected.text !== undefined) assert.match(reason.message, expected.text);
    assert.deepEqual(target.reasons, [reason]);
    const [again, client] = socketPair();
    const next = new BackendSession(again, target);
    const fresh = new RawPeer(client);
    assert.equal((await fresh.ask(wire.VHOST_USER_GET_FEATURES)).length, 8);
    fresh.close();
    assert.equal(await next.closed, null);
  }
  assert.equal(openFdCount(), before, 'every fd is closed again');
}

const header: [string, Uint8Array, Expected][] = [
  [
    'version 0',
    encodeMessage(1, undefined, 0),
    { code: 'ERR_VRING_MESSAGE_FLAGS', field: 'flags', text: /version 0, expected 1/ },
  ],
  [
    'version 2',
    encodeMessage(1, undefined, 2),
    { code: 'ERR_VRING_MESSAGE_FLAGS', field: 'flags' },
  ],
  [
    'the reply flag',
    encodeMessage(1, undefined, 5),
    { code: 'ERR_VRING_MESSAGE_FLAGS', field: 'flags', text: /is a reply/ },
  ],
  [
    'a reserved flag',
    encodeMessage(1, undefined, 0x11),
    { code: 'ERR_VRING_MESSAGE_FLAGS', field: 'flags', text: /reserved/ },
  ],
  [
    'flag bit 31',
    encodeMessage(1, undefined, 0x80000001),
    { code: 'ERR_VRING_MESSAGE_FLAGS', field: 'flags', text: /0x80000001/ },
  ],
  [
    'a huge size',
    encodeMessage(5, undefined, 1, 0xffffffff),
    { code: 'ERR_VRING_MESSAGE_SIZE', field: 'size', text: /4294967295 bytes/ },
  ],
  [
    'a size above the limit',
    encodeMessage(5, undefined, 1, MAX_PAYLOAD_BYTES + 1),
    { code: 'ERR_VRING_MESSAGE_SIZE', field: 'size' },
  ],
  [
    'request 0',
    encodeMessage(0),
    { code: 'ERR_VRING_MESSAGE_UNKNOWN', field: 'request', request: 'VHOST_USER_0' },
  ],
  [
    'request 45',
    encodeMessage(45),
    { code: 'ERR_VRING_MESSAGE_UNKNOWN', field: 'request', text: /1 to 44/ },
  ],
  [
    'request 2^32-1',
    encodeMessage(0xffffffff),
    { code: 'ERR_VRING_MESSAGE_UNKNOWN', field: 'request' },
  ],
];
for (const [what, bytes, expected] of header) {
  test(`header: ${what}`, () => endsWith(expected, ({ peer }) => peer.sendRaw(bytes)));
}

test('the tables have every message of the specification, with a name', () => {
  assert.deepEqual(
    [...FRONT_END_MESSAGES.keys()],
    Array.from({ length: 44 }, (_, i) => i + 1),
  );
  assert.deepEqual(
    [...BACK_END_MESSAGES.keys()],
    Array.from({ length: 10 }, (_, i) => i + 1),
  );
  for (const entry of [...FRONT_END_MESSAGES.values(), ...BACK_END_MESSAGES.values()]) {
    assert.equal((wire as unknown as Record<string, number>)[entry.name], entry.id, entry.name);
  }
});

test('every message of the table has a handler', () => {
  for (const id of FRONT_END_MESSAGES.keys()) assert.equal(typeof handlerOf(id), 'function');
});

for (const entry of FRONT_END_MESSAGES.values()) {
  const {
    id,
    name,
    payload,
    needs,
    reply,
    fds: [minFds, maxFds],
  } = entry;
  const right = new Uint8Array(payload.minBytes);
  if (reply === 'both') continue; // answered by an ack whatever is wrong, see below
  if (needs !== null) {
    test(`${name}: not negotiated`, () =>
      endsWith(
        {
          code: 'ERR_VRING_NOT_NEGOTIATED',
          field: 'request',
          request: name,
          text: new RegExp(`bit ${needs} `),
        },
        ({ peer, fds }) => peer.send(id, right, Array(minFds).fill(fds.events[0]!.number)),
      ));
  }
  test(`${name}: one byte too many`, () =>
    endsWith({ code: 'ERR_VRING_MESSAGE_SIZE', field: 'size', request: name }, async (p) => {
      await prepare(p);
      const bytes = new Uint8Array(payload.maxBytes + 1);
      await p.peer.send(id, bytes, Array(minFds).fill(p.fds.events[0]!.number));
    }));
  if (payload.minBytes > 0) {
    test(`${name}: one byte too few`, () =>
      endsWith({ code: 'ERR_VRING_MESSAGE_SIZE', field: 'size', request: name }, async (p) => {
        await prepare(p);
        const bytes = new Uint8Array(payload.minBytes - 1);
        await p.peer.send(id, bytes, Array(minFds).fill(p.fds.events[0]!.number));
      }));
  }
  if (maxFds < 8) {
    test(`${name}: one fd too many`, () =>
      endsWith({ code: 'ERR_VRING_MESSAGE_FDS', field: 'fds', request: name }, async (p) => {
        await prepare(p);
        await p.peer.send(id, right, Array(maxFds + 1).fill(p.fds.memory[0]!.number));
      }));
  }
  if (minFds > 0) {
    test(`${name}: an fd is missing`, () =>
      endsWith(
        { code: 'ERR_VRING_MESSAGE_FDS', field: 'fds', request: name, text: /0 came, expected 1/ },
        async (p) => {
          await prepare(p);
          await p.peer.send(id, right);
        },
      ));
  }
}

const KICK = 'VHOST_USER_SET_VRING_KICK';
const fdCases: [string, Expected, (p: Peer) => Promise<unknown>][] = [
  [
    'kick without fd and without the no-fd bit',
    { code: 'ERR_VRING_MESSAGE_FDS', field: 'fds', request: KICK, text: /0 came, expected 1/ },
    ({ peer }) => peer.send(12, u64(0)),
  ],
  [
    'kick with fd and the no-fd bit',
    { code: 'ERR_VRING_MESSAGE_FDS', field: 'fds', text: /1 came, expected 0/ },
    ({ peer, fds }) => peer.send(12, u64(0x100), [fds.events[0]!.number]),
  ],
  [
    'a file as kick',
    { code: 'ERR_VRING_MESSAGE_FDS', field: 'fds', text: /memfd.*expected an eventfd/ },
    ({ peer, fds }) => peer.send(12, u64(0), [fds.memory[0]!.number]),
  ],
  [
    'a file as call',
    { code: 'ERR_VRING_MESSAGE_FDS', field: 'fds', request: 'VHOST_USER_SET_VRING_CALL' },
    ({ peer, fds }) => peer.send(13, u64(0), [fds.memory[0]!.number]),
  ],
  [
    '/dev/null as kick',
    { code: 'ERR_VRING_MESSAGE_FDS', field: 'fds', text: /is \/dev\/null, expected an eventfd/ },
    async ({ peer }) => {
      using device = openFd('/dev/null', 2);
      await peer.send(12, u64(0), [device.number]);
    },
  ],
  [
    'an O_PATH fd as call',
    { code: 'ERR_VRING_MESSAGE_FDS', field: 'fds', request: 'VHOST_USER_SET_VRING_CALL' },
    async ({ peer }) => {
      using path = openFd('/dev', 0o10000000);
      await peer.send(13, u64(0), [path.number]);
    },
  ],
  [
    'reserved bits of kick',
    { code: 'ERR_VRING_MESSAGE_VALUE', field: 'u64', text: /reserved/ },
    ({ peer, fds }) => peer.send(12, u64(0x200), [fds.events[0]!.number]),
  ],
  [
    'nine fds',
    { code: 'ERR_VRING_MESSAGE_FDS', field: 'fds', text: /more than 8/ },
    ({ peer, fds }) => peer.send(5, memTable([region(0)]), Array(9).fill(fds.memory[0]!.number)),
  ],
  [
    '253 fds',
    { code: 'ERR_VRING_MESSAGE_FDS', field: 'fds', text: /more than 8/ },
    ({ peer, fds }) => peer.send(1, undefined, Array(253).fill(fds.memory[0]!.number)),
  ],
  [
    'fewer fds than regions',
    { code: 'ERR_VRING_MESSAGE_FDS', field: 'fds', text: /1 came, expected 2/ },
    ({ peer, fds }) => peer.send(5, memTable([region(0), region(1)]), [fds.memory[0]!.number]),
  ],
  [
    'more fds than regions',
    { code: 'ERR_VRING_MESSAGE_FDS', field: 'fds', text: /2 came, expected 1/ },
    ({ peer, fds }) =>
      peer.send(5, memTable([region(0)]), [fds.memory[0]!.number, fds.memory[1]!.number]),
  ],
  [
    'fds behind the first byte of the header',
    { code: 'ERR_VRING_MESSAGE_FDS', field: 'fds', text: /behind the first byte/ },
    async ({ peer, fds }) => {
      const bytes = encodeMessage(12, u64(0));
      await peer.sendRaw(bytes.subarray(0, 4));
      await delay(20); // or the kernel hands both parts out as one
      await peer.sendRaw(bytes.subarray(4), [fds.events[0]!.number]);
    },
  ],
  [
    'fds with the payload',
    { code: 'ERR_VRING_MESSAGE_FDS', field: 'fds', request: KICK },
    async ({ peer, fds }) => {
      const bytes = encodeMessage(12, u64(0));
      await peer.sendRaw(bytes.subarray(0, 12));
      await delay(20);
      await peer.sendRaw(bytes.subarray(12), [fds.events[0]!.number]);
    },
  ],
];
for (const [what, expected, send] of fdCases) test(`fds: ${what}`, () => endsWith(expected, send));

const MEM = 'VHOST_USER_SET_MEM_TABLE';
type Regions = Partial<wire.MemoryRegion>[];
const memoryCases: [string, string, string, Regions][] = [
  ['zero size', 'ERR_VRING_MESSAGE_VALUE', 'regions[0].memory_size', [{ sizeBytes: 0n }]],
  [
    'size 2^64-1',
    'ERR_VRING_MESSAGE_VALUE',
    'regions[0].guest_phys_addr',
    [{ sizeBytes: 2n ** 64n - 1n }],
  ],
  [
    'guest address overflows',
    'ERR_VRING_MESSAGE_VALUE',
    'regions[1].guest_phys_addr',
    [{}, { guestPhysAddr: 2n ** 64n - 4096n }],
  ],
  [
    'user address overflows',
    'ERR_VRING_MESSAGE_VALUE',
    'regions[0].userspace_addr',
    [{ userAddr: 2n ** 64n - 4096n }],
  ],
  [
    'offset overflows',
    'ERR_VRING_MESSAGE_VALUE',
    'regions[0].mmap_offset',
    [{ fdOffset: 2n ** 64n - 4096n }],
  ],
  ['huge', 'ERR_VRING_MEMORY_LIMIT', 'regions[0].memory_size', [{ sizeBytes: 2n ** 50n }]],
  [
    'longer than its fd',
    'ERR_VRING_MEMORY_FD',
    'regions[0].mmap_offset',
    [{ sizeBytes: BigInt(REGION_BYTES) + 1n }],
  ],
  [
    'offset behind its fd',
    'ERR_VRING_MEMORY_FD',
    'regions[0].mmap_offset',
    [{ fdOffset: BigInt(REGION_BYTES) }],
  ],
  [
    'one byte over the end of its fd',
    'ERR_VRING_MEMORY_FD',
    'regions[1].mmap_offset',
    [{}, { fdOffset: 1n }],
  ],
  [
    'guest addresses overlap',
    'ERR_VRING_MEMORY_OVERLAP',
    'regions[1].guest_phys_addr',
    [{}, { guestPhysAddr: 4096n }],
  ],
  [
    'user addresses overlap',
    'ERR_VRING_MEMORY_OVERLAP',
    'regions[1].userspace_addr',
    [{}, { userAddr: region(0).userAddr }],
  ],
  ['the same twice', 'ERR_VRING_MEMORY_OVERLAP', 'regions[1].guest_phys_addr', [{}, region(0)]],
];
for (const [what, code, field, changes] of memoryCases) {
  const regions = changes.map((change, i) => ({ ...region(i), ...change }));
  test(`memory: ${what}`, () =>
    endsWith({ code, field, request: MEM }, ({ peer, fds }) =>
      peer.send(
        5,
        memTable(regions),
        regions.map((_, i) => fds.memory[i]!.number),
      ),
    ));
}

test('memory: no region', () =>
  endsWith({ code: 'ERR_VRING_MESSAGE_VALUE', field: 'count', request: MEM }, ({ peer }) =>
    peer.send(5, memTable([])),
  ));
test('memory: 2^32-1 regions', () =>
  endsWith(
    {
      code: 'ERR_VRING_MESSAGE_VALUE',
      field: 'count',
      text: /4294967295 regions, expected 1 to 8/,
    },
    ({ peer }) => peer.send(5, memTable([], 0xffffffff)),
  ));
test('memory: the size does not fit the count', () =>
  endsWith({ code: 'ERR_VRING_MESSAGE_SIZE', field: 'size', request: MEM }, ({ peer }) =>
    peer.send(5, memTable([region(0)], 2)),
  ));
test('memory: an eventfd', () =>
  endsWith({ code: 'ERR_VRING_MEMORY_FD', field: 'regions[0].fd', request: MEM }, ({ peer, fds }) =>
    peer.send(5, memTable([region(0)]), [fds.events[0]!.number]),
  ));
test('memory: a socket', () =>
  endsWith({ code: 'ERR_VRING_MEMORY_FD', field: 'regions[0].fd' }, async ({ peer }) => {
    const [a, b] = socketPair();
    await peer.send(5, memTable([region(0)]), [a.number]);
    a.close();
    b.close();
  }));
test('memory: an empty memfd', () =>
  endsWith({ code: 'ERR_VRING_MEMORY_FD', field: 'regions[0].mmap_offset' }, async ({ peer }) => {
    const empty: Fd = createMemfd('empty', REGION_BYTES);
    truncate(empty.number, 0);
    await peer.send(5, memTable([region(0)]), [empty.number]);
    empty.close();
  }));
test('memory: ADD_MEM_REG overlaps', () =>
  endsWith(
    {
      code: 'ERR_VRING_MEMORY_OVERLAP',
      field: 'region.guest_phys_addr',
      request: 'VHOST_USER_ADD_MEM_REG',
    },
    async (p) => {
      await prepare(p);
      const moved = { ...region(0), userAddr: region(5).userAddr };
      await p.peer.send(37, singleRegion(moved), [p.fds.memory[1]!.number]);
    },
  ));
test('memory: REM_MEM_REG of what is not there', () =>
  endsWith(
    { code: 'ERR_VRING_MEMORY_UNKNOWN', field: 'region', request: 'VHOST_USER_REM_MEM_REG' },
    async (p) => {
      await prepare(p);
      await p.peer.send(38, singleRegion(region(1)));
    },
  ));

const UVA = ringAddr(0).descUva;
const END = UVA + BigInt(REGION_BYTES);
const ADDR = 'VHOST_USER_SET_VRING_ADDR';
const ringCases: [string, Expected, Partial<wire.VringAddr>, number?, number?, bigint?][] = [
  [
    'desc not aligned',
    { code: 'ERR_VRING_RING_ALIGNMENT', field: 'vrings[0].desc_user_addr', request: ADDR },
    { descUva: UVA + 8n },
  ],
  [
    'avail not aligned',
    { code: 'ERR_VRING_RING_ALIGNMENT', field: 'vrings[0].avail_user_addr' },
    { availUva: UVA + 1n },
  ],
  [
    'used not aligned',
    { code: 'ERR_VRING_RING_ALIGNMENT', field: 'vrings[0].used_user_addr' },
    { usedUva: UVA + 2n },
  ],
  [
    'desc below memory',
    { code: 'ERR_VRING_RING_ADDRESS', field: 'vrings[0].desc_user_addr' },
    { descUva: UVA - 16n },
  ],
  [
    'address 0',
    { code: 'ERR_VRING_RING_ADDRESS', field: 'vrings[0].desc_user_addr' },
    { descUva: 0n },
  ],
  [
    'desc ends 16 bytes behind memory',
    { code: 'ERR_VRING_RING_ADDRESS', field: 'vrings[0].desc_user_addr' },
    { descUva: END - 4080n },
  ],
  [
    'avail ends behind memory',
    { code: 'ERR_VRING_RING_ADDRESS', field: 'vrings[0].avail_user_addr' },
    { availUva: END - 514n },
  ],
  [
    'used ends behind memory',
    { code: 'ERR_VRING_RING_ADDRESS', field: 'vrings[0].used_user_addr' },
    { usedUva: END - 2048n },
  ],
  [
    'used_event ends behind memory',
    { code: 'ERR_VRING_RING_ADDRESS', field: 'vrings[0].avail_user_addr' },
    { availUva: END - 516n },
    256,
    0,
    F30 | (1n << 29n),
  ],
  [
    'address 2^64-16',
    { code: 'ERR_VRING_MESSAGE_VALUE', field: 'desc_user_addr' },
    { descUva: 2n ** 64n - 16n },
  ],
  ['flags', { code: 'ERR_VRING_MESSAGE_VALUE', field: 'flags' }, { flags: 2 }],
  ['log flag without LOG_ALL', { code: 'ERR_VRING_NOT_NEGOTIATED', field: 'flags' }, { flags: 1 }],
  [
    'a split size of 100',
    { code: 'ERR_VRING_RING_SIZE', field: 'vrings[0].num', request: 'VHOST_USER_SET_VRING_NUM' },
    {},
    100,
  ],
  ['size 0', { code: 'ERR_VRING_MESSAGE_VALUE', field: 'num' }, {}, 0],
  ['size 65536', { code: 'ERR_VRING_MESSAGE_VALUE', field: 'num' }, {}, 65536],
  [
    'a ring larger than memory',
    { code: 'ERR_VRING_RING_ADDRESS', field: 'vrings[0].used_user_addr' },
    { usedUva: END - 0x8000n },
    32768,
  ],
  [
    'a split base of 65536',
    { code: 'ERR_VRING_RING_BASE', field: 'vrings[0].num', request: 'VHOST_USER_SET_VRING_BASE' },
    {},
    256,
    65536,
  ],
  [
    'packed: base behind the ring',
    { code: 'ERR_VRING_RING_BASE', field: 'vrings[0].num' },
    {},
    256,
    256,
    F30 | PACKED,
  ],
  [
    'packed: used half behind the ring',
    { code: 'ERR_VRING_RING_BASE', field: 'vrings[0].num' },
    {},
    256,
    256 << 16,
    F30 | PACKED,
  ],
  [
    'packed: event area not aligned',
    { code: 'ERR_VRING_RING_ALIGNMENT', field: 'vrings[0].avail_user_addr' },
    { availUva: UVA + 2n },
    256,
    0,
    F30 | PACKED,
  ],
];
for (const [what, expected, addr, size, base, features] of ringCases) {
  test(`ring: ${what}`, () =>
    endsWith(expected, async (p) => {
      await prepare(p, features);
      await ring(p, addr, size, base);
    }));
}

test('ring: a region that begins at an odd user address', () =>
  endsWith(
    { code: 'ERR_VRING_RING_ALIGNMENT', field: 'vrings[0].desc_user_addr', text: /in its region/ },
    async (p) => {
      await p.peer.send(2, u64(F30));
      const odd = { ...region(0), userAddr: UVA - 1n };
      await p.peer.send(5, memTable([odd]), [p.fds.memory[0]!.number]);
      await ring(p, {});
    },
  ));

for (const [id, payload] of [
  [8, state(4, 256)],
  [9, wire.VringAddr.encode({ ...ringAddr(0), index: 4 })],
  [10, state(0xffffffff, 0)],
  [11, state(4, 0)],
  [12, u64(0x1ff)],
  [13, u64(0x104)],
  [14, u64(0x104)],
  [18, state(4, 1)],
] as [number, Uint8Array][]) {
  const request = FRONT_END_MESSAGES.get(id)!.name;
  test(`${request}: a ring that does not exist`, () =>
    endsWith(
      { code: 'ERR_VRING_RING_INDEX', field: 'index', request, text: /has 4 vrings/ },
      ({ peer }) => peer.send(id, payload),
    ));
}

const configHeader = (offset: number, sizeBytes: number, flags = 0): Uint8Array =>
  Buffer.concat([wire.ConfigHeader.encode({ offset, sizeBytes, flags }), new Uint8Array(8)]);
const valueCases: [string, number, Uint8Array, Expected][] = [
  [
    'a feature that was not offered',
    2,
    u64(1n << 63n),
    { code: 'ERR_VRING_FEATURES', field: 'u64', text: /0x8000000000000000/ },
  ],
  [
    'a feature of another device',
    2,
    u64(1n << 0n),
    { code: 'ERR_VRING_FEATURES', field: 'u64', text: /acks 0x1 \(BIT_0\)/ },
  ],
  [
    'a protocol feature that was not offered',
    16,
    u64(1n << 17n),
    { code: 'ERR_VRING_FEATURES', field: 'u64', text: /XEN_MMAP/ },
  ],
  ['enable 2', 18, state(0, 2), { code: 'ERR_VRING_MESSAGE_VALUE', field: 'num' }],
  ['MTU 67', 20, u64(67), { code: 'ERR_VRING_MESSAGE_VALUE', field: 'mtu' }],
  ['MTU 2^64-1', 20, u64(2n ** 64n - 1n), { code: 'ERR_VRING_MESSAGE_VALUE', field: 'mtu' }],
  ['status 256', 39, u64(256), { code: 'ERR_VRING_MESSAGE_VALUE', field: 'status' }],
  [
    'config size 9 with 8 bytes',
    24,
    configHeader(0, 9),
    { code: 'ERR_VRING_MESSAGE_SIZE', field: 'size' },
  ],
  [
    'config size 2^32-1',
    25,
    configHeader(0, 0xffffffff),
    { code: 'ERR_VRING_MESSAGE_SIZE', field: 'size' },
  ],
  [
    'config offset behind the space',
    24,
    configHeader(249, 8),
    { code: 'ERR_VRING_MESSAGE_VALUE', field: 'config.offset' },
  ],
  [
    'config offset 2^32-1',
    24,
    configHeader(0xffffffff, 8),
    { code: 'ERR_VRING_MESSAGE_VALUE', field: 'config.offset' },
  ],
  [
    'config flags 2',
    25,
    configHeader(0, 8, 2),
    { code: 'ERR_VRING_MESSAGE_VALUE', field: 'config.flags' },
  ],
  [
    'config of no bytes',
    24,
    wire.ConfigHeader.encode({ offset: 0, sizeBytes: 0, flags: 0 }),
    { code: 'ERR_VRING_MESSAGE_VALUE', field: 'config.size' },
  ],
];
for (const [what, id, payload, expected] of valueCases) {
  test(`value: ${what}`, () =>
    endsWith({ request: FRONT_END_MESSAGES.get(id)!.name, ...expected }, async (p) => {
      await prepare(p);
      await p.peer.send(id, payload);
    }));
}

test('with need_reply a refused message is answered by 1 and changes nothing', async () => {
  const before = openFdCount();
  {
    using fds = new ConversationFds(3);
    const target = new FakeTarget();
    const [ours, theirs] = socketPair();
    const refused: string[] = [];
    const session = new BackendSession(ours, target, {
      onRefused: (error) => refused.push(error.code),
    });
    const peer = new RawPeer(theirs);
    await prepare({ peer, fds });
    await ring({ peer, fds }, {});
    const memory = [fds.memory[0]!.number, fds.memory[1]!.number];
    const overlapping = memTable([region(0), region(0)]);
    for (const [id, payload, sent] of [
      [5, overlapping, memory],
      [45, undefined, memory],
      [22, new Uint8Array(32), []],
      [32, new Uint8Array(24), [fds.memory[0]!.number]],
      [8, new Uint8Array(7), []],
      [12, u64(0), memory],
      [18, state(9, 1), []],
    ] as [number, Uint8Array | undefined, number[]][]) {
      const reply = await peer.ask(id, payload, sent, 9);
      assert.equal(wire.U64Payload.decode(reply).value, 1n, `request ${id}`);
    }
    assert.deepEqual(refused, [
      'ERR_VRING_MEMORY_OVERLAP',
      'ERR_VRING_MESSAGE_UNKNOWN',
      'ERR_VRING_NOT_NEGOTIATED',
      'ERR_VRING_MESSAGE_STATE',
      'ERR_VRING_MESSAGE_SIZE',
      'ERR_VRING_MESSAGE_FDS',
      'ERR_VRING_RING_INDEX',
    ]);
    assert.equal(session.state.refusals, 7);
    assert.equal(session.state.memory!.regions, 1);
    assert.equal(target.running.size, 1);
    peer.close();
    assert.equal(await session.closed, null);
  }
  assert.equal(openFdCount(), before);
});

/** Runs `send` against a session of a shared target; returns the reason of its end. */
async function session(
  target: FakeTarget,
  send: (peer: RawPeer) => Promise<unknown>,
): Promise<Error | null> {
  const [ours, theirs] = socketPair();
  const back = new BackendSession(ours, target);
  const peer = new RawPeer(theirs);
  await send(peer);
  peer.close();
  return back.closed;
}

test('a conversation that is cut at every byte', async () => {
  const before = openFdCount();
  {
    using fds = new ConversationFds();
    const target = new FakeTarget();
    const steps = conversation(fds, ORDINARY_PROTOCOL_FEATURES);
    let cuts = 0;
    for (let last = 0; last < steps.length; last++) {
      for (let at = 0; at < steps[last]!.bytes.length; at++) {
        const reason = (await session(target, async (peer) => {
          for (const step of steps.slice(0, last)) {
            await peer.sendRaw(step.bytes, step.fds);
            await peer.reply();
          }
          await peer.sendRaw(steps[last]!.bytes.subarray(0, at), at > 0 ? steps[last]!.fds : []);
        })) as VringError | null;
        cuts++;
        if (at === 0) assert.equal(reason, null);
        else assert.equal(reason?.code, 'ERR_VRING_MESSAGE_TRUNCATED', `step ${last}, byte ${at}`);
        if (reason instanceof ProtocolError)
          assert.equal(reason.field, at < 12 ? 'header' : 'payload');
      }
    }
    assert.ok(cuts > 600, `${cuts} cuts`);
  }
  assert.equal(openFdCount(), before);
});

test('a conversation whose peer closes with every reply unread', async () => {
  const before = openFdCount();
  {
    using fds = new ConversationFds();
    const target = new FakeTarget();
    const steps = conversation(fds, ORDINARY_PROTOCOL_FEATURES);
    for (let count = 1; count <= steps.length; count++) {
      const reason = (await session(target, async (peer) => {
        for (const step of steps.slice(0, count)) await peer.sendRaw(step.bytes, step.fds);
      })) as VringError | null;
      // Whether the end is seen as EOF, as a reset or by the write that fails is a matter of time.
      if (reason !== null) assert.match(reason.code, /^ERR_VRING_(PEER_CLOSED|SYS)$/);
      assert.ok(reason === null || reason.recovery === 'reconnect');
    }
  }
  assert.equal(openFdCount(), before);
});

for (const pieces of [1, 2, 3, 7, 11, 13]) {
  test(`a conversation in pieces of ${pieces} bytes`, async () => {
    const before = openFdCount();
    {
      using fds = new ConversationFds();
      const target = new FakeTarget();
      const steps = conversation(fds, ORDINARY_PROTOCOL_FEATURES);
      const reason = await session(target, async (peer) => {
        for (const { bytes, fds: sent } of steps) {
          for (let at = 0; at < bytes.length; at += pieces) {
            await peer.sendRaw(bytes.subarray(at, at + pieces), at === 0 ? sent : []);
            if (at % 4 === 0) await new Promise((resolve) => setImmediate(resolve));
          }
          assert.ok(await peer.reply());
        }
      });
      assert.equal(reason, null);
      assert.equal(target.calls.at(-1), 'stopVring 1');
    }
    assert.equal(openFdCount(), before);
  });
}

test('a conversation that is split in two at every byte', async () => {
  using fds = new ConversationFds();
  const target = new FakeTarget();
  const steps = conversation(fds, ORDINARY_PROTOCOL_FEATURES);
  const longest = Math.max(...steps.map((step) => step.bytes.length));
  for (let split = 1; split < longest; split++) {
    const reason = await session(target, async (peer) => {
      for (const { bytes, fds: sent } of steps) {
        await peer.sendRaw(bytes.subarray(0, split), sent);
        await new Promise((resolve) => setImmediate(resolve));
        await peer.sendRaw(bytes.subarray(split));
        assert.ok(await peer.reply());
      }
    });
    assert.equal(reason, null, `split at ${split}`);
  }
});
