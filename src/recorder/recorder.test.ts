/** The recorder between our own front-end and back-end, and between raw peers. */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, beforeEach, afterEach, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { reservedRanges, SharedRegion } from '../memory/index.ts';
import {
  acceptUnix,
  arena,
  closeFd,
  connectUnix,
  createEventfd,
  createMemfd,
  drainEventfd,
  Fd,
  listenUnix,
  openFdCount,
  receiveWithFds,
  sendWithFds,
  signalEventfd,
  socketPair,
} from '../sys/index.ts';
import {
  conversation,
  ConversationFds,
  memTable,
  ORDINARY_PROTOCOL_FEATURES,
  region,
  ringAddr,
} from '../vhost-user/testing/conversation.ts';
import { FakeTarget } from '../vhost-user/testing/fake-target.ts';
import { encodeMessage, RawPeer, u64 } from '../vhost-user/testing/raw-peer.ts';
import { BackendListener } from '../vhost-user/index.ts';
import * as wire from '../wire/vhost-user.ts';
import type { MessageEvent, RecordedEvent } from './recorded-event.ts';
import { Recorder } from './recorder.ts';
import { Recording } from './recording.ts';

let folder = '';
let socket = '';
let upstream = '';
let out = '';
let fdsBefore = 0;
let rangesBefore = 0;

before(() => {
  folder = mkdtempSync(join(tmpdir(), 'vring-rec-'));
  [socket, upstream, out] = ['a', 'b', 'out.jsonl'].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ];
  arena();
});
after(() => rmSync(folder, { recursive: true }));
beforeEach(async () => {
  await record({}, async () => undefined); // opens what the process keeps, such as the poller's
  fdsBefore = openFdCount();
  rangesBefore = reservedRanges();
});
afterEach(() => {
  assert.equal(openFdCount(), fdsBefore, 'no fd is left');
  assert.equal(reservedRanges(), rangesBefore, 'no mapping is left');
});

type Options = { rings?: boolean; connects?: 'back-end'; pcapng?: string };

async function record(options: Options, body: () => Promise<void>): Promise<RecordedEvent[]> {
  const { rings = false, connects = 'front-end', pcapng } = options;
  const recording = await Recording.create({
    out,
    program: 'test',
    socket,
    upstream,
    rings,
    connects,
    ...(pcapng === undefined ? {} : { pcapng }),
  });
  const recorder = new Recorder({ socket, upstream, rings, connects, recording });
  try {
    await body();
  } finally {
    await recorder.close();
    await recording.close();
  }
  const [header, ...lines] = readFileSync(out, 'utf8').trimEnd().split('\n');
  assert.equal(JSON.parse(header!).format, 'vring-recording');
  return lines.map((line) => JSON.parse(line) as RecordedEvent);
}

const messagesOf = (events: RecordedEvent[]): (RecordedEvent & MessageEvent)[] =>
  events.filter((each) => each.event === 'message');

async function until<T>(probe: () => T | null | undefined | false): Promise<T> {
  for (let i = 0; i < 2000; i++) {
    const value = probe();
    if (value !== null && value !== undefined && value !== false) return value;
    await sleep(1);
  }
  throw new Error('nothing came');
}

/** Both ends of a recorded connection, as raw sockets. */
async function rawEnds(): Promise<{ front: Fd; back: Fd; listener: Fd }> {
  const listener = listenUnix(upstream);
  const front = connectUnix(socket);
  const back = await until(() => acceptUnix(listener.number));
  rmSync(upstream);
  return { front, back, listener };
}

async function receive(end: Fd): Promise<{ bytes: Buffer; fds: number[] }> {
  const into = Buffer.alloc(70_000);
  const got = await until(() => receiveWithFds(end.number, into, 253));
  return { bytes: into.subarray(0, got.bytes), fds: got.fds };
}

test('a normal session passes and is written down, field by field, with replies matched', async () => {
  using fds = new ConversationFds();
  const target = new FakeTarget();
  const listener = new BackendListener({ path: upstream, target });
  const events = await record({}, async () => {
    for (let session = 0; session < 2; session++) {
      const peer = new RawPeer(connectUnix(socket));
      for (const step of conversation(fds, ORDINARY_PROTOCOL_FEATURES)) {
        await peer.sendRaw(step.bytes, step.fds);
        assert.ok(await peer.reply());
      }
      peer.close();
      await until(() => target.reasons.length === session + 1);
      assert.equal(target.reasons[session], null);
    }
    await listener.close();
  });
  assert.deepEqual(
    events.map(({ seq }) => seq),
    events.map((_, i) => i + 1),
  );
  assert.ok(events.every(({ time }, i) => i === 0 || time >= events[i - 1]!.time));
  assert.deepEqual([...new Set(events.map(({ session }) => session))], [1, 2]);
  const messages = messagesOf(events.filter(({ session }) => session === 1));
  const requests = messages.filter(({ kind }) => kind === 'request');
  const sent = conversation(fds, ORDINARY_PROTOCOL_FEATURES);
  assert.deepEqual(
    requests.map(({ hex }) => hex),
    sent.map(({ bytes }) => Buffer.from(bytes).toString('hex')),
  );
  for (const reply of messages.filter(({ kind }) => kind === 'reply')) {
    const request = events.find(({ seq }) => seq === reply.replyTo) as MessageEvent;
    assert.equal(request.name, reply.name);
  }
  assert.ok(messages.every(({ problem }) => problem === undefined));
  const table = requests.find(({ name }) => name === 'VHOST_USER_SET_MEM_TABLE')!;
  assert.deepEqual(table.payload!['count'], 2);
  assert.deepEqual(table.payload!['entries'], [
    { guestPhysAddr: '0x0', sizeBytes: '0x100000', userAddr: '0x7f0000000000', fdOffset: '0x0' },
    {
      guestPhysAddr: '0x100000',
      sizeBytes: '0x100000',
      userAddr: '0x7f0000100000',
      fdOffset: '0x0',
    },
  ]);
  assert.deepEqual(
    table.fds.map(({ kind, sizeBytes }) => [kind, sizeBytes]),
    [
      ['memfd', 0x100000],
      ['memfd', 0x100000],
    ],
  );
  const kicks = requests.filter(({ name }) => name === 'VHOST_USER_SET_VRING_KICK');
  assert.deepEqual(
    kicks.map((each) => each.fds[0]!.kind),
    ['eventfd', 'eventfd'],
  );
  assert.notEqual(kicks[0]!.fds[0]!.identity, kicks[1]!.fds[0]!.identity);
  const end = events.findLast(({ session }) => session === 1)!;
  assert.deepEqual(end.event === 'closed' && end.by, 'front-end');
});

test('whatever comes passes byte for byte: unknown, malformed, cut, with any fds', async () => {
  using memory = createMemfd('region', 4096);
  using event = createEventfd('event');
  const unknown = encodeMessage(999, new Uint8Array(50).fill(7), 0xf1);
  const garbage = Buffer.alloc(40_000, 0xee);
  const ends = { bytes: Buffer.alloc(0), fds: 0 };
  const events = await record({}, async () => {
    const { front, back, listener } = await rawEnds();
    sendWithFds(front.number, unknown, [memory.number, event.number, memory.number]);
    sendWithFds(front.number, encodeMessage(1), []);
    sendWithFds(front.number, garbage.subarray(0, 20_000), []);
    sendWithFds(front.number, garbage.subarray(20_000), [event.number]);
    const due = unknown.length + 12 + garbage.length;
    while (ends.bytes.length < due) {
      const got = await receive(back);
      ends.bytes = Buffer.concat([ends.bytes, got.bytes]);
      ends.fds += got.fds.length;
      for (const fd of got.fds) closeFd(fd);
    }
    front.close();
    assert.equal((await receive(back)).bytes.length, 0, 'the end passes too');
    back.close();
    listener.close();
  });
  assert.deepEqual(ends.bytes, Buffer.concat([unknown, encodeMessage(1), garbage]));
  assert.equal(ends.fds, 4);
  const [first] = messagesOf(events);
  assert.equal(first!.name, 'VHOST_USER_999');
  assert.equal(first!.flags.reserved, '0xf0');
  assert.match(first!.problem!, /not a request of this protocol/);
  assert.deepEqual(
    first!.fds.map(({ kind }) => kind),
    ['memfd', 'eventfd', 'memfd'],
  );
  const raw = events.filter((each) => each.event === 'raw');
  assert.match(raw[0]!.reason, /version 2/);
  assert.equal(raw.map(({ hex }) => hex).join(''), garbage.toString('hex'));
});

test('half a message passes when its sender dies', async () => {
  const half = encodeMessage(2, u64(5)).subarray(0, 15);
  const events = await record({}, async () => {
    const { front, back, listener } = await rawEnds();
    sendWithFds(front.number, half, []);
    front.close();
    assert.deepEqual((await receive(back)).bytes, Buffer.from(half));
    back.close();
    listener.close();
  });
  assert.equal(events.find((each) => each.event === 'raw')!.hex, Buffer.from(half).toString('hex'));
});

test('the death of the back-end closes the front-end, and the next one is served', async () => {
  const events = await record({}, async () => {
    for (let i = 0; i < 2; i++) {
      const { front, back, listener } = await rawEnds();
      back.close();
      listener.close();
      assert.equal((await receive(front)).bytes.length, 0);
      front.close();
    }
  });
  const ends = events.filter((each) => each.event === 'closed');
  assert.deepEqual(
    ends.map(({ by }) => by),
    ['back-end', 'back-end'],
  );
});

test('a side that does not read stops the other one, and gets everything', async () => {
  const step = encodeMessage(25, new Uint8Array(60_000).fill(1));
  await record({}, async () => {
    const { front, back, listener } = await rawEnds();
    let sent = 0;
    let stuck = 0;
    while (stuck < 200) {
      const count = sendWithFds(front.number, step.subarray(sent % step.length), []);
      sent += count;
      stuck = count === 0 ? stuck + 1 : 0;
      if (count === 0) await sleep(1);
    }
    assert.ok(sent < 4 * 2 ** 20, `${sent} bytes were taken from a sender that nobody reads`);
    let got = 0;
    while (got < sent - (sent % step.length)) got += (await receive(back)).bytes.length;
    for (const end of [front, back, listener]) end.close();
  });
});

test('the backend channel is recorded in both directions', async () => {
  const events = await record({}, async () => {
    const { front, back, listener } = await rawEnds();
    const [own, given] = socketPair();
    sendWithFds(front.number, encodeMessage(wire.VHOST_USER_SET_BACKEND_REQ_FD), [given.number]);
    given.close();
    const { fds } = await receive(back);
    using channel = new Fd(fds[0]!, 'channel');
    sendWithFds(channel.number, encodeMessage(2, undefined, 9), []);
    assert.equal((await receive(own)).bytes.readUInt32LE(0), 2);
    sendWithFds(own.number, encodeMessage(2, u64(0), 5), []);
    assert.equal((await receive(channel)).bytes.length, 20);
    own.close();
    assert.equal((await receive(channel)).bytes.length, 0);
    for (const end of [front, back, listener]) end.close();
  });
  const [request, reply] = messagesOf(events).filter(({ channel }) => channel === 'backend');
  assert.equal(request!.name, 'VHOST_USER_BACKEND_CONFIG_CHANGE_MSG');
  assert.equal(request!.from, 'back-end');
  assert.deepEqual([reply!.from, reply!.replyTo], ['front-end', request!.seq]);
  const closed = events.find((each) => each.event === 'channel-closed')!;
  assert.equal(closed.by, 'front-end');
});

test('rings: kicks and calls pass and are written down with the indexes of the ring', async () => {
  using memory = createMemfd('region', 0x100000);
  using kick = createEventfd('kick');
  using call = createEventfd('call');
  const events = await record({ rings: true }, async () => {
    using guest = SharedRegion.map(memory.number, region(0));
    const { front, back, listener } = await rawEnds();
    const addr = wire.VringAddr.encode(ringAddr(1));
    const send = (id: number, payload: Uint8Array, fds: number[] = []): void =>
      void sendWithFds(front.number, encodeMessage(id, payload), fds);
    send(wire.VHOST_USER_SET_MEM_TABLE, memTable([region(0)]), [memory.number]);
    send(wire.VHOST_USER_SET_VRING_ADDR, addr);
    send(wire.VHOST_USER_SET_VRING_KICK, u64(1), [kick.number]);
    send(wire.VHOST_USER_SET_VRING_CALL, u64(1), [call.number]);
    send(wire.VHOST_USER_SET_VRING_CALL, u64(0x102)); // polls
    const fds: Fd[] = [];
    for (let bytes = 0; bytes < 5 * 12 + 40 + 40 + 3 * 8;) {
      const got = await receive(back);
      bytes += got.bytes.length;
      fds.push(...got.fds.map((number) => new Fd(number, 'got')));
    }
    const [, theirKick, theirCall] = fds;
    arena().view.setUint16(guest.offset + 0x12002, 7, true);
    arena().view.setUint16(guest.offset + 0x14002, 5, true);
    signalEventfd(kick.number);
    await until(() => drainEventfd(theirKick!.number) > 0);
    signalEventfd(theirCall!.number);
    await until(() => drainEventfd(call.number) > 0);
    // A kick that nobody has taken is not lost when the same ring gets an eventfd again.
    signalEventfd(kick.number);
    await sleep(20);
    send(wire.VHOST_USER_SET_VRING_KICK, u64(1), [kick.number]);
    const again = await receive(back);
    using newKick = new Fd(again.fds[0]!, 'got');
    assert.ok(drainEventfd(newKick.number) > 0);
    for (const end of [front, back, listener, ...fds]) end.close();
  });
  const rings = events.filter((each) => 'ring' in each);
  assert.deepEqual(
    rings.map(({ event, ring, count, available, used }) => [event, ring, count, available, used]),
    [
      ['kick', 1, 1, 7, 5],
      ['call', 1, 1, 7, 5],
      ['kick', 1, 1, 7, 5],
    ],
  );
});

test('a back-end that connects is the one at the socket; messages stand in the pcapng too', async () => {
  const pcapng = join(folder, 'out.pcapng');
  const events = await record({ connects: 'back-end', pcapng }, async () => {
    const { front: back, back: front, listener } = await rawEnds();
    sendWithFds(front.number, encodeMessage(1), []);
    assert.equal((await receive(back)).bytes.length, 12);
    for (const end of [front, back, listener]) end.close();
  });
  assert.equal(messagesOf(events)[0]!.from, 'front-end');
  const file = readFileSync(pcapng);
  assert.equal(file.readUInt32LE(0), 0x0a0d0d0a);
  assert.ok(file.includes('VHOST_USER_GET_FEATURES request'));
  assert.ok(file.includes(Buffer.from(encodeMessage(1))));
});
