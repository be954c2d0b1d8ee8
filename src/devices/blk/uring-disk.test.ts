/**
 * A disk through io_uring in its plane: the plane sleeps whenever nothing is awake, as a worker
 * does, and is woken by the ring's completions alone.
 */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { openFileImage } from '../../storage/index.ts';
import { Epoll } from '../../sys/index.ts';
import * as blk from '../../wire/virtio-blk.ts';
import { DiskFixture, type BlkFixtureQueue } from './disk-fixture.ts';

const folder = mkdtempSync(join(tmpdir(), 'vring-uring-disk-'));
after(() => rmSync(folder, { recursive: true }));

const KICK_FD = 1000; // any number: the test kicks by calling `ready`
const DISK_BYTES = 4 << 20;
let files = 0;

type Request = { readonly id: number; readonly status: number; readonly data: number };

function begin(queue: BlkFixtureQueue, isWrite: boolean, sector: number, value: number): Request {
  const bytes = new Uint8Array(4096).fill(isWrite ? value : 0xee);
  const type = isWrite ? blk.VIRTIO_BLK_T_OUT : blk.VIRTIO_BLK_T_IN;
  const header = queue.header(type, BigInt(sector));
  const [data, status] = [queue.put(bytes), queue.status()];
  const pieces = isWrite
    ? ([[header, data], [status]] as const)
    : ([[header], [data, status]] as const);
  const id = queue.add(pieces[0], pieces[1], true);
  return { id, status: status.gpa, data: data.gpa };
}

for (const direct of ['off', 'on'] as const) {
  test(`O_DIRECT ${direct}: a sleeping plane is woken by completions, none is lost`, () => {
    const path = join(folder, `disk${files++}.img`);
    writeFileSync(path, '');
    truncateSync(path, DISK_BYTES);
    const image = openFileImage({ path, uring: 'on', direct });
    const f = new DiskFixture({ image, kickFd: KICK_FD });
    const queue = f.queues[0]!;
    const epoll = new Epoll();
    const [completionFd, completionToken] = [...f.watched].find(([fd]) => fd !== KICK_FD)!;
    epoll.add(completionFd, completionToken, { edge: true });
    const tokens = new Int32Array(4);
    let sleeps = 0;
    const finish = (count: number): void => {
      const back = new Set<number>();
      f.plane.ready(f.watched.get(KICK_FD)!, performance.now());
      for (let round = 0; back.size < count; round++) {
        assert.ok(round < 100_000, `${back.size} of ${count} came back`);
        f.plane.poll(performance.now());
        for (const id of queue.reap().keys()) back.add(id);
        if (back.size === count || f.plane.awake > 0) continue;
        sleeps++;
        // A wait may end early: the kernel makes a thread of the ring by interrupting ours.
        let ready = 0;
        for (let tries = 0; ready === 0 && tries < 50; tries++) ready = epoll.wait(tokens, 100);
        assert.equal(ready, 1, 'a sleeping plane with requests is woken');
        f.plane.ready(tokens[0]!, performance.now());
      }
    };
    for (let round = 0; round < 20; round++) {
      const depth = 1 + (round % 12);
      const places = Array.from({ length: depth }, (_, i) => (round * 12 + i) * 8);
      const writes = places.map((sector) => begin(queue, true, sector, round + 1));
      finish(depth);
      const reads = places.map((sector) => begin(queue, false, sector, 0));
      finish(depth);
      for (const request of [...writes, ...reads])
        assert.equal(queue.read(request.status, 1)[0], 0);
      for (const { data } of reads) {
        assert.ok(
          queue.read(data, 4096).every((byte) => byte === round + 1),
          `round ${round}`,
        );
      }
      assert.equal(f.request(blk.VIRTIO_BLK_T_GET_ID, 0n, new Uint8Array(0), 20).status, 0);
    }
    // What is done within `submit` needs nobody; with a medium below there is something to wait for.
    // On a busy machine it may be there each time that somebody looks.
    for (let tries = 0; direct === 'on' && sleeps === 0; tries++) {
      assert.ok(tries < 5000, 'the plane slept');
      begin(queue, true, 4096, 1);
      finish(1);
    }
    assert.equal(readFileSync(path)[12 * 8 * 512], 2);
    for (let rest = 0; f.plane.awake > 0; rest++) {
      assert.ok(rest < 10_000, 'an idle plane falls asleep');
      f.plane.poll(performance.now());
    }
    epoll.close();
    f.close();
  });
}
