import { strictEqual } from 'node:assert';
import { FRAME_BATCH_BYTES, FrameBatch, HEADER_SLOT_START } from './frame-batch.ts';
import { OFFLOAD_SCRATCH_BYTES, SoftwareOffload } from './offload.ts';

/** What it costs to finish in software what a receiver does not accept. Nanoseconds per frame. */
const view = new DataView(new ArrayBuffer(OFFLOAD_SCRATCH_BYTES + 65536));
const bytes = new Uint8Array(view.buffer);

/** One TCP over IPv4 frame of the given length, its rest in one segment. */
function source(lenBytes: number, gsoSize: number): FrameBatch {
  const batch = new FrameBatch({ buffer: new ArrayBuffer(FRAME_BATCH_BYTES), at: 0 });
  const header = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6];
  batch.headers.set(header, HEADER_SLOT_START);
  batch.headers[HEADER_SLOT_START + 46] = 0x50;
  batch.headerAt[0] = HEADER_SLOT_START;
  batch.headerLen[0] = 64;
  batch.frameLen[0] = lenBytes;
  batch.segCount[0] = lenBytes > 64 ? 1 : 0;
  batch.segOffset[0] = OFFLOAD_SCRATCH_BYTES;
  batch.segLen[0] = lenBytes - 64;
  batch.offload[0] = 1;
  batch.csumStart[0] = 34;
  batch.csumOffset[0] = 16;
  batch.gsoType[0] = gsoSize === 0 ? 0 : 1;
  batch.gsoSize[0] = gsoSize;
  return batch;
}

function run(lenBytes: number, gsoSize: number, accepts: number, rounds: number): number {
  const offload = new SoftwareOffload(view, bytes, 0);
  const batch = source(lenBytes, gsoSize);
  let frames = 0;
  const started = process.hrtime.bigint();
  for (let n = 0; n < rounds; n++) {
    strictEqual(offload.begin(batch, 0, accepts, 1514), 0);
    while (!offload.emit()) {
      frames += offload.batch.count;
      offload.reset();
    }
    frames += offload.batch.count;
    offload.reset();
  }
  const elapsed = Number(process.hrtime.bigint() - started);
  strictEqual(frames, rounds * (gsoSize === 0 ? 1 : Math.ceil((lenBytes - 54) / gsoSize)));
  return elapsed / rounds;
}

const CASES: [name: string, lenBytes: number, gsoSize: number, accepts: number, rounds: number][] =
  [
    ['checksum of 64 bytes', 64, 0, 0, 200_000],
    ['checksum of 1514 bytes', 1514, 0, 0, 100_000],
    ['64 KB into 1448-byte segments', 54 + 45 * 1448, 1448, 0, 2_000],
    ['same, checksums left to the receiver', 54 + 45 * 1448, 1448, 1, 2_000],
  ];

for (const [name, ...rest] of CASES) {
  const times = Array.from({ length: 7 }, () => run(...rest)).sort((a, b) => a - b);
  console.log(`${name.padEnd(38)} ${times[3].toFixed(0)} ns (best ${times[0].toFixed(0)})`);
}
