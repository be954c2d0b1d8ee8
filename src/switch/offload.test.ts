import { deepStrictEqual, ok, strictEqual } from 'node:assert';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { checksumAdd, checksumFinish, pseudoHeaderSum4, pseudoHeaderSum6 } from '../wire/ip.ts';
import { type CounterName, readCounters } from './counters.ts';
import { FakeArena, type FakeFrame, FakePort } from './fake-port.ts';
import { GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_UDP_L4 } from './frame-batch.ts';
import { GSO_SEGMENTS_MAX, GSO_SEGMENTS_PER_ROUND } from './offload.ts';
import { ACCEPT_CSUM, ACCEPT_ECN, ACCEPT_TSO4, ACCEPT_TSO6, ACCEPT_USO } from './port-plane.ts';
import { Switch, SWITCH_SCRATCH_BYTES } from './switch.ts';

const PSH_FIN = 0x09;
const CWR = 0x80;

type Shape = {
  v6: boolean;
  udp: boolean;
  tagged: boolean;
  /** IPv4 options or IPv6 extension headers, in units of 4 or 8 bytes. */
  ipOptions: number;
  tcpOptions: number;
  flags: number;
  payload: number;
};

/** A TCP or UDP frame as a driver hands it over: checksum field holds the pseudo header's sum. */
function build(shape: Shape): { bytes: Uint8Array; l3: number; l4: number; header: number } {
  const l3 = shape.tagged ? 18 : 14;
  const ipBytes = shape.v6 ? 40 + shape.ipOptions * 8 : 20 + shape.ipOptions * 4;
  const l4 = l3 + ipBytes;
  const header = l4 + (shape.udp ? 8 : 20 + shape.tcpOptions * 4);
  const bytes = new Uint8Array(header + shape.payload);
  for (let i = header; i < bytes.length; i++) bytes[i] = (i * 31) ^ (i >> 8);
  const view = new DataView(bytes.buffer);
  bytes.set([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0, 0, 1]);
  if (shape.tagged) view.setUint32(12, 0x8100a007);
  view.setUint16(l3 - 2, shape.v6 ? 0x86dd : 0x0800);
  const protocol = shape.udp ? 17 : 6;
  if (shape.v6) {
    view.setUint32(l3, 0x60012345);
    view.setUint16(l3 + 4, bytes.length - l3 - 40);
    view.setUint8(l3 + 6, shape.ipOptions > 0 ? 0 : protocol);
    view.setUint8(l3 + 7, 64);
    for (let i = 8; i < 40; i++) bytes[l3 + i] = i * 7;
    if (shape.ipOptions > 0) bytes.set([protocol, shape.ipOptions - 1, 1, 0], l3 + 40);
  } else {
    view.setUint8(l3, 0x45 + shape.ipOptions);
    view.setUint16(l3 + 2, bytes.length - l3);
    view.setUint16(l3 + 4, 0xfffe);
    view.setUint16(l3 + 6, 0x4000);
    bytes.set([64, protocol, 0xde, 0xad, 10, 0, 0, 1, 10, 0, 0, 2], l3 + 8);
    bytes.fill(1, l3 + 20, l4);
  }
  view.setUint32(l4, 0x1234_0050);
  const l4Bytes = bytes.length - l4;
  const pseudo = pseudoOf(bytes, shape, l3, l4Bytes);
  if (shape.udp) {
    view.setUint16(l4 + 4, l4Bytes);
    view.setUint16(l4 + 6, fold(pseudo));
  } else {
    view.setUint32(l4 + 4, 0xfffffff0);
    view.setUint8(l4 + 12, (5 + shape.tcpOptions) << 4);
    view.setUint8(l4 + 13, shape.flags);
    view.setUint16(l4 + 16, fold(pseudo));
    bytes.fill(1, l4 + 20, header);
  }
  return { bytes, l3, l4, header };
}

const fold = (sum: number): number => ~checksumFinish(sum) & 0xffff;

function pseudoOf(bytes: Uint8Array, shape: Shape, l3: number, l4Bytes: number): number {
  const protocol = shape.udp ? 17 : 6;
  return shape.v6
    ? pseudoHeaderSum6(bytes, l3, protocol, l4Bytes)
    : pseudoHeaderSum4(bytes, l3, protocol, l4Bytes);
}

/** What must come out, written for reading: one frame per piece of payload. */
function segmentNaively(shape: Shape, gsoSize: number): Uint8Array[] {
  const { bytes, l3, l4, header } = build(shape);
  const payload = bytes.subarray(header);
  const frames: Uint8Array[] = [];
  for (let at = 0; at === 0 || at < payload.length; at += gsoSize) {
    const piece = payload.subarray(at, at + gsoSize);
    const frame = Uint8Array.from([...bytes.subarray(0, header), ...piece]);
    const view = new DataView(frame.buffer);
    const n = frames.length;
    if (shape.v6) view.setUint16(l3 + 4, frame.length - l3 - 40);
    else {
      view.setUint16(l3 + 2, frame.length - l3);
      view.setUint16(l3 + 4, (0xfffe + n) & 0xffff);
      view.setUint16(l3 + 10, 0);
      view.setUint16(l3 + 10, checksumFinish(checksumAdd(0, frame, l3, l4 - l3)));
    }
    const field = l4 + (shape.udp ? 6 : 16);
    if (shape.udp) view.setUint16(l4 + 4, frame.length - l4);
    else {
      view.setUint32(l4 + 4, (0xfffffff0 + at) >>> 0);
      const last = at + gsoSize >= payload.length;
      const flags = shape.flags & (last ? 0xff : ~PSH_FIN) & (n === 0 ? 0xff : ~CWR);
      view.setUint8(l4 + 13, flags);
    }
    view.setUint16(field, 0);
    const pseudo = pseudoOf(frame, shape, l3, frame.length - l4);
    const sum = checksumFinish(pseudo + checksumAdd(0, frame, l4, frame.length - l4));
    view.setUint16(field, sum === 0 ? 0xffff : sum);
    frames.push(frame);
  }
  return frames;
}

function setup(accepts = 0, maxFrameBytes = 65553, arenaBytes = 1 << 20) {
  const arena = new FakeArena(arenaBytes, SWITCH_SCRATCH_BYTES);
  const { view, bytes } = arena;
  const bridge = new Switch({ view, bytes, scratchAt: 0 });
  const source = new FakePort(arena);
  const target = new FakePort(arena);
  target.accepts = accepts;
  target.maxFrameBytes = maxFrameBytes;
  const vlan = { mode: 'trunk', allowed: 'all', native: 1 } as const;
  bridge.addPort(0, source, { vlan, macLimit: 10, reflect: false });
  bridge.addPort(1, target, { vlan, macLimit: 10, reflect: false });
  const send = (...frames: FakeFrame[]) => {
    source.outgoing.push(...frames);
    bridge.forwardBatch(0);
    return target.delivered.splice(0);
  };
  const counter = (port: number, name: CounterName) => readCounters(bridge.counters, port)[name];
  return { source, target, send, counter };
}

const shapes = fc.record({
  v6: fc.boolean(),
  udp: fc.boolean(),
  tagged: fc.boolean(),
  ipOptions: fc.integer({ min: 0, max: 7 }),
  tcpOptions: fc.integer({ min: 0, max: 10 }),
  flags: fc.integer({ min: 0, max: 255 }),
  payload: fc.oneof(fc.integer({ min: 0, max: 300 }), fc.integer({ min: 0, max: 20000 })),
});

function gsoFrame(shape: Shape, gsoSize: number, ecn = 0): FakeFrame {
  const { bytes, l4 } = build(shape);
  const kind = shape.udp ? GSO_UDP_L4 : (shape.v6 ? GSO_TCPV6 : GSO_TCPV4) | ecn;
  const csumOffset = shape.udp ? 6 : 16;
  return { bytes, offload: 1, csumStart: l4, csumOffset, gsoType: kind, gsoSize };
}

test('segments are those of the naive reference', () => {
  const sizes = fc.oneof(fc.integer({ min: 48, max: 1460 }), fc.integer({ min: 1460, max: 60000 }));
  fc.assert(
    fc.property(
      shapes,
      sizes,
      fc.integer({ min: 40, max: 4000 }),
      (shape, gsoSize, segmentBytes) => {
        const { source, send } = setup();
        source.segmentBytes = segmentBytes;
        const frames = send(gsoFrame(shape, gsoSize, GSO_ECN));
        const expected = segmentNaively(shape, gsoSize);
        strictEqual(frames.length, expected.length);
        for (const [n, frame] of frames.entries()) {
          deepStrictEqual(Buffer.from(frame.bytes), Buffer.from(expected[n]), `segment ${n}`);
          strictEqual(frame.offload, 0);
          strictEqual(frame.gsoType, 0);
        }
      },
    ),
    { numRuns: 300 },
  );
});

test('a receiver that finishes checksums gets segments with the pseudo header only', () => {
  fc.assert(
    fc.property(shapes, fc.integer({ min: 100, max: 1460 }), (shape, gsoSize) => {
      const { send } = setup(ACCEPT_CSUM);
      const frames = send(gsoFrame(shape, gsoSize));
      const expected = segmentNaively(shape, gsoSize);
      strictEqual(frames.length, expected.length);
      for (const [n, frame] of frames.entries()) {
        strictEqual(frame.offload, 1);
        const sum = checksumFinish(
          checksumAdd(0, frame.bytes, frame.csumStart, frame.bytes.length - frame.csumStart),
        );
        const view = new DataView(frame.bytes.buffer);
        view.setUint16(frame.csumStart + frame.csumOffset, sum === 0 ? 0xffff : sum);
        deepStrictEqual(Buffer.from(frame.bytes), Buffer.from(expected[n]));
      }
    }),
    { numRuns: 100 },
  );
});

test('completes checksums', () => {
  fc.assert(
    fc.property(shapes, fc.integer({ min: 40, max: 4000 }), (shape, segmentBytes) => {
      const { source, send, counter } = setup();
      source.segmentBytes = segmentBytes;
      const { bytes, l4, l3 } = build(shape);
      const csumOffset = shape.udp ? 6 : 16;
      const [frame] = send({ bytes, offload: 1, csumStart: l4, csumOffset });
      strictEqual(frame.offload, 0);
      strictEqual(counter(1, 'csumCompleted'), 1);
      const pseudo = pseudoOf(frame.bytes, shape, l3, bytes.length - l4);
      strictEqual(checksumFinish(pseudo + checksumAdd(0, frame.bytes, l4, bytes.length - l4)), 0);
      bytes.fill(0, l4 + csumOffset, l4 + csumOffset + 2);
      const delivered = Uint8Array.from(frame.bytes);
      delivered.fill(0, l4 + csumOffset, l4 + csumOffset + 2);
      deepStrictEqual(Buffer.from(delivered), Buffer.from(bytes));
    }),
    { numRuns: 200 },
  );
});

test('order is kept between frames that need work and frames that do not', () => {
  const { send } = setup();
  const shape = { v6: false, udp: false, tagged: false, ipOptions: 0, tcpOptions: 0, flags: 0x18 };
  const frames: FakeFrame[] = [];
  for (let n = 0; n < 64; n++) {
    const { bytes, l4 } = build({ ...shape, payload: 100 + n });
    const csum = { bytes, offload: 1, csumStart: l4, csumOffset: 16 };
    if (n % 7 === 0) frames.push(gsoFrame({ ...shape, payload: 1000 + n }, 250));
    else frames.push(n % 3 === 0 ? { bytes } : csum);
  }
  const expected = frames.flatMap((frame, n) =>
    n % 7 === 0
      ? segmentNaively({ ...shape, payload: 1000 + n }, 250).map(({ length }) => length)
      : [frame.bytes.length],
  );
  deepStrictEqual(
    send(...frames).map(({ bytes }) => bytes.length),
    expected,
  );
});

test('passes through what the receiver accepts', () => {
  const accepts = ACCEPT_CSUM | ACCEPT_TSO4 | ACCEPT_TSO6 | ACCEPT_ECN | ACCEPT_USO;
  const { send, counter } = setup(accepts, 1514);
  fc.assert(
    fc.property(shapes, (shape) => {
      const sent = gsoFrame({ ...shape, tagged: false }, 1000, GSO_ECN);
      const [frame] = send(sent);
      deepStrictEqual(frame, sent);
    }),
    { numRuns: 20 },
  );
  strictEqual(counter(1, 'gsoSegmented'), 0);
});

test('fields move with the tag', () => {
  const { send, target } = setup(ACCEPT_CSUM | ACCEPT_TSO4);
  const shape = { v6: false, udp: false, ipOptions: 0, tcpOptions: 0, flags: 0, payload: 5000 };
  const { l4 } = build({ ...shape, tagged: true });
  const sent = gsoFrame({ ...shape, tagged: true }, 1000);
  const [kept] = send(sent);
  strictEqual(kept.csumStart, l4);
  const popped = setup(ACCEPT_CSUM | ACCEPT_TSO4);
  const frame = gsoFrame({ ...shape, tagged: true }, 1000);
  frame.bytes.set([0x81, 0, 0, 1], 12);
  const [out] = popped.send(frame);
  strictEqual(out.csumStart, l4 - 4);
  strictEqual(out.bytes.length, frame.bytes.length - 4);
  strictEqual(target.delivered.length, 0);
});

test('hostile fields are refused by name and bounded', () => {
  const { send, counter } = setup(0, 1514, 1 << 22);
  const shape = { v6: false, udp: false, tagged: false, ipOptions: 0, tcpOptions: 0, flags: 0 };
  const good = gsoFrame({ ...shape, payload: 60000 }, 1460);
  const sent = (change: Partial<FakeFrame>, edit?: (bytes: Uint8Array) => void) => {
    const bytes = Uint8Array.from(good.bytes);
    edit?.(bytes);
    return send({ ...good, bytes, ...change }).length;
  };
  const refusedAtIngress: Partial<FakeFrame>[] = [
    { csumStart: 0 },
    { csumStart: 14 },
    { csumStart: 65535 },
    { csumOffset: 65535 },
    { csumStart: good.bytes.length - 17 },
    { gsoSize: 0 },
    { gsoType: 2 },
    { gsoType: 0x7f },
    { gsoType: GSO_ECN },
    { offload: 0 },
  ];
  for (const change of refusedAtIngress) strictEqual(sent(change), 0);
  strictEqual(counter(0, 'dropOffloadHeader'), refusedAtIngress.length);
  strictEqual(sent({ gsoSize: 1 }), 0);
  strictEqual(sent({ gsoSize: 43 }), 0);
  strictEqual(counter(1, 'dropGsoSize'), 2);
  strictEqual(sent({ gsoType: GSO_UDP }), 0);
  strictEqual(counter(1, 'dropGsoType'), 1);
  const broken = [
    sent({ gsoType: GSO_TCPV6 }),
    sent({ gsoType: GSO_UDP_L4 }),
    sent({}, (bytes) => (bytes[14] = 0x44)),
    sent({}, (bytes) => (bytes[14] = 0x65)),
    sent({}, (bytes) => (bytes[20] = 0x20)),
    sent({}, (bytes) => (bytes[21] = 0x01)),
    sent({}, (bytes) => (bytes[23] = 17)),
    sent({}, (bytes) => (bytes[46] = 0x40)),
    sent({}, (bytes) => (bytes[13] = 0x06)),
  ];
  ok(broken.every((frames) => frames === 0));
  strictEqual(counter(1, 'dropGsoHeaders'), broken.length);
  strictEqual(sent({ gsoSize: 1461 }), 0);
  strictEqual(counter(1, 'dropMtu'), 1);
  ok(sent({ gsoSize: 48 }) <= GSO_SEGMENTS_MAX);
});

test('one round makes so many segments and no more, whatever a guest asks for', () => {
  const shape = { v6: false, udp: false, tagged: false, ipOptions: 0, tcpOptions: 0, flags: 0 };
  const { source, send, counter } = setup(0, 1514, 1 << 23);
  source.segmentBytes = 65_536; // 64 frames in small pieces would not fit one batch
  const greedy = gsoFrame({ ...shape, payload: 48_000 }, 48); // 1000 segments each
  const frames = Array.from({ length: 10 }, () => ({ ...greedy, bytes: greedy.bytes.slice() }));
  strictEqual(send(...frames).length, 4000);
  ok(4000 <= GSO_SEGMENTS_PER_ROUND);
  strictEqual(counter(1, 'dropGsoSize'), 6);
  // The next round has its own; and a full batch of ordinary TSO frames stays below it.
  const usual = gsoFrame({ ...shape, payload: 60_000 }, 1448); // 42 segments each
  const batch = Array.from({ length: 64 }, () => ({ ...usual, bytes: usual.bytes.slice() }));
  strictEqual(send(...batch).length, 64 * 42);
  strictEqual(counter(1, 'dropGsoSize'), 6);
});

test('any header of any guest ends in a drop or in frames that fit', () => {
  fc.assert(
    fc.property(
      fc.uint8Array({ minLength: 0, maxLength: 200 }),
      fc.integer({ min: 0, max: 3 }),
      fc.constantFrom(0, 1, 3, 4, 5, 0x81, 0x84, 255),
      fc.integer({ min: 0, max: 65535 }),
      fc.oneof(fc.integer({ min: 0, max: 220 }), fc.integer({ min: 0, max: 65535 })),
      fc.oneof(fc.integer({ min: 0, max: 20 }), fc.integer({ min: 0, max: 65535 })),
      fc.constantFrom([], [0x08, 0x00, 0x45], [0x86, 0xdd, 0x60], [0x81, 0, 0, 5, 8, 0, 0x46]),
      (bytes, offload, gsoType, gsoSize, csumStart, csumOffset, type) => {
        const { send, counter } = setup(0, 100);
        bytes.set(type.slice(0, Math.max(0, bytes.length - 12)), Math.min(12, bytes.length));
        const frames = send({ bytes, offload, gsoType, gsoSize, csumStart, csumOffset });
        for (const frame of frames) ok(frame.bytes.length <= 104);
        strictEqual(counter(0, 'rxFrames'), 1);
      },
    ),
    { numRuns: 2000 },
  );
});
