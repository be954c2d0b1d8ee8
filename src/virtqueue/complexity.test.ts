/**
 * What the worst driver can make one call of `takeChains` cost: bounded by the batch, whatever the
 * ring, its tables and the memory map look like. Counted in guest descriptors read, not in time.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BATCH, BATCH_SEGMENTS, MAX_CHAIN_DESCRIPTORS } from '../base/limits.ts';
import { ChainBatch } from './chain-batch.ts';
import type { DeviceQueue } from './device-queue.ts';
import { takeChains } from './device.hot.ts';
import { QueuePair } from './driver/queue-pair.ts';
import { faultName } from './faults.ts';

/** Descriptors of lists and tables are read through `q.arena`, four words each. */
function countReads(q: DeviceQueue): () => number {
  let reads = 0;
  const real = q.arena;
  const counting = { getInt32: (at: number) => (reads++, real.getInt32(at, true)) };
  Object.defineProperty(q, 'arena', { value: counting });
  return () => {
    const words = reads;
    reads = 0;
    return words / 4;
  };
}

const MOST = BATCH_SEGMENTS + MAX_CHAIN_DESCRIPTORS + BATCH;

for (const packed of [false, true]) {
  const kind = packed ? 'packed' : 'split';
  const flags = packed ? 0x80 : 0;

  function ring(write: (view: DataView, tableAt: number, tableGpa: number) => void): QueuePair {
    const pair = new QueuePair({ size: 256, packed, indirect: true });
    const view = new DataView(pair.buffer);
    const tableAt = pair.dataGpa - 0x1_4000_0000 + pair.offset;
    write(view, tableAt, pair.dataGpa);
    for (let i = 0; i < 256; i++) {
      const at = pair.config.descOffset + 16 * i;
      view.setBigUint64(at, BigInt(pair.dataGpa), true);
      view.setUint32(at + 8, 16 * MAX_CHAIN_DESCRIPTORS, true);
      view.setUint16(at + (packed ? 14 : 12), flags | 4, true); // INDIRECT
      view.setUint16(at + (packed ? 12 : 14), packed ? i : 0, true);
      if (!packed) view.setUint16(pair.config.availOffset + 4 + 2 * i, i, true);
    }
    if (!packed) view.setUint16(pair.config.availOffset + 2, 256, true);
    return pair;
  }

  for (const len of [0, 1]) {
    test(`the longest legal tables with buffers of ${len} bytes, ${kind}`, () => {
      const pair = ring((view, tableAt, gpa) => {
        for (let i = 0; i < MAX_CHAIN_DESCRIPTORS; i++) {
          view.setBigUint64(tableAt + 16 * i, BigInt(gpa), true);
          view.setUint32(tableAt + 16 * i + 8, len, true);
          const last = i + 1 === MAX_CHAIN_DESCRIPTORS;
          if (!packed) view.setUint16(tableAt + 16 * i + 12, last ? 0 : 1, true);
          if (!packed) view.setUint16(tableAt + 16 * i + 14, i + 1, true);
        }
      });
      const descriptors = countReads(pair.device);
      const batch = new ChainBatch();
      for (let call = 0; call < 8; call++) {
        assert.ok(takeChains(pair.device, batch, BATCH) > 0);
        const count = descriptors();
        assert.ok(count > MAX_CHAIN_DESCRIPTORS, `${count} were counted`);
        assert.ok(count <= MOST, `${count} descriptors in one call`);
      }
    });
  }

  // Tables of packed rings have no links.
  if (!packed)
    test(`every table is a loop, ${kind}`, () => {
      const pair = ring((view, tableAt, gpa) => {
        for (let i = 0; i < MAX_CHAIN_DESCRIPTORS; i++) {
          view.setBigUint64(tableAt + 16 * i, BigInt(gpa), true);
          view.setUint32(tableAt + 16 * i + 8, 1, true);
          view.setUint16(tableAt + 16 * i + 12, 1, true);
          view.setUint16(tableAt + 16 * i + 14, (i + 1) % 7, true);
        }
      });
      const descriptors = countReads(pair.device);
      const code = takeChains(pair.device, new ChainBatch(), BATCH);
      assert.match(faultName(code), /LOOP|TOO_LONG/);
      assert.ok(descriptors() <= MAX_CHAIN_DESCRIPTORS + 2);
    });
}
