/** Queues whose addresses are translated by an IOTLB that learns what it is asked for. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Iotlb, IOTLB_READ, IOTLB_WRITE } from '../memory/index.ts';
import { PACKED_BASE_FRESH } from '../wire/virtio.ts';
import { ChainBatch } from './chain-batch.ts';
import { fillRows } from './chain-segments.hot.ts';
import { DeviceQueue, setAddressMap } from './device-queue.ts';
import { putUsed, takeChains } from './device.hot.ts';
import { DriverBatch, UsedBatch } from './driver/driver-batch.ts';
import { addChains, publish, reapUsed } from './driver/driver.hot.ts';
import { PAIR_BASE_GPA, QueuePair } from './driver/queue-pair.ts';
import { FAULT_DESC_ADDRESS } from './faults.ts';

const PAGE = 4096;
const PAGES = 64;
const BOTH = IOTLB_READ | IOTLB_WRITE;
/** Where the driver says that its pages are: page n of memory is another one. */
const IOVA = 0x7_0000_0000;

/** A front-end with a page table in which neighbours are scattered. */
class Iommu {
  readonly pair: QueuePair;
  readonly iotlb = new Iotlb();
  readonly device: DeviceQueue;
  readonly misses: { iova: number; write: boolean }[] = [];
  /** Arena page of each I/O page, and what it may be used for. */
  readonly table: { offset: number; permissions: number }[];

  constructor(packed: boolean, scatter: boolean) {
    this.pair = new QueuePair({ size: 32, packed, indirect: true, dataBytes: (PAGES + 1) * PAGE });
    const { config, buffer, offset } = this.pair;
    const first = offset + this.pair.dataGpa - PAIR_BASE_GPA;
    const aligned = Math.ceil(first / PAGE) * PAGE;
    this.table = Array.from({ length: PAGES }, (_, n) => ({
      offset: aligned + PAGE * (scatter ? (n * 37) % PAGES : n),
      permissions: BOTH,
    }));
    const base = packed ? PACKED_BASE_FRESH : 0;
    const map = this.iotlb.map();
    this.device = new DeviceQueue({ ...config, base }, map, buffer, { iotlb: true });
  }

  /** Answers a miss, page by page; the tables of the ring are where the pair has them. */
  answer(): void {
    const { missed, missedAt } = this.device;
    assert.ok(missed === 1 || missed === 2, 'there is a miss');
    const iova = Math.floor(missedAt[0]! / PAGE) * PAGE;
    this.misses.push({ iova, write: missed === 2 });
    const page = (iova - IOVA) / PAGE;
    const entry = this.table[page];
    if (entry === undefined) {
      const { start, end, delta } = this.pair.map;
      assert.ok(iova >= start[0]! - PAGE && iova < end[0]!, `0x${iova.toString(16)} is a table`);
      this.iotlb.update({ iova, sizeBytes: PAGE, offset: iova + delta[0]!, permissions: BOTH });
    } else {
      this.iotlb.update({ iova, sizeBytes: PAGE, ...entry });
    }
    setAddressMap(this.device, this.iotlb.map());
  }

  /** Where each byte of an I/O range is. */
  bytesOf(iova: number, len: number): number[] {
    return Array.from({ length: len }, (_, i) => {
      const at = iova + i - IOVA;
      return this.table[Math.floor(at / PAGE)]!.offset + (at % PAGE);
    });
  }
}

function segmentBytes(batch: ChainBatch, first: number, count: number): number[] {
  const bytes: number[] = [];
  for (let s = first; s < first + count; s++) {
    for (let i = 0; i < batch.segLen[s]!; i++) bytes.push(batch.segOffset[s]! + i);
  }
  return bytes;
}

for (const packed of [false, true]) {
  const kind = packed ? 'packed' : 'split';
  for (const scatter of [false, true]) {
    test(`${kind}: every chain comes, one miss a page, pages ${scatter ? '' : 'not '}scattered`, () => {
      const iommu = new Iommu(packed, scatter);
      const { pair, device, misses } = iommu;
      const out = new DriverBatch();
      let at = IOVA;
      const buffers: { gpa: number; len: number }[][][] = [];
      for (let n = 0; n < 12; n++) {
        const next = (len: number) => ({ gpa: (at += 777) - 777, len });
        const reads = [next(600), next(5000)].slice(0, 1 + (n % 2));
        const writes = n % 3 === 0 ? [] : [next(9000)];
        at += 9000;
        buffers.push([reads, writes]);
        out.addChain(reads, writes, n % 4 === 1);
      }
      assert.ok(at < IOVA + PAGES * PAGE);
      const batch = new ChainBatch(64, 1024, true);
      const back = new UsedBatch();
      let done = 0;
      for (let turns = 0; done < 36; turns++) {
        if (done % 12 === 0 && pair.driver.outstanding === 0) {
          assert.equal(addChains(pair.driver, out, 0, 12), 12);
          publish(pair.driver);
        }
        assert.ok(turns < 300, 'it gets on');
        const count = takeChains(device, batch, 64);
        assert.ok(count >= 0, `a miss is no fault: ${count}`);
        if (batch.unfilled !== 0) fillRows(batch, count);
        for (let i = 0; i < count; i++) {
          const [reads, writes] = buffers[done++ % 12]!;
          const wanted = [...reads!, ...writes!].flatMap(({ gpa, len }) => iommu.bytesOf(gpa, len));
          const segs = batch.readSegs[i]! + batch.writeSegs[i]!;
          assert.deepEqual(segmentBytes(batch, batch.segFirst[i]!, segs), wanted);
        }
        putUsed(device, batch, 0, count);
        assert.equal(reapUsed(pair.driver, back, 64), count);
        if (done % 12 !== 0 || count === 0) iommu.answer();
      }
      const asked = misses.map(({ iova }) => iova);
      assert.equal(new Set(asked).size, asked.length, 'no page twice');
      assert.equal(device.fault, 0);
    });
  }

  test(`${kind}: a page that may only be read is a miss for who would write it`, () => {
    const iommu = new Iommu(packed, true);
    const { pair, device } = iommu;
    const batch = new ChainBatch(64, 1024, true);
    const out = new DriverBatch();
    iommu.table[0]!.permissions = IOTLB_READ;
    iommu.table[1]!.permissions = IOTLB_WRITE;
    const readable = [{ gpa: IOVA + 8, len: 100 }];
    const writable = [{ gpa: IOVA + PAGE + 8, len: 100 }];
    for (let n = 0; n < 4; n++) out.addChain(readable, []);
    for (let n = 0; n < 4; n++) out.addChain([], writable);
    out.addChain([], readable);
    addChains(pair.driver, out, 0, 9);
    publish(pair.driver);
    assert.equal(takeChains(device, batch, 64), 0);
    iommu.answer();
    assert.equal(takeChains(device, batch, 64), 4, 'up to what it does not know');
    assert.equal(batch.uniform, 0, 'not known to be uniform, for it ended early');
    iommu.answer();
    assert.equal(takeChains(device, batch, 64), 4);
    assert.deepEqual(
      [device.missed, device.missedAt[0]],
      [2, IOVA + 8],
      'known, and not for writing',
    );
    assert.equal(takeChains(device, batch, 64), 0);
    iommu.table[0]!.permissions = BOTH;
    iommu.answer();
    assert.equal(takeChains(device, batch, 64), 1);
    assert.deepEqual(
      iommu.misses.map(({ write }) => write),
      [false, true, true],
    );
  });

  test(`${kind}: single buffers on scattered pages are a uniform batch`, () => {
    const iommu = new Iommu(packed, true);
    const { pair, device } = iommu;
    const batch = new ChainBatch(64, 1024, true);
    const back = new UsedBatch();
    const rights = [IOTLB_READ, IOTLB_WRITE, BOTH];
    for (let round = 0; round < 12; round++) {
      const write = round % 2 === 1;
      const out = new DriverBatch();
      const wanted: number[] = [];
      for (let n = 0; n < 16; n++) {
        const page = (n * 5 + round) % 20;
        iommu.table[page]!.permissions = rights[page % 3]! | (write ? IOTLB_WRITE : IOTLB_READ);
        const buffer = [{ gpa: IOVA + PAGE * page + n, len: 64 }];
        out.addChain(write ? [] : buffer, write ? buffer : []);
        wanted.push(iommu.table[page]!.offset + n);
      }
      addChains(pair.driver, out, 0, 16);
      publish(pair.driver);
      const got: number[] = [];
      while (got.length < 16) {
        const count = takeChains(device, batch, 64);
        assert.ok(count >= 0);
        if (count === 16) assert.equal(batch.uniform, write ? 2 : 1);
        if (batch.unfilled !== 0) fillRows(batch, count);
        for (let i = 0; i < count; i++) {
          const segs = write ? batch.writeSegs[i] : batch.readSegs[i];
          assert.equal(segs, 1);
          got.push(batch.segOffset[batch.segFirst[i]!]!);
        }
        putUsed(device, batch, 0, count);
        if (got.length < 16) iommu.answer();
      }
      assert.deepEqual(got, wanted);
      assert.equal(reapUsed(pair.driver, back, 64), 16);
    }
  });

  test(`${kind}: what was invalidated is asked for again`, () => {
    const iommu = new Iommu(packed, true);
    const { pair, device, iotlb } = iommu;
    const batch = new ChainBatch();
    const out = new DriverBatch();
    out.addChain([{ gpa: IOVA, len: 10 }], []);
    for (const moved of [3, 9]) {
      addChains(pair.driver, out, 0, 1);
      publish(pair.driver);
      iotlb.invalidate(IOVA, PAGE);
      setAddressMap(device, iotlb.map());
      iommu.table[0]!.offset = iommu.table[moved]!.offset;
      assert.equal(takeChains(device, batch, 1), 0);
      iommu.answer();
      assert.equal(takeChains(device, batch, 1), 1);
      assert.equal(batch.segOffset[0], iommu.table[moved]!.offset);
      putUsed(device, batch, 0, 1);
      reapUsed(pair.driver, new UsedBatch(), 1);
    }
  });

  test(`${kind}: an address that no translation can have is a fault`, () => {
    const iommu = new Iommu(packed, false);
    const batch = new ChainBatch();
    const out = new DriverBatch();
    out.addChain([{ gpa: 2 ** 60, len: 10 }], []);
    addChains(iommu.pair.driver, out, 0, 1);
    publish(iommu.pair.driver);
    assert.equal(takeChains(iommu.device, batch, 1), FAULT_DESC_ADDRESS);
  });
}
