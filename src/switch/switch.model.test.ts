import { deepStrictEqual, strictEqual } from 'node:assert';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { COUNTER_NAMES, readCounters } from './counters.ts';
import { FakeArena, FakePort } from './fake-port.ts';
import { sweepMacs } from './mac-table.hot.ts';
import { MacTable } from './mac-table.ts';
import { SWITCH_SCRATCH_BYTES } from './switch.ts';
import { Switch } from './switch.ts';
import type { PortVlan } from './vlan.ts';

/** The switch against a model that handles one frame at a time and is written to be read. */
const AGEING_S = 100;
const PORTS = 5;

type Sent = { port: number; dst: number; src: number; tci: number | null; size: number };
type Step = { sent: Sent[]; later: number; flush: number | null };

class Model {
  readonly delivered: Buffer[][] = Array.from({ length: PORTS }, () => []);
  readonly #vlans: PortVlan[];
  readonly #macLimit: number;
  readonly #macs = new Map<string, { port: number; seen: number }>();
  dropped = 0;
  now = 0;

  constructor(vlans: PortVlan[], macLimit: number) {
    this.#vlans = vlans;
    this.#macLimit = macLimit;
  }

  flush(port: number): void {
    for (const [key, entry] of this.#macs) if (entry.port === port) this.#macs.delete(key);
  }

  /** What was swept counts against no limit any more. */
  sweep(): void {
    for (const [key, { seen }] of this.#macs) {
      if (this.now - seen > AGEING_S) this.#macs.delete(key);
    }
  }

  send(sent: Sent): void {
    const vid = this.#classify(sent);
    if (vid === null || sent.size < 14 || (sent.src & 1) === 1) {
      this.dropped++;
      return;
    }
    if (sent.src !== 0) this.#learn(`${sent.src}/${vid}`, sent.port);
    const known = this.#macs.get(`${sent.dst}/${vid}`);
    const alive = known !== undefined && this.now - known.seen <= AGEING_S;
    let targets: number[] = [];
    if ((sent.dst & 1) === 0 && alive) targets = known.port === sent.port ? [] : [known.port];
    else targets = this.#members(vid).filter((port) => port !== sent.port);
    if (targets.length === 0) this.dropped++;
    for (const port of targets) this.delivered[port].push(this.#tagged(sent, vid, port));
  }

  #classify({ port, tci }: Sent): number | null {
    const vlan = this.#vlans[port];
    const native = vlan.mode === 'access' ? vlan.vid : vlan.native;
    if (tci === null || (tci & 0xfff) === 0) return native;
    if (vlan.mode === 'access') return null;
    const vid = tci & 0xfff;
    return vid !== 4095 && this.#members(vid).includes(port) ? vid : null;
  }

  #members(vid: number): number[] {
    const isMember = (vlan: PortVlan): boolean => {
      if (vlan.mode === 'access') return vlan.vid === vid;
      return vlan.native === vid || vlan.allowed === 'all' || vlan.allowed.includes(vid);
    };
    return [...this.#vlans.keys()].filter((port) => isMember(this.#vlans[port]));
  }

  #learn(key: string, port: number): void {
    const known = this.#macs.get(key);
    const count = [...this.#macs.values()].filter((entry) => entry.port === port).length;
    if (known?.port !== port && count >= this.#macLimit) return;
    this.#macs.set(key, { port, seen: this.now });
  }

  #tagged(sent: Sent, vid: number, port: number): Buffer {
    const vlan = this.#vlans[port];
    const untagged = vlan.mode === 'access' ? vlan.vid : vlan.native;
    const plain = encode({ ...sent, tci: null, size: sent.size - (sent.tci === null ? 0 : 4) });
    if (untagged === vid) return plain;
    const tag = Buffer.alloc(4);
    tag.writeUInt16BE(0x8100, 0);
    tag.writeUInt16BE(((sent.tci ?? 0) & 0xf000) | vid, 2);
    return Buffer.concat([plain.subarray(0, 12), tag, plain.subarray(12)]);
  }
}

/** The frame's bytes; a tag moves the body, it does not change it. */
function encode({ dst, src, tci, size }: Sent): Buffer {
  const bytes = Buffer.alloc(size);
  const put = Buffer.alloc(size + 32);
  put.set(dst === 1 ? [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] : [dst, 0, 0, 0, 0, dst]);
  put.set([src, 0, 0, 0, 0, src], 6);
  if (tci !== null) {
    put.writeUInt16BE(0x8100, 12);
    put.writeUInt16BE(tci, 14);
  }
  const body = tci === null ? 12 : 16;
  put.set([0x88, 0xb5], body);
  for (let i = 2; i < size; i++) put[body + i] = i & 0xff;
  put.copy(bytes, 0, 0, size);
  return bytes;
}

const vid = fc.integer({ min: 1, max: 4 });
const vlan: fc.Arbitrary<PortVlan> = fc.oneof(
  fc.record({ mode: fc.constant('access' as const), vid }),
  fc.record({
    mode: fc.constant('trunk' as const),
    allowed: fc.oneof(fc.constant('all' as const), fc.uniqueArray(vid)),
    native: fc.option(vid),
  }),
);
const sent: fc.Arbitrary<Sent> = fc.record({
  port: fc.nat(PORTS - 1),
  dst: fc.constantFrom(1, 2, 4, 6, 8, 10, 3),
  src: fc.constantFrom(2, 4, 6, 8, 10, 0, 3),
  tci: fc.constantFrom(null, null, 0, 0xe000, 1, 0x5002, 3, 4095),
  size: fc.constantFrom(18, 60, 64, 68, 300, 1514),
});
const step: fc.Arbitrary<Step> = fc.record({
  sent: fc.array(sent, { maxLength: 30 }),
  later: fc.integer({ min: 0, max: 60 }),
  flush: fc.option(fc.nat(PORTS - 1), { freq: 6 }),
});

test('forwards as the model does: learning, ageing, limits, VLANs, flood sets', () => {
  const vlans = fc.array(vlan, { minLength: PORTS, maxLength: PORTS });
  fc.assert(
    fc.property(vlans, fc.array(step, { maxLength: 8 }), fc.nat(4), (rules, steps, macLimit) => {
      const arena = new FakeArena(1 << 19, SWITCH_SCRATCH_BYTES);
      const { view, bytes } = arena;
      const macTable = MacTable.create({ capacity: 100, ageingSeconds: AGEING_S });
      const bridge = new Switch({ view, bytes, scratchAt: 0, macTable });
      const model = new Model(rules, macLimit);
      const ports = rules.map((rule, index) => {
        const port = new FakePort(arena);
        port.maxFrameBytes = 1600;
        bridge.addPort(index, port, { vlan: rule, macLimit, reflect: false });
        return port;
      });
      for (const { sent: frames, later, flush } of steps) {
        for (const port of ports.keys()) {
          const ours = frames.filter((frame) => frame.port === port);
          ports[port].outgoing.push(...ours.map((frame) => ({ bytes: encode(frame) })));
          for (const frame of ours) model.send(frame);
          bridge.forwardBatch(port);
        }
        model.now += later;
        bridge.tick(model.now);
        sweepMacs(macTable.cells, macTable.head, macTable.learned, 256); // all of it
        model.sweep();
        if (flush !== null) {
          macTable.flush(flush);
          model.flush(flush);
        }
      }
      for (const [index, port] of ports.entries()) {
        const got = port.delivered.map((frame) => Buffer.from(frame.bytes).toString('hex'));
        deepStrictEqual(
          got,
          model.delivered[index].map((frame) => frame.toString('hex')),
        );
      }
      let drops = 0;
      for (let port = 0; port < PORTS; port++) {
        const counters = readCounters(bridge.counters, port);
        for (const name of COUNTER_NAMES) if (name.startsWith('drop')) drops += counters[name];
      }
      strictEqual(drops, model.dropped);
    }),
    { numRuns: 300 },
  );
});
