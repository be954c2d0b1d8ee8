import assert from 'node:assert/strict';
import { afterEach, beforeEach, test } from 'node:test';
import type { PlaneContext } from '../../runtime/data-plane.ts';
import { Epoll } from '../../sys/epoll.ts';
import { createEventfd, signalEventfd } from '../../sys/eventfd.ts';
import type { Fd } from '../../sys/fd.ts';
import type { UplinkPlane } from '../../uplinks/index.ts';
import { UNWATCHED_FRAMES, UplinkWatch } from './uplink-watch.ts';

const TOKEN = 7;
let epoll: Epoll;
let queues: Fd[];
let watched: Set<number>;

beforeEach(() => {
  epoll = new Epoll();
  queues = [createEventfd('queue 0'), createEventfd('queue 1')];
  watched = new Set();
});

afterEach(() => {
  for (const fd of queues) fd.close();
  epoll.close();
});

function makeWatch(spins = true): UplinkWatch {
  const context = {
    watch(fd: number, token: number) {
      epoll.add(fd, token, { edge: true });
      watched.add(fd);
    },
    unwatch(fd: number) {
      epoll.remove(fd);
      watched.delete(fd);
    },
  } as PlaneContext;
  const plane = { fds: queues.map((fd) => fd.number), spins } as unknown as UplinkPlane;
  return new UplinkWatch(context, plane, TOKEN);
}

/** Tokens that are reported now. */
function reported(): number[] {
  const tokens = new Int32Array(8);
  return [...tokens.subarray(0, epoll.wait(tokens, 0))];
}

test('an uplink that has frames all the time is not watched until it goes to sleep', () => {
  const watch = makeWatch();
  assert.equal(watched.size, 2);
  assert.equal(watch.worked(UNWATCHED_FRAMES - 1), UNWATCHED_FRAMES - 1);
  assert.equal(watched.size, 2);
  assert.equal(watch.worked(1), 1);
  assert.equal(watched.size, 0);
  watch.worked(UNWATCHED_FRAMES);
  watch.begin();
  assert.equal(watched.size, 2);
  watch.worked(UNWATCHED_FRAMES - 1);
  watch.begin();
  watch.worked(UNWATCHED_FRAMES - 1);
  assert.equal(watched.size, 2, 'frames of one waking are counted, not those of all');
});

test('what came unwatched is reported once it is watched', () => {
  const watch = makeWatch();
  watch.worked(UNWATCHED_FRAMES);
  signalEventfd(queues[1]!.number);
  assert.deepEqual(reported(), []);
  watch.begin();
  assert.deepEqual(reported(), [TOKEN]);
  assert.deepEqual(reported(), [], 'by its edge');
});

test('one that is found empty at once stays watched', () => {
  const watch = makeWatch(false);
  watch.worked(10 * UNWATCHED_FRAMES);
  assert.equal(watched.size, 2);
});

test('an end before the descriptors are closed, at any time and twice', () => {
  const watch = makeWatch();
  watch.end();
  watch.end();
  assert.equal(watched.size, 0);
  watch.begin();
  watch.worked(UNWATCHED_FRAMES);
  watch.end();
  assert.equal(watched.size, 0);
});

test('descriptors are watched together, or none of them', () => {
  const watch = makeWatch();
  watch.end();
  const second = queues[1]!.number;
  epoll.add(second, 99); // the kernel refuses it, as it does beyond max_user_watches
  assert.throws(() => watch.begin(), /EEXIST/);
  assert.equal(watched.size, 0);
  epoll.remove(second);
  watch.begin();
  assert.equal(watched.size, 2);
});
