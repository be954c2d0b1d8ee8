/** SET_MEM_TABLE, and regions that come and go one by one. */
import { createMemfd, type Fd } from '../../sys/index.ts';
import * as wire from '../../wire/vhost-user.ts';
import { REQUEST } from '../../vhost-user/index.ts';
import { type Check, check } from '../check.ts';
import { type CheckContext, memoryTable, type Session, singleRegion } from '../context.ts';

const SLOTS = wire.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS;
const SECTION = 'Front-end message types, SET_MEM_TABLE';
const MEM_REG = 'Front-end message types, ADD_MEM_REG and REM_MEM_REG';
const PAGE = 4096n;

/** Regions far away from the guest's, each backed by the same file. */
function elsewhere(count: number): wire.MemoryRegion[] {
  return Array.from({ length: count }, (_, n) => ({
    guestPhysAddr: 0x10_0000_0000n + BigInt(n) * 0x20_0000n,
    sizeBytes: 0x10_0000n,
    userAddr: 0x7e00_0000_0000n + BigInt(n) * 0x20_0000n,
    fdOffset: 0n,
  }));
}

function file(t: CheckContext, bytes = 0x10_0000): Fd {
  return t.own(createMemfd('conformance', bytes));
}

/** A session without memory, and a table to offer. */
async function refuses(
  t: CheckContext,
  what: string,
  regions: readonly wire.MemoryRegion[],
  options: { count?: number; fds?: number; bytes?: number } = {},
): Promise<void> {
  const peer = await t.negotiated();
  const fd = file(t, options.bytes);
  const fds = Array.from({ length: options.fds ?? regions.length }, () => fd);
  const payload = memoryTable(regions, options.count);
  await peer.mustRefuse(what, REQUEST.SET_MEM_TABLE, payload, { fds });
}

/** Memory by ADD_MEM_REG, `regions` pieces, and rings in it. */
async function startBySlots(t: CheckContext, regions: number): Promise<Session> {
  const peer = await t.negotiated({ protocol: [SLOTS] });
  const rig = t.guest();
  for (const region of rig.regions(regions)) {
    await peer.tell(REQUEST.ADD_MEM_REG, singleRegion(region), { fds: [rig.memory.fd] });
  }
  for (const ring of rig.rings) await t.setUpRing(peer, ring);
  return { peer, rig, ring: rig.ring(t.offer.profile.workRing) };
}

const one = (change: Partial<wire.MemoryRegion>): wire.MemoryRegion[] => [
  { ...(elsewhere(1)[0] as wire.MemoryRegion), ...change },
];

export const memoryChecks: readonly Check[] = [
  check(
    'BE-MEM-001',
    'Memory in eight regions',
    'A table of eight regions, each at its own offset of its fd, is mapped as described.',
    'Memory regions description',
    { needs: { traffic: true } },
    async (t) => {
      const session = await t.start({ regions: 8 });
      for (let n = 0; n < 4; n++) {
        session.rig.alloc(900_000); // the requests lie in different regions
        await t.work(session);
      }
    },
  ),
  check(
    'BE-MEM-002',
    'The memory table can be replaced while rings run',
    'SET_MEM_TABLE with the same memory cut differently leaves running rings running.',
    'Ring states: configuration may change on the fly',
    { needs: { traffic: true } },
    async (t) => {
      const session = await t.start();
      await t.work(session);
      await t.shareMemory(session.peer, session.rig, 4);
      await session.peer.barrier('SET_MEM_TABLE again');
      await t.work(session, 2);
      await t.shareMemory(session.peer, session.rig, 1);
      await session.peer.barrier('SET_MEM_TABLE again');
      await t.work(session);
    },
  ),
  check(
    'BE-MEM-003',
    'A region of size zero is refused',
    'A region has at least one byte.',
    'Memory regions description',
    { severity: 'may', level: 'full' },
    (t) => refuses(t, 'a region of size 0', one({ sizeBytes: 0n })),
  ),
  check(
    'BE-MEM-004',
    'A region beyond the end of the address space is refused',
    'Guest address plus size does not overflow 64 bits.',
    'Memory regions description',
    { severity: 'should', level: 'full' },
    (t) => refuses(t, 'a region that overflows', one({ guestPhysAddr: 0xffff_ffff_ffff_f000n })),
  ),
  check(
    'BE-MEM-005',
    'An offset plus size that overflows is refused',
    'Offset in the fd plus size does not overflow 64 bits.',
    'Memory regions description',
    { severity: 'should', level: 'full' },
    (t) => refuses(t, 'an mmap offset that overflows', one({ fdOffset: 0xffff_ffff_ffff_f000n })),
  ),
  check(
    'BE-MEM-006',
    'More regions than eight are refused',
    'The number of regions of SET_MEM_TABLE is at most eight.',
    'Memory regions description',
    { severity: 'should', level: 'full' },
    (t) => refuses(t, '9 regions', elsewhere(9), { fds: 8 }),
  ),
  check(
    'BE-MEM-007',
    'A number of regions that is not the number of fds is refused',
    'Every region has its fd.',
    SECTION,
    { severity: 'should', level: 'full' },
    (t) => refuses(t, '2 regions with 1 fd', elsewhere(2), { fds: 1 }),
  ),
  check(
    'BE-MEM-008',
    'A number of regions that the payload does not hold is refused',
    'The payload has as many regions as it says.',
    'Memory regions description',
    { severity: 'should', level: 'full' },
    (t) => refuses(t, 'a table of 1 region that says 2', elsewhere(1), { count: 2, fds: 2 }),
  ),
  check(
    'BE-MEM-009',
    'Overlapping regions are refused',
    'A guest address belongs to one region.',
    'Memory access',
    { severity: 'may', level: 'full' },
    (t) => {
      const [a, b] = elsewhere(2) as [wire.MemoryRegion, wire.MemoryRegion];
      const overlapping = { ...b, guestPhysAddr: a.guestPhysAddr + PAGE };
      return refuses(t, 'overlapping regions', [a, overlapping]);
    },
  ),
  check(
    'BE-MEM-010',
    'A file that is shorter than its region is refused',
    'Memory that the file does not have cannot be shared: touching it would kill the back-end.',
    'Memory access',
    { severity: 'should', level: 'full' },
    (t) => refuses(t, 'a region of 1 MiB of a file of 4 KiB', elsewhere(1), { bytes: 4096 }),
  ),
  check(
    'BE-MEM-020',
    'ADD_MEM_REG shares memory',
    'Rings and buffers may lie in regions that were added one by one.',
    MEM_REG,
    { needs: { traffic: true, protocol: [SLOTS] } },
    async (t) => {
      await t.work(await startBySlots(t, 2), 2);
    },
  ),
  check(
    'BE-MEM-021',
    'A region can be added while rings run',
    'ADD_MEM_REG next to the memory in use leaves running rings running.',
    MEM_REG,
    { needs: { traffic: true, protocol: [SLOTS] } },
    async (t) => {
      const session = await startBySlots(t, 1);
      await t.work(session);
      const [region] = elsewhere(1);
      const payload = singleRegion(region as wire.MemoryRegion);
      await session.peer.tell(REQUEST.ADD_MEM_REG, payload, { fds: [file(t)] });
      await t.work(session);
      await session.peer.tell(REQUEST.REM_MEM_REG, payload);
      await t.work(session);
    },
  ),
  check(
    'BE-MEM-022',
    'REM_MEM_REG tolerates one fd',
    'For the sake of old front-ends a back-end may take a stray fd with REM_MEM_REG, and ' +
      'closes it.',
    MEM_REG,
    { severity: 'may', level: 'full', needs: { protocol: [SLOTS] } },
    async (t) => {
      const peer = await t.negotiated({ protocol: [SLOTS] });
      const payload = singleRegion(elsewhere(1)[0] as wire.MemoryRegion);
      const fds = [file(t)];
      await peer.tell(REQUEST.ADD_MEM_REG, payload, { fds });
      await peer.tell(REQUEST.REM_MEM_REG, payload, { fds });
      await peer.barrier('REM_MEM_REG with an fd');
    },
  ),
  check(
    'BE-MEM-023',
    'REM_MEM_REG of an unknown region is refused',
    'A region is identified by guest address, user address and size.',
    MEM_REG,
    { severity: 'should', level: 'full', needs: { protocol: [SLOTS] } },
    async (t) => {
      const peer = await t.negotiated({ protocol: [SLOTS] });
      const [a, b] = elsewhere(2) as [wire.MemoryRegion, wire.MemoryRegion];
      await peer.tell(REQUEST.ADD_MEM_REG, singleRegion(a), { fds: [file(t)] });
      await peer.mustRefuse('REM_MEM_REG of nothing', REQUEST.REM_MEM_REG, singleRegion(b));
    },
  ),
  check(
    'BE-MEM-024',
    'REM_MEM_REG does not look at the offset',
    'The mmap offset is ignored when a region is removed.',
    MEM_REG,
    { needs: { protocol: [SLOTS] } },
    async (t) => {
      const peer = await t.negotiated({ protocol: [SLOTS] });
      const [region] = elsewhere(1) as [wire.MemoryRegion];
      await peer.tell(REQUEST.ADD_MEM_REG, singleRegion(region), { fds: [file(t)] });
      const payload = singleRegion({ ...region, fdOffset: 0x5000n });
      await peer.tell(REQUEST.REM_MEM_REG, payload);
      await peer.barrier('REM_MEM_REG with another offset');
    },
  ),
  check(
    'BE-MEM-025',
    'As many regions fit as GET_MAX_MEM_SLOTS says',
    'The back-end takes the number of regions that it told (at most 64 are tried), and gives ' +
      'their slots back.',
    'Front-end message types, GET_MAX_MEM_SLOTS',
    { severity: 'should', level: 'full', needs: { protocol: [SLOTS] } },
    async (t) => {
      const peer = await t.negotiated({ protocol: [SLOTS] });
      const slots = await peer.askU64(REQUEST.GET_MAX_MEM_SLOTS);
      if (slots < 1n) t.fail('no slots at all');
      const fd = file(t);
      const regions = elsewhere(Number(slots < 64n ? slots : 64n));
      for (const region of regions) {
        await peer.tell(REQUEST.ADD_MEM_REG, singleRegion(region), { fds: [fd] });
      }
      for (const region of regions) await peer.tell(REQUEST.REM_MEM_REG, singleRegion(region));
      await peer.tell(REQUEST.ADD_MEM_REG, singleRegion(regions[0] as wire.MemoryRegion), {
        fds: [fd],
      });
      await peer.barrier('regions added and removed');
    },
  ),
];
