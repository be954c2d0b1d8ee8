/** Two socket stacks with a wire in memory between them: who says what when, and what is limited. */
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import {
  VIRTIO_VSOCK_OP_REQUEST,
  VIRTIO_VSOCK_OP_RESPONSE,
  VIRTIO_VSOCK_OP_RST,
  VIRTIO_VSOCK_OP_RW,
  VIRTIO_VSOCK_TYPE_SEQPACKET,
  VIRTIO_VSOCK_TYPE_STREAM,
  type VsockHeader,
} from '../wire/virtio-vsock.ts';
import type { PacketHandler } from './vsock-driver.ts';
import { MAX_VSOCK_STREAMS, VsockStack } from './vsock-stack.ts';
import { VSOCK_BUFFER_BYTES, type VsockStream } from './vsock-stream.ts';

type Packet = { readonly header: VsockHeader; readonly payload: Uint8Array };

class Wire {
  readonly cid: number;
  onPacket: PacketHandler | null = null;
  onRoom: (() => void) | null = null;
  readonly closed = new Promise<null>(() => undefined);
  readonly sent: Packet[] = [];
  far: Wire | null = null;
  /** Packets that the ring has room for until `room` is called. */
  free = Infinity;

  constructor(cid: number) {
    this.cid = cid;
  }

  send(header: VsockHeader, payload: Uint8Array): boolean {
    if (this.free === 0) return false;
    this.free--;
    const copy = payload.slice();
    this.sent.push({ header, payload: copy });
    setImmediate(() => this.far?.onPacket?.(header, copy));
    return true;
  }

  room(packets: number): void {
    this.free = packets;
    this.onRoom?.();
  }

  ops(): number[] {
    return this.sent.map(({ header }) => header.op);
  }
}

function pair() {
  const [near, far] = [new Wire(3), new Wire(4)];
  near.far = far;
  far.far = near;
  return { near, far, a: new VsockStack({ link: near }), b: new VsockStack({ link: far }) };
}

async function connected() {
  const both = pair();
  const accepted = new Promise<VsockStream>((resolve) => both.b.listen(5, resolve));
  const ours = await both.a.connect(4, 5);
  return { ...both, ours, theirs: await accepted };
}

/** A peer without a stack: what it gets is in `near.sent`. */
function alone() {
  const near = new Wire(3);
  const stack = new VsockStack({ link: near });
  const packet = (op: number, fields: Partial<VsockHeader> = {}, payload = new Uint8Array(0)) => {
    const addresses = { srcCid: 2n, dstCid: 3n, srcPort: 900, dstPort: 5 };
    const rest = { len: payload.length, type: VIRTIO_VSOCK_TYPE_STREAM, op, flags: 0 };
    near.onPacket!({ ...addresses, ...rest, bufAlloc: 65536, fwdCnt: 0, ...fields }, payload);
  };
  return { near, stack, packet };
}

test('bytes both ways, more than any buffer holds, then a clean end', async () => {
  const { ours, theirs, a, b } = await connected();
  theirs.pipe(theirs);
  const total = 3 * VSOCK_BUFFER_BYTES + 17;
  const source = Buffer.from(Array.from({ length: total }, (_, i) => (i * 7) & 0xff));
  ours.end(source);
  const chunks: Buffer[] = [];
  for await (const chunk of ours) chunks.push(chunk as Buffer);
  ok(Buffer.concat(chunks).equals(source));
  await Promise.all([ours.ended, theirs.ended]);
  deepEqual([a.streams, b.streams], [0, 0]);
});

test('a reader that does not read holds the sender back', async () => {
  const { ours, theirs, near } = await connected();
  const written = new Promise((resolve) =>
    ours.write(Buffer.alloc(2 * VSOCK_BUFFER_BYTES), resolve),
  );
  await new Promise((resolve) => setTimeout(resolve, 50));
  const sent = near.sent.reduce((sum, { payload }) => sum + payload.length, 0);
  ok(sent <= VSOCK_BUFFER_BYTES + theirs.readableHighWaterMark + 4 * 16384, `${sent} bytes`);
  theirs.resume();
  await written;
});

test('a ring without room: nothing is lost, nothing overtakes', async () => {
  const { ours, theirs, near } = await connected();
  near.free = 0;
  const source = Buffer.from(Array.from({ length: 100_000 }, (_, i) => (i * 13) & 0xff));
  ours.end(source);
  const timer = setInterval(() => near.room(2), 1);
  const chunks: Buffer[] = [];
  for await (const chunk of theirs) chunks.push(chunk as Buffer);
  theirs.end();
  ok(Buffer.concat(chunks).equals(source));
  ours.resume();
  await Promise.all([ours.ended, theirs.ended]);
  clearInterval(timer);
});

test('nobody listens; nobody answers', async () => {
  const { a, near } = pair();
  await rejects(a.connect(4, 6), { code: 'ERR_VRING_VSOCK_REFUSED', message: /vsock 4:6 refused/ });
  equal(a.streams, 0);
  near.far = null;
  await rejects(a.connect(4, 6), { code: 'ERR_VRING_VSOCK_TIMEOUT' });
  equal(near.ops().at(-1), VIRTIO_VSOCK_OP_RST);
  equal(a.streams, 0);
});

test('a peer that resets', async () => {
  const { ours, theirs } = await connected();
  theirs.on('error', () => undefined);
  theirs.destroy(new Error('enough'));
  const [error] = (await once(ours, 'error')) as [Error & { code: string }];
  equal(error.code, 'ERR_VRING_VSOCK_RESET');
  match(error.message, /vsock 4:5 reset the connection/);
});

test('the device reset: all streams end, and new ones can be made', async () => {
  const { ours, a } = await connected();
  a.reset();
  const [error] = (await once(ours, 'error')) as [Error & { code: string }];
  equal(error.code, 'ERR_VRING_VSOCK_RESET');
  equal(a.streams, 0);
});

test('strays, foreign types and foreign addresses', async () => {
  const { near, stack, packet } = alone();
  packet(VIRTIO_VSOCK_OP_RW);
  equal(near.ops().at(-1), VIRTIO_VSOCK_OP_RST);
  packet(VIRTIO_VSOCK_OP_RST);
  equal(near.sent.length, 1, 'no answer to an answer');
  packet(VIRTIO_VSOCK_OP_REQUEST, { type: VIRTIO_VSOCK_TYPE_SEQPACKET });
  equal(near.sent.at(-1)!.header.type, VIRTIO_VSOCK_TYPE_SEQPACKET);
  equal(near.sent.length, 2);
  packet(VIRTIO_VSOCK_OP_REQUEST, { dstCid: 99n });
  equal(near.sent.length, 2, 'for somebody else');
  equal(stack.counters.strays, 4);
});

test('a peer that sends more than its credit is reset, and so is one that talks nonsense', async () => {
  const { near, stack, packet } = alone();
  const errors: string[] = [];
  stack.listen(5, (stream) =>
    stream.on('error', (error) => errors.push((error as { code?: string }).code!)),
  );
  packet(VIRTIO_VSOCK_OP_REQUEST);
  equal(near.ops().at(-1), VIRTIO_VSOCK_OP_RESPONSE);
  const piece = new Uint8Array(65536);
  for (let i = 0; i < 10 && stack.streams > 0; i++) packet(VIRTIO_VSOCK_OP_RW, {}, piece);
  equal(stack.streams, 0);
  equal(near.ops().at(-1), VIRTIO_VSOCK_OP_RST);
  packet(VIRTIO_VSOCK_OP_REQUEST);
  packet(77);
  equal(stack.streams, 0);
  packet(VIRTIO_VSOCK_OP_REQUEST);
  packet(VIRTIO_VSOCK_OP_RESPONSE);
  equal(stack.streams, 0);
  await new Promise((resolve) => setImmediate(resolve));
  deepEqual(
    errors,
    Array.from({ length: 3 }, () => 'ERR_VRING_VSOCK_PROTOCOL'),
  );
});

test('connections are limited, and so is what waits for room', () => {
  const { near, stack, packet } = alone();
  stack.listen(5, () => undefined);
  for (let i = 0; i <= MAX_VSOCK_STREAMS; i++) packet(VIRTIO_VSOCK_OP_REQUEST, { srcPort: i });
  equal(stack.streams, MAX_VSOCK_STREAMS);
  equal(stack.counters.refused, 1);
  near.free = 0;
  for (let i = 0; i < 5000; i++) packet(VIRTIO_VSOCK_OP_RW, { srcPort: 100_000 + i });
  equal(stack.counters.dropped, 5000 - 1024);
});
