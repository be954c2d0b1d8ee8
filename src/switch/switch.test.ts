import { deepStrictEqual, ok, strictEqual } from 'node:assert';
import { test } from 'node:test';
import { MAX_FRAME_BYTES } from '../base/limits.ts';
import { type CounterName, readCounters } from './counters.ts';
import { FakeArena, FakePort } from './fake-port.ts';
import type { FrameTap } from './frame-tap.ts';
import { SWITCH_SCRATCH_BYTES } from './switch.ts';
import { type PortSettings, Switch } from './switch.ts';

const access = (vid: number): PortSettings => ({
  vlan: { mode: 'access', vid },
  macLimit: 100,
  reflect: false,
});

const trunk = (allowed: readonly number[] | 'all', native: number | null): PortSettings => ({
  vlan: { mode: 'trunk', allowed, native },
  macLimit: 100,
  reflect: false,
});

function setup(settings: readonly PortSettings[]) {
  const arena = new FakeArena(1 << 22, SWITCH_SCRATCH_BYTES);
  const { view, bytes } = arena;
  const bridge = new Switch({ view, bytes, scratchAt: 0 });
  const ports = settings.map((setting, index) => {
    const port = new FakePort(arena);
    bridge.addPort(index, port, setting);
    return port;
  });
  const counter = (port: number, name: CounterName) => readCounters(bridge.counters, port)[name];
  return { bridge, ports, counter };
}

const BROADCAST = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
const host = (n: number): number[] => [0x52, 0x54, 0, 0, 0, n];

function frame(dst: number[], src: number[], options: { tci?: number; size?: number } = {}) {
  const tag = options.tci === undefined ? [] : [0x81, 0x00, options.tci >> 8, options.tci & 0xff];
  const start = [...dst, ...src, ...tag, 0x88, 0xb5];
  const bytes = new Uint8Array(Math.max(options.size ?? 60, start.length));
  for (let i = 0; i < bytes.length; i++) bytes[i] = start[i] ?? i & 0xff;
  return { bytes };
}

test('floods what it does not know, learns, then sends to one port', () => {
  const { bridge, ports, counter } = setup([access(1), access(1), access(1)]);
  ports[0].outgoing.push(frame(host(1), host(0), { size: 1514 }));
  strictEqual(bridge.forwardBatch(0), 1);
  strictEqual(ports[1].delivered.length, 1);
  strictEqual(ports[2].delivered.length, 1);
  strictEqual(ports[0].delivered.length, 0);
  deepStrictEqual(ports[1].delivered[0].bytes, frame(host(1), host(0), { size: 1514 }).bytes);
  ports[1].outgoing.push(frame(host(0), host(1)));
  bridge.forwardBatch(1);
  strictEqual(ports[0].delivered.length, 1);
  strictEqual(ports[2].delivered.length, 1);
  strictEqual(counter(0, 'floodCopies'), 2);
  strictEqual(counter(0, 'learned'), 1);
  strictEqual(counter(1, 'txBytes'), 1514);
  strictEqual(counter(0, 'rxBytes'), 1514);
  deepStrictEqual([ports[0].releases, ports[0].flushes], [1, 2]);
});

test('a batch goes to each destination with one transmit, in order', () => {
  const { bridge, ports } = setup([access(1), access(1), access(1)]);
  bridge.macTable.learn('52:54:00:00:00:01', 1, 1, 10);
  bridge.macTable.learn('52:54:00:00:00:02', 1, 2, 10);
  for (let n = 0; n < 64; n++) {
    const target = n % 5 === 0 ? BROADCAST : host(1 + (n & 1));
    ports[0].outgoing.push(frame(target, host(0), { size: 60 + n }));
  }
  strictEqual(bridge.forwardBatch(0), 64);
  strictEqual(ports[1].transmits, 1);
  const sizes = ports[1].delivered.map(({ bytes }) => bytes.length);
  deepStrictEqual(
    sizes,
    [...sizes].sort((a, b) => a - b),
  );
  const expected = Array.from({ length: 64 }, (_, n) => n).filter(
    (n) => n % 5 === 0 || (n & 1) === 0,
  );
  strictEqual(sizes.length, expected.length);
});

test('drops are named', () => {
  const { bridge, ports, counter } = setup([access(1), access(1), access(2), trunk([5], null)]);
  const send = (port: number, sent: { bytes: Uint8Array }) => {
    ports[port].outgoing.push(sent);
    bridge.forwardBatch(port);
  };
  bridge.macTable.learn('52:54:00:00:00:01', 1, 1, 10);
  bridge.macTable.learn('52:54:00:00:00:09', 1, 0, 10);
  send(0, { bytes: new Uint8Array(13) });
  strictEqual(counter(0, 'dropShort'), 1);
  send(0, { bytes: Uint8Array.from([...host(1), ...host(0), 0x81, 0x00]) });
  strictEqual(counter(0, 'dropShort'), 2);
  send(0, frame(host(1), host(0), { size: 65554 }));
  strictEqual(counter(0, 'dropLong'), 1);
  ports[1].maxFrameBytes = MAX_FRAME_BYTES;
  send(0, frame(host(1), host(0), { size: MAX_FRAME_BYTES }));
  strictEqual(counter(0, 'dropLong'), 1);
  strictEqual(ports[1].delivered.splice(0).length, 1);
  ports[1].maxFrameBytes = 1514;
  send(0, frame(host(1), host(0), { tci: 1 }));
  strictEqual(counter(0, 'dropVlanTagged'), 1);
  send(3, frame(host(1), host(0)));
  strictEqual(counter(3, 'dropVlanUntagged'), 1);
  for (const tci of [6, 4095]) send(3, frame(host(1), host(0), { tci }));
  strictEqual(counter(3, 'dropVlanNotAllowed'), 2);
  send(0, frame(host(1), [0x01, 0, 0, 0, 0, 1]));
  strictEqual(counter(0, 'dropSourceGroup'), 1);
  send(0, frame([0x01, 0x80, 0xc2, 0, 0, 0x0e], host(0)));
  strictEqual(counter(0, 'dropReserved'), 1);
  send(0, frame(host(9), host(0)));
  strictEqual(counter(0, 'dropSamePort'), 1);
  send(2, frame(BROADCAST, host(3)));
  strictEqual(counter(2, 'dropNoPort'), 1);
  send(0, frame(host(1), host(0), { size: 1515 }));
  strictEqual(counter(1, 'dropMtu'), 1);
  ports[1].room = 0;
  send(0, frame(host(1), host(0)));
  strictEqual(counter(1, 'dropReceiver'), 1);
  ports[1].ready = false;
  send(0, frame(host(1), host(0)));
  strictEqual(counter(1, 'dropNotReady'), 1);
  send(0, frame(BROADCAST, host(0)));
  strictEqual(counter(1, 'dropNotReady'), 1);
  strictEqual(
    ports.reduce((sum, port) => sum + port.delivered.length, 0),
    0,
  );
});

test('the limit of a port bounds what a flood of sources learns', () => {
  const { bridge, ports, counter } = setup([{ ...access(1), macLimit: 5 }, access(1)]);
  for (let n = 0; n < 50; n++) ports[0].outgoing.push(frame(BROADCAST, host(n)));
  bridge.forwardBatch(0);
  strictEqual(bridge.macTable.size, 5);
  strictEqual(counter(0, 'learnLimit'), 45);
  strictEqual(ports[1].delivered.length, 50);
});

test('tags: pushed, popped, rewritten and left alone', () => {
  const settings = [access(5), trunk([5, 6], 6), access(5), trunk('all', null)];
  const { bridge, ports } = setup(settings);
  ports[0].outgoing.push(frame(BROADCAST, host(0), { size: 100 }));
  ports[0].outgoing.push(frame(BROADCAST, host(0), { tci: 0xb000, size: 104 }));
  bridge.forwardBatch(0);
  const plain = frame(BROADCAST, host(0), { size: 100 }).bytes;
  const withTag = (tci: number) => [...plain.subarray(0, 12), 0x81, 0, tci >> 8, tci & 0xff];
  const head = (port: number, n: number) => [...ports[port].delivered[n].bytes.subarray(0, 16)];
  const priority = [...frame(BROADCAST, host(0), { tci: 0xb000, size: 104 }).bytes.subarray(18)];
  for (const port of [1, 3]) {
    deepStrictEqual(head(port, 0), withTag(5));
    deepStrictEqual(head(port, 1), withTag(0xb005));
    deepStrictEqual([...ports[port].delivered[0].bytes.subarray(16)], [...plain.subarray(12)]);
    strictEqual(ports[port].delivered[1].bytes.length, 104);
  }
  deepStrictEqual(ports[2].delivered[0].bytes, plain);
  strictEqual(ports[2].delivered[1].bytes.length, 100);
  deepStrictEqual([...ports[2].delivered[1].bytes.subarray(14)], priority);

  ports[3].outgoing.push(frame(BROADCAST, host(7), { tci: 6, size: 104 }));
  ports[3].outgoing.push(frame(BROADCAST, host(7), { tci: 7, size: 104 }));
  bridge.forwardBatch(3);
  strictEqual(ports[1].delivered.length, 3);
  strictEqual(ports[1].delivered[2].bytes.length, 100, 'native leaves untagged');
  strictEqual(ports[0].delivered.length, 0);
});

test('the tag inside a service tag is not looked at', () => {
  const { bridge, ports } = setup([access(1), access(1)]);
  const bytes = frame(BROADCAST, host(0), { tci: 99, size: 100 }).bytes;
  bytes.set([0x88, 0xa8], 12);
  ports[0].outgoing.push({ bytes });
  bridge.forwardBatch(0);
  deepStrictEqual(ports[1].delivered[0].bytes, bytes);
});

test('reflects frames to where they came from, tags and all, and learns nothing', () => {
  const { bridge, ports, counter } = setup([{ ...access(1), reflect: true }, access(1)]);
  const sent = [frame(host(1), host(0)), frame(BROADCAST, host(0), { tci: 77 })];
  ports[0].outgoing.push(...sent, { bytes: new Uint8Array(10) });
  bridge.forwardBatch(0);
  deepStrictEqual(
    ports[0].delivered.map(({ bytes }) => bytes),
    sent.map(({ bytes }) => bytes),
  );
  strictEqual(bridge.macTable.size, 0);
  strictEqual(counter(0, 'dropShort'), 1);
  strictEqual(ports[1].delivered.length, 0);
  ports[1].outgoing.push(frame(BROADCAST, host(2)));
  bridge.forwardBatch(1);
  strictEqual(ports[0].delivered.length, 2, 'and is not flooded to');
});

test('a reflecting port returns frames of full length, and a tag on top', () => {
  const { bridge, ports, counter } = setup([{ ...access(1), reflect: true }]);
  const longest = ports[0].maxFrameBytes;
  const tagged = new Uint8Array(longest + 4);
  tagged.set([0x81, 0, 0, 7], 12);
  ports[0].outgoing.push({ bytes: tagged }, { bytes: new Uint8Array(longest + 4) });
  bridge.forwardBatch(0);
  deepStrictEqual(
    ports[0].delivered.map(({ bytes }) => bytes.length),
    [longest + 4],
  );
  strictEqual(counter(0, 'dropMtu'), 1);
});

test('ports come, change and go while traffic flows', () => {
  const { bridge, ports, counter } = setup([access(1), access(1)]);
  ports[1].outgoing.push(frame(host(0), host(1)));
  bridge.forwardBatch(1);
  bridge.updatePort(1, { vlan: { mode: 'access', vid: 2 } });
  strictEqual(bridge.macTable.size, 0);
  ports[0].outgoing.push(frame(host(1), host(0)));
  bridge.forwardBatch(0);
  strictEqual(ports[1].delivered.length, 0);
  bridge.updatePort(1, { vlan: { mode: 'access', vid: 1 } });
  ports[0].outgoing.push(frame(host(1), host(0)));
  bridge.forwardBatch(0);
  strictEqual(ports[1].delivered.length, 1);
  ok(bridge.removePort(1));
  ok(!bridge.removePort(1));
  ports[0].outgoing.push(frame(host(1), host(0)));
  bridge.forwardBatch(0);
  strictEqual(counter(0, 'dropNoPort'), 2);
});

test('taps see what comes and what leaves', () => {
  const { bridge, ports } = setup([access(1), access(1)]);
  const seen: string[] = [];
  const tap = (name: string): FrameTap => ({
    ingress: (batch, count) => seen.push(`${name} in ${count} ${batch.frameLen[0]}`),
    egress: (batch, list, count) => seen.push(`${name} out ${count} ${batch.frameLen[list[0]]}`),
  });
  bridge.setTap(0, tap('a'));
  bridge.setTap(1, tap('b'));
  ports[0].outgoing.push(frame(BROADCAST, host(0)));
  bridge.forwardBatch(0);
  deepStrictEqual(seen, ['a in 1 60', 'b out 1 60']);
});
