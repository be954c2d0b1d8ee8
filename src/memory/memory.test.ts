import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { afterEach, beforeEach, test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { MAX_MEM_SLOTS } from '../base/limits.ts';
import {
  arena,
  createEventfd,
  createMemfd,
  openFd,
  openFdCount,
  releaseRegion,
  retainRegion,
  socketPair,
  truncate,
} from '../sys/index.ts';
import {
  GuestMemory,
  MemoryTable,
  PrivateMemory,
  type RegionDescription,
  reservedRanges,
  reserveRange,
  SharedRegion,
  translate,
} from './index.ts';

const MIB = 1024 * 1024;

/** Every test gives back what it took. */
let before = { fds: 0, ranges: 0 };
beforeEach(() => (before = { fds: openFdCount(), ranges: reservedRanges() }));
afterEach(() => {
  assert.deepEqual({ fds: openFdCount(), ranges: reservedRanges() }, before);
});

function region(fields: Partial<Record<keyof RegionDescription, number>>): RegionDescription {
  const { guestPhysAddr = 0, userAddr = 0x7f0000000000, sizeBytes = MIB, fdOffset = 0 } = fields;
  return {
    guestPhysAddr: BigInt(guestPhysAddr),
    userAddr: BigInt(userAddr),
    sizeBytes: BigInt(sizeBytes),
    fdOffset: BigInt(fdOffset),
  };
}

test('ranges are apart, aligned, and used again', () => {
  const one = reserveRange(1);
  const two = reserveRange(3 * MIB);
  const three = reserveRange(MIB, 1024 * MIB);
  assert.ok(one.offset > 0);
  assert.ok(two.offset >= one.offset + 4 * MIB);
  assert.equal(three.offset % (1024 * MIB), 0);
  two.close();
  two.close();
  const again = reserveRange(2 * MIB);
  assert.equal(again.offset, two.offset);
  const behind = reserveRange(100 * MIB);
  assert.ok(behind.offset >= again.offset + 4 * MIB);
  for (const range of [one, again, three, behind]) range.close();
  assert.throws(() => reserveRange(arena().sizeBytes), { code: 'ERR_VRING_MEMORY_ARENA' });
});

test('private memory is zeroed, also the second time', () => {
  const { bytes } = arena();
  const one = PrivateMemory.allocate(100_000);
  assert.equal(bytes.subarray(one.offset, one.offset + 100_000).some(Boolean), false);
  bytes.fill(1, one.offset, one.offset + 100_000);
  one.close();
  one.close();
  using two = PrivateMemory.allocate(100_000);
  assert.equal(two.offset, one.offset);
  assert.equal(bytes[two.offset], 0);
});

test('a closed region keeps its place while another thread uses it', async () => {
  const { bytes } = arena();
  const memory = PrivateMemory.allocate(4096);
  bytes[memory.offset] = 42;
  const url = new URL('../sys/index.ts', import.meta.url).href;
  const source = `
    import * as s from ${JSON.stringify(url)};
    import { parentPort, workerData } from 'node:worker_threads';
    const { handle, offset } = workerData;
    s.retainRegion(handle);
    parentPort.postMessage('retained');
    parentPort.once('message', () => {
      parentPort.postMessage(s.arena().bytes[offset]);
      s.releaseRegion(handle);
    });`;
  const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(source)}`), {
    workerData: { handle: memory.handle, offset: memory.offset },
  });
  const exited = once(worker, 'exit'); // may come in the same turn as the last message
  await once(worker, 'message');
  memory.close();
  using other = PrivateMemory.allocate(4096);
  assert.notEqual(other.offset, memory.offset);
  assert.equal(reservedRanges(), before.ranges + 2);
  worker.postMessage('go');
  assert.deepEqual(await once(worker, 'message'), [42]);
  await exited;
  assert.equal(reservedRanges(), before.ranges + 1);
});

test('a shared region starts where its fd offset says', () => {
  const { view, bytes } = arena();
  using fd = createMemfd('m', 8 * MIB);
  const whole = SharedRegion.map(fd.number, region({ sizeBytes: 8 * MIB }));
  for (const fdOffset of [0, 4096, 3 * MIB, 5 * MIB + 8192, 12345]) {
    using part = SharedRegion.map(fd.number, region({ sizeBytes: 4096, fdOffset }));
    view.setUint32(part.offset, 0xc0ffee00 + (fdOffset & 0xff), true);
    assert.equal(view.getUint32(whole.offset + fdOffset, true), 0xc0ffee00 + (fdOffset & 0xff));
    bytes[part.offset + 4095] = 9;
    assert.equal(bytes[whole.offset + fdOffset + 4095], 9);
    const pages = 2 * MIB;
    assert.equal(part.offset % pages, fdOffset % pages, 'huge pages stay possible');
  }
  assert.equal(whole.truncated, false);
  truncate(fd.number, 0);
  assert.equal(bytes[whole.offset], 0);
  assert.equal(whole.truncated, true);
  whole.close();
  whole.close();
  assert.equal(whole.truncated, false);
});

test('bad descriptions are refused with the field and its value', () => {
  using fd = createMemfd('m', MIB);
  const pastTheEnd = new RegExp(
    '^region 1: memory_size 0x100001 \\+ mmap_offset 0x0 ' +
      'is past the end of its fd \\(1048576 bytes\\)$',
  );
  const bad: [RegionDescription, string, string, RegExp][] = [
    [region({ sizeBytes: 0 }), 'SIZE', 'memory_size', /region 1: memory_size is 0/],
    [
      { ...region({}), sizeBytes: 2n ** 64n - 1n },
      'SIZE',
      'memory_size',
      /region 1: memory_size 0xffffffffffffffff is not below 2\^53/,
    ],
    [region({ sizeBytes: MIB + 1 }), 'FD', 'mmap_offset', pastTheEnd],
    [
      region({ fdOffset: 1 }),
      'FD',
      'mmap_offset',
      /memory_size 0x100000 \+ mmap_offset 0x1 is past/,
    ],
    [{ ...region({}), fdOffset: 2n ** 64n - 4096n }, 'FD', 'mmap_offset', /0xfffffffffffff000/],
    [
      { ...region({}), guestPhysAddr: 2n ** 53n - 1n },
      'ADDRESS',
      'guest_phys_addr',
      /0x1fffffffffffff/,
    ],
    [{ ...region({}), guestPhysAddr: 2n ** 64n - 1n }, 'ADDRESS', 'guest_phys_addr', /over 2\^53/],
    [{ ...region({}), userAddr: 2n ** 64n - 4096n }, 'ADDRESS', 'userspace_addr', /over 2\^53/],
  ];
  for (const [description, code, field, message] of bad) {
    assert.throws(() => SharedRegion.map(fd.number, description, 'region 1'), {
      code: `ERR_VRING_MEMORY_${code}`,
      field,
      message,
      recovery: 'reconnect',
    });
  }
});

test('fds that are no memory are refused', () => {
  const [one, two] = socketPair();
  const eventfd = createEventfd('e');
  const device = openFd('/dev/zero', 2);
  const readOnly = openFd('/etc/passwd', 0);
  const expected = { code: 'ERR_VRING_MEMORY_FD', field: 'fd' };
  for (const [fd, message] of [
    [one, /region: its fd is a socket, expected a memfd/],
    [eventfd, /no regular file/],
    [device, /a char/],
    [readOnly, /a file, expected a memfd, or a file of tmpfs or hugetlbfs/],
  ] as const) {
    const sizeBytes = 64;
    const map = () => SharedRegion.map(fd.number, region({ sizeBytes }));
    assert.throws(map, { ...expected, message });
  }
  for (const fd of [one, two, eventfd, device, readOnly]) fd.close();
});

test('a table refuses overlap in either space, and finds what to remove', () => {
  using fd = createMemfd('m', 4 * MIB);
  using table = new MemoryTable();
  const map = (guestPhysAddr: number, userAddr: number) =>
    SharedRegion.map(fd.number, region({ guestPhysAddr, userAddr }));
  table.add(map(MIB, 16 * MIB));
  table.add(map(2 * MIB, 18 * MIB)); // neighbours in GPA
  table.add(map(0, 17 * MIB));
  const gpa = map(3 * MIB - 1, 64 * MIB);
  assert.throws(() => table.add(gpa), {
    code: 'ERR_VRING_MEMORY_OVERLAP',
    field: 'guest_phys_addr',
    message: 'guest_phys_addr range 0x2fffff-0x3fffff overlaps 0x200000-0x300000 of region 1',
  });
  const uva = map(64 * MIB, 15 * MIB + 1);
  assert.throws(() => table.add(uva), {
    code: 'ERR_VRING_MEMORY_OVERLAP',
    field: 'userspace_addr',
  });
  gpa.close();
  uva.close();
  assert.equal(table.regions.length, 3);
  assert.equal(table.totalBytes, 3 * MIB);
  assert.equal(new Set(table.handles()).size, 3);

  const gpaMap = table.gpaMap();
  const [first, second, third] = table.regions;
  assert.equal(translate(gpaMap, MIB + 5, 8), first!.offset + 5);
  assert.equal(translate(gpaMap, 2 * MIB - 4, 4), first!.offset + MIB - 4);
  assert.equal(translate(gpaMap, 2 * MIB - 4, 5), -1, 'neighbours in GPA are apart in the arena');
  assert.equal(translate(table.uvaMap(), 16 * MIB, MIB), first!.offset);
  assert.equal(translate(table.uvaMap(), 17 * MIB, MIB), third!.offset);

  assert.equal(table.remove(region({ guestPhysAddr: MIB, userAddr: 1, sizeBytes: MIB })), null);
  const removed = table.remove(region({ guestPhysAddr: 2 * MIB, userAddr: 18 * MIB }));
  assert.equal(removed, second);
  assert.equal(translate(table.gpaMap(), 2 * MIB, 1), -1);
  removed!.close();
});

test('a table holds 509 regions, and not one more', () => {
  using fd = createMemfd('m', 4096);
  using table = new MemoryTable();
  const map = (i: number) => {
    const at = i * 8192;
    return SharedRegion.map(
      fd.number,
      region({ guestPhysAddr: at, userAddr: at, sizeBytes: 4096 }),
    );
  };
  const started = performance.now();
  for (let i = 0; i < MAX_MEM_SLOTS; i++) table.add(map(i));
  assert.ok(performance.now() - started < 1000);
  assert.equal(translate(table.gpaMap(), 508 * 8192, 4096), table.regions[508]!.offset);
  const extra = map(MAX_MEM_SLOTS);
  assert.throws(() => table.add(extra), { code: 'ERR_VRING_MEMORY_SLOTS' });
  extra.close();
});

test('guest memory is what the back-end will map', () => {
  const { bytes } = arena();
  using guest = GuestMemory.create(MIB - 100, { baseGpa: 0x4000_0000 });
  assert.equal(guest.sizeBytes, MIB);
  const described = guest.backendRegion();
  assert.equal(described.guestPhysAddr, 0x4000_0000n);
  using table = new MemoryTable();
  table.add(SharedRegion.map(described.fd, described));
  bytes[guest.offset + 1000] = 200;
  const seen = translate(table.gpaMap(), guest.baseGpa + 1000, 1);
  assert.equal(translate(table.uvaMap(), guest.baseUva + 1000, 1), seen);
  assert.notEqual(seen, guest.offset + 1000);
  assert.equal(bytes[seen], 200);
});

test('mapping and unmapping leaves the address space as it was', () => {
  const mappings = () => readFileSync('/proc/self/maps', 'utf8').split('\n').length;
  const churn = (rounds: number) => {
    for (let i = 0; i < rounds; i++) {
      using fd = createMemfd('m', 2 * MIB);
      using one = SharedRegion.map(fd.number, region({}));
      using two = SharedRegion.map(fd.number, region({ fdOffset: 4096 }));
      truncate(fd.number, MIB / 2);
      assert.equal(arena().bytes[one.offset + MIB - 1], 0);
      assert.equal(two.truncated, false);
    }
  };
  churn(3);
  const started = mappings();
  churn(1000);
  assert.ok(mappings() <= started + 8, `${started} mappings became ${mappings()}`);
});

test('guest memory of huge pages', (t) => {
  let guest: GuestMemory;
  try {
    guest = GuestMemory.create(3 * MIB, { hugePages: true });
  } catch (error) {
    t.skip(`no huge pages (sysctl vm.nr_hugepages=16): ${(error as Error).message}`);
    return;
  }
  assert.equal(guest.sizeBytes, 4 * MIB);
  // A region may start and end inside a huge page.
  const inside = { ...guest.backendRegion(), sizeBytes: BigInt(MIB), fdOffset: BigInt(2.5 * MIB) };
  using part = SharedRegion.map(guest.fd.number, inside);
  arena().bytes[guest.offset + 2.5 * MIB] = 77;
  assert.equal(arena().bytes[part.offset], 77);
  guest.close();
});

test('regions retained from elsewhere outlive their table', () => {
  using guest = GuestMemory.create(MIB);
  const table = new MemoryTable();
  const mapped = SharedRegion.map(guest.fd.number, guest.backendRegion());
  table.add(mapped);
  const [handle] = table.handles();
  retainRegion(handle!);
  table.close();
  assert.equal(table.regions.length, 0);
  arena().bytes[guest.offset] = 5;
  assert.equal(arena().bytes[mapped.offset], 5);
  releaseRegion(handle!);
});
