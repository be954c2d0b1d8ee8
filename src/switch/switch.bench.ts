import { strictEqual } from 'node:assert';
import {
  FRAME_BATCH_BYTES,
  FrameBatch,
  HEADER_SLOT_BYTES,
  HEADER_SLOT_START,
} from './frame-batch.ts';
import { SWITCH_SCRATCH_BYTES, type PortPlane, Switch } from './index.ts';
import { RX_FRAMES, TX_FRAMES } from './counters.ts';

/**
 * What the switch itself costs per frame: ports that have 64 frames whenever they are asked and
 * swallow everything, so that no byte is copied. Prints nanoseconds per frame, median of rounds.
 */
class BenchPort implements PortPlane {
  accepts = 0;
  maxFrameBytes = 1514;
  ready = true;
  delivered = 0;
  readonly #sizeBytes: number;
  readonly #targets: Int32Array;
  readonly #sources: Int32Array;

  constructor(sizeBytes: number, targets: Int32Array, sources: Int32Array) {
    this.#sizeBytes = sizeBytes;
    this.#targets = targets;
    this.#sources = sources;
  }

  receive(batch: FrameBatch): number {
    const count = batch.capacity;
    const { headerView } = batch;
    for (let i = 0; i < count; i++) {
      const at = i * HEADER_SLOT_BYTES + HEADER_SLOT_START;
      headerView.setUint16(at, 0x0200);
      headerView.setInt32(at + 2, this.#targets[i]);
      headerView.setUint16(at + 6, 0x0200);
      headerView.setInt32(at + 8, this.#sources[i]);
      headerView.setUint16(at + 12, 0x0800);
      batch.headerAt[i] = at;
      batch.headerLen[i] = 64;
      batch.frameLen[i] = this.#sizeBytes;
      batch.offload[i] = 0;
      batch.gsoType[i] = 0;
      batch.segCount[i] = 0;
    }
    return count;
  }

  release(_batch: FrameBatch): void {}

  transmit(_batch: FrameBatch, _list: Int32Array, count: number): number {
    this.delivered += count;
    return count;
  }

  flush(): void {}
}

const ADDRESS = 0x02000000;
const settings = { vlan: { mode: 'access', vid: 1 }, macLimit: 4096, reflect: false } as const;

const scratchBatch = new FrameBatch({ buffer: new ArrayBuffer(FRAME_BATCH_BYTES), at: 0 });

type Case = {
  name: string;
  ports: number;
  target: (i: number) => number;
  source: (i: number) => number;
  reflect?: boolean;
};

const CASES: Case[] = [
  { name: 'receive alone (fake port)', ports: 0, target: () => ADDRESS + 1, source: () => ADDRESS },
  { name: 'reflect', ports: 2, target: () => 1, source: () => 2, reflect: true },
  { name: 'unicast, one flow', ports: 2, target: () => ADDRESS + 1, source: () => ADDRESS },
  {
    name: 'unicast, 64 flows to one port',
    ports: 2,
    target: (i) => ADDRESS + 0x10000 + i,
    source: (i) => ADDRESS + i,
  },
  {
    name: 'unicast, 64 flows to 8 ports',
    ports: 9,
    target: (i) => ADDRESS + 0x10000 * (1 + (i & 7)),
    source: (i) => ADDRESS + i,
  },
  { name: 'flood to 8 ports', ports: 9, target: () => ADDRESS + 0xffffff, source: () => ADDRESS },
];

function run(test: Case): number {
  const view = new DataView(new ArrayBuffer(SWITCH_SCRATCH_BYTES));
  const bytes = new Uint8Array(view.buffer);
  const table = new Switch({ view, bytes, scratchAt: 0 });
  const targets = Int32Array.from({ length: 64 }, (_, i) => test.target(i));
  const sources = Int32Array.from({ length: 64 }, (_, i) => test.source(i));
  const ports: BenchPort[] = [];
  for (let p = 0; p < Math.max(1, test.ports); p++) {
    ports.push(new BenchPort(64, targets, sources));
    table.addPort(p, ports[p], { ...settings, reflect: test.reflect ?? false });
  }
  for (let p = 1; p < ports.length; p++) {
    for (let i = 0; i < 64; i++) {
      const lo = (ADDRESS + 0x10000 * p + i) >>> 0;
      const text = lo
        .toString(16)
        .padStart(8, '0')
        .replace(/(..)(?=.)/g, '$1:');
      if (!text.startsWith('02:ff')) table.macTable.learn(`02:00:${text}`, 1, p, 4096);
    }
  }
  if (ports.length > 1) table.macTable.learn('02:00:02:00:00:01', 1, 1, 4096);
  const rounds = 200_000;
  const started = process.hrtime.bigint();
  if (test.ports === 0) {
    for (let i = 0; i < rounds; i++) ports[0].receive(scratchBatch);
  } else {
    for (let i = 0; i < rounds; i++) table.forwardBatch(0);
    strictEqual(table.counters[RX_FRAMES], rounds * 64);
    const sent = ports.reduce((sum, port) => sum + port.delivered, 0);
    strictEqual(sent, rounds * 64 * (test.name.startsWith('flood') ? 8 : 1));
    if (test.reflect) strictEqual(table.counters[TX_FRAMES], rounds * 64);
  }
  return Number(process.hrtime.bigint() - started) / (rounds * 64);
}

for (const test of CASES) {
  const times = Array.from({ length: 7 }, () => run(test)).sort((a, b) => a - b);
  console.log(
    `${test.name.padEnd(32)} ${times[3].toFixed(1)} ns/frame (best ${times[0].toFixed(1)})`,
  );
}
