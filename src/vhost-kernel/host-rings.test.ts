/** What the kernel is told, in which order, by a device that writes it down. */
import { deepEqual, equal, match, ok, rejects, throws } from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { SysError, type VringError } from '../base/errors.ts';
import { GuestMemory } from '../memory/index.ts';
import { arenaHostAddress, createEventfd, createMemfd, drainEventfd } from '../sys/index.ts';
import { HostIotlb } from './host-iotlb.ts';
import { HostRings, type RingCalls } from './host-rings.ts';
import type { VhostDevice } from './vhost-device.ts';

const SIZE = 256;

/** One device of two rings in 1 MiB of memory at guest address 1 GiB. */
function setUp(t: TestContext) {
  const calls: string[] = [];
  const told: Record<string, unknown> = {};
  const write =
    (name: string) =>
    (...args: unknown[]): void => {
      calls.push(`${name}(${typeof args[0] === 'number' ? args[0] : ''})`);
      told[name] = args.at(-1);
    };
  const device: RingCalls = {
    path: '/dev/fake',
    setMemTable: write('memory'),
    setLogBase: write('log'),
    setVringNum: write('num'),
    setVringAddr: write('addr'),
    setVringBase: write('base'),
    getVringBase: (index) => (calls.push(`getBase(${index})`), 7),
    setVringKick: write('kick'),
    setVringCall: write('call'),
    setVringErr: write('err'),
    iotlb: { update: write('update'), invalidate: write('invalidate') },
  };
  /** Starts that fail as the kernel's do while a translation is missing. */
  const failing = { starts: 0 };
  const places = [0, 1].map((index) => ({ device, index }));
  const rings = new HostRings('fake', places, (index, on) => {
    if (on && failing.starts-- > 0) throw new SysError('ioctl(START)', 14, 'EFAULT', 'fake');
    calls.push(`${on ? 'start' : 'stop'}(${index})`);
  });
  const memory = GuestMemory.create(1 << 20, { baseGpa: 0x4000_0000 });
  const kick = createEventfd('kick');
  t.after(() => {
    rings.close();
    memory.close();
    kick.close();
  });
  const uva = BigInt(memory.baseUva);
  const addresses = { descUva: uva, availUva: uva + 0x1000n, usedUva: uva + 0x2000n };
  const take = (): string[] => calls.splice(0);
  const prepare = async (index = 0): Promise<void> => {
    await rings.setMemTable([memory.backendRegion()]);
    rings.setVringNum(index, SIZE);
    rings.setVringBase(index, 0);
    rings.setVringAddr(index, addresses, null);
  };
  return { rings, memory, kick, addresses, take, told, prepare, failing, device };
}

test('a ring runs while it is enabled and has its kick', async (t) => {
  const { rings, kick, take, prepare } = setUp(t);
  await prepare();
  deepEqual(take(), ['memory()', 'num(0)', 'base(0)', 'addr(0)']);
  await rings.setVringEnable(0, true);
  deepEqual(take(), []);
  await rings.setVringKick(0, kick.number);
  deepEqual(take(), ['kick(0)', 'start(0)']);
  const call = createEventfd('call');
  rings.setVringCall(0, call.number);
  equal(drainEventfd(call.number), 1, 'a call may have been lost before');
  call.close();
  await rings.setVringEnable(0, false);
  await rings.setVringEnable(0, true);
  deepEqual(take(), ['call(0)', 'stop(0)', 'start(0)']);
  equal(rings.getVringBase(0), 7);
  await rings.setVringEnable(0, false);
  await rings.setVringEnable(0, true);
  deepEqual(take(), ['stop(0)', 'getBase(0)'], 'stopped until it gets its kick again');
  await rejects(rings.setVringKick(0, null), { code: 'ERR_VRING_KERNEL_LACKS' });
  throws(() => rings.setVringNum(2, SIZE), {
    code: 'ERR_VRING_RING_INDEX',
    message: 'fake has no vring 2: its vrings are 0 to 1',
  });
});

test('addresses are ours; those of the front-end must lie in one region', async (t) => {
  const { rings, memory, addresses, told, prepare } = setUp(t);
  throws(() => rings.setVringAddr(0, addresses, null), { code: 'ERR_VRING_RING_SIZE' });
  rings.setVringNum(0, SIZE);
  throws(() => rings.setVringAddr(0, addresses, null), {
    code: 'ERR_VRING_MEMORY_ADDRESS',
    message: /has no memory table yet/,
  });
  await prepare();
  const { desc, avail, used } = told['addr'] as Record<string, bigint>;
  deepEqual([avail! - desc!, used! - desc!], [0x1000n, 0x2000n]);
  ok(desc! > arenaHostAddress());
  ok(desc! !== addresses.descUva);
  const end = BigInt(memory.baseUva + memory.sizeBytes);
  throws(() => rings.setVringAddr(0, { ...addresses, usedUva: end - 16n }, null), {
    code: 'ERR_VRING_MEMORY_ADDRESS',
  });
});

test('another memory table: running rings stop, hear their addresses again, and go on', async (t) => {
  const { rings, memory, kick, take, prepare } = setUp(t);
  await prepare();
  await rings.setVringEnable(0, true);
  await rings.setVringKick(0, kick.number);
  take();
  await rings.setMemTable([memory.backendRegion()]);
  deepEqual(take(), ['stop(0)', 'memory()', 'addr(0)', 'start(0)']);
  const wrong = { ...memory.backendRegion(), sizeBytes: 0n };
  await rejects(rings.setMemTable([wrong]), { code: 'ERR_VRING_MEMORY_SIZE' });
  deepEqual(take(), [], 'the old table stays in use');
});

test('the log has a bit for every page that may be marked', async (t) => {
  const { rings, memory, addresses, take, prepare } = setUp(t);
  const pages = (memory.baseGpa + memory.sizeBytes) / 4096;
  const log = createMemfd('log', pages / 8);
  t.after(() => log.close());
  await prepare();
  throws(() => rings.setVringAddr(0, addresses, 0x4000_2000n), {
    code: 'ERR_VRING_LOG_SIZE',
    message:
      'fake: the used ring of vring 0 shall be logged, and there is no dirty log: set its base first',
  });
  throws(
    () => rings.setLogBase(log.number, pages / 8 - 1),
    (error: VringError) => {
      equal(error.code, 'ERR_VRING_LOG_SIZE');
      match(error.message, /the dirty log has 32799 bytes; region 0 ends at 0x40100000 and needs/);
      return true;
    },
  );
  take();
  rings.setLogBase(log.number, pages / 8);
  rings.setVringAddr(0, addresses, 0x4000_2000n);
  deepEqual(take(), ['log()', 'addr(0)']);
  throws(() => rings.setVringAddr(0, addresses, 0x4010_0000n), { code: 'ERR_VRING_LOG_SIZE' });
  const beyond = { ...memory.backendRegion(), guestPhysAddr: 0x5000_0000n };
  await rejects(rings.setMemTable([beyond]), { code: 'ERR_VRING_LOG_SIZE' });
});

test('behind an IOMMU a start waits for its translation, and gives up', async (t) => {
  const { rings, memory, kick, take, prepare, failing, device, told, addresses } = setUp(t);
  const iotlb = new HostIotlb('fake', [device as unknown as VhostDevice], rings);
  const mapping = { iova: 0n, sizeBytes: 4096n, userAddr: addresses.descUva, permissions: 3 };
  await rejects(iotlb.update(mapping), { code: 'ERR_VRING_NOT_NEGOTIATED' });
  rings.setPlatform(true);
  await prepare();
  deepEqual(told['addr'], {
    desc: addresses.descUva,
    avail: addresses.availUva,
    used: addresses.usedUva,
    usedLogGpa: null,
  });
  await rings.setVringEnable(0, true);
  take();
  failing.starts = 2;
  const started = rings.setVringKick(0, kick.number);
  await iotlb.update(mapping);
  await new Promise((resolve) => setImmediate(resolve));
  await iotlb.update(mapping);
  await started;
  deepEqual(take(), ['kick(0)', 'update()', 'update()', 'start(0)']);
  const outside = { ...mapping, userAddr: BigInt(memory.baseUva + memory.sizeBytes) };
  await rejects(iotlb.update(outside), { code: 'ERR_VRING_MEMORY_ADDRESS' });
  await rings.setVringEnable(0, false);
  failing.starts = Infinity;
  await rejects(rings.setVringEnable(0, true), {
    code: 'ERR_VRING_IOTLB',
    message:
      /vring 0 cannot start: its IOMMU translated no address of the used ring within 2000 ms/,
  });
});

test('behind an IOMMU, stopping one ring kicks the others: their questions are forgotten', async (t) => {
  const { rings, kick, take, prepare } = setUp(t);
  rings.setPlatform(true);
  await prepare(0);
  await prepare(1);
  for (const index of [0, 1]) {
    await rings.setVringEnable(index, true);
    await rings.setVringKick(index, kick.number);
  }
  take();
  drainEventfd(kick.number);
  rings.getVringBase(0);
  deepEqual(take(), ['stop(0)', 'getBase(0)']);
  equal(drainEventfd(kick.number), 1);
});
