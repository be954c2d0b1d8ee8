/**
 * Rings that no driver would write. The pass criterion is survival: the device may complete,
 * ignore or break the ring, but it lives, and the next session is served.
 */
import { arena, truncate } from '../../sys/index.ts';
import {
  VIRTIO_F_RING_PACKED,
  VIRTIO_RING_F_INDIRECT_DESC,
  VIRTQ_DESC_F_INDIRECT,
  VIRTQ_DESC_F_NEXT,
  VIRTQ_DESC_F_WRITE,
} from '../../wire/virtio.ts';
import { REQUEST } from '../../vhost-user/index.ts';
import { type Check, check } from '../check.ts';
import type { CheckContext, Session, SetUp } from '../context.ts';
import { state } from '../context.ts';

const SURVIVES =
  'Guests write anything into their rings. The device marks the ring broken at most; it does not ' +
  'die, hang, or touch memory that was not shared, and it serves the next session.';
const NEXT = VIRTQ_DESC_F_NEXT;
const WRITE = VIRTQ_DESC_F_WRITE;
const INDIRECT = VIRTQ_DESC_F_INDIRECT;

/** Descriptor `index` of the work ring, or of a table at arena offset `at`. */
function descriptor(
  { ring }: Session,
  index: number,
  gpa: number,
  len: number,
  flags: number,
  next = 0,
  at = ring.at,
): void {
  const { view } = arena();
  const where = at + 16 * index;
  view.setBigUint64(where, BigInt(gpa), true);
  view.setUint32(where + 8, len, true);
  view.setUint16(where + 12, flags, true);
  view.setUint16(where + 14, next, true);
}

/** Makes heads available, and kicks. */
function offer(
  t: CheckContext,
  { ring }: Session,
  heads: readonly number[],
  by = heads.length,
): void {
  const { queue } = ring;
  for (const [i, head] of heads.entries()) queue.avail[2 + i] = head;
  Atomics.store(queue.avail, 1, by & 0xffff);
  t.kick(ring);
}

type Act = (t: CheckContext, session: Session) => void;

function hostile(id: string, what: string, section: string, act: Act, setUp: SetUp = {}): Check {
  const virtio = [
    ...(setUp.packed ? [VIRTIO_F_RING_PACKED] : []),
    ...(setUp.indirect ? [VIRTIO_RING_F_INDIRECT_DESC] : []),
  ];
  return check(
    id,
    `${what} does not kill`,
    SURVIVES,
    section,
    { level: 'destructive', needs: { traffic: true, virtio } },
    async (t) => {
      const session = await t.start({ size: 64, ...setUp });
      t.note(`then ${what}`);
      act(t, session);
      await t.sleep(t.patience.quietMs);
      // It must still hear us: a device that spins on its ring does not answer.
      const got = await session.peer.attempt(REQUEST.GET_VRING_BASE, state(session.ring.index, 0));
      t.note(`GET_VRING_BASE was ${got}`);
      if (got === 'silent') t.fail('the back-end does not answer any more');
    },
  );
}

/** Packed: descriptor with the flags that make it available in the first round. */
function packedDescriptor(
  { ring }: Session,
  index: number,
  gpa: number,
  len: number,
  id: number,
  flags: number,
): void {
  const { view } = arena();
  const where = ring.at + 16 * index;
  view.setBigUint64(where, BigInt(gpa), true);
  view.setUint32(where + 8, len, true);
  view.setUint16(where + 12, id, true);
  view.setUint16(where + 14, flags | 0x80, true);
}

const SPLIT = 'virtio 1.2, 2.7';
const PACKED = 'virtio 1.2, 2.8';
const TABLE = 'virtio 1.2, 2.7.5.3';

export const hostileChecks: readonly Check[] = [
  hostile('BE-HOST-001', 'a descriptor that is its own successor', SPLIT, (t, s) => {
    descriptor(s, 0, s.rig.alloc(64), 64, NEXT, 0);
    offer(t, s, [0]);
  }),
  hostile('BE-HOST-002', 'a loop of two descriptors', SPLIT, (t, s) => {
    descriptor(s, 0, s.rig.alloc(64), 64, NEXT, 1);
    descriptor(s, 1, s.rig.alloc(64), 64, NEXT, 0);
    offer(t, s, [0]);
  }),
  hostile('BE-HOST-003', 'a head beyond the ring', SPLIT, (t, s) => offer(t, s, [64, 0xffff])),
  hostile('BE-HOST-004', 'a successor beyond the ring', SPLIT, (t, s) => {
    descriptor(s, 0, s.rig.alloc(64), 64, NEXT, 0xffff);
    offer(t, s, [0]);
  }),
  hostile('BE-HOST-005', 'an available index that runs ahead of the ring', SPLIT, (t, s) => {
    descriptor(s, 0, s.rig.alloc(64), 64, 0);
    offer(t, s, [0], 0x8000);
  }),
  hostile('BE-HOST-006', 'a buffer at address 0', SPLIT, (t, s) => {
    descriptor(s, 0, 0, 64, 0);
    offer(t, s, [0]);
  }),
  hostile('BE-HOST-007', 'a buffer that ends behind the last region', SPLIT, (t, s) => {
    descriptor(s, 0, s.rig.endGpa - 16, 4096, 0);
    descriptor(s, 1, s.rig.endGpa - 16, 4096, WRITE);
    offer(t, s, [0, 1]);
  }),
  hostile('BE-HOST-008', 'a buffer whose end overflows', SPLIT, (t, s) => {
    const { view } = arena();
    descriptor(s, 0, 0, 0xffff_ffff, 0);
    view.setBigUint64(s.ring.at, 0xffff_ffff_ffff_fff0n, true);
    offer(t, s, [0]);
  }),
  hostile('BE-HOST-009', 'a buffer of 4 GiB', SPLIT, (t, s) => {
    descriptor(s, 0, s.rig.memory.baseGpa, 0xffff_ffff, 0);
    descriptor(s, 1, s.rig.memory.baseGpa, 0xffff_ffff, WRITE);
    offer(t, s, [0, 1]);
  }),
  hostile('BE-HOST-010', 'a buffer of no bytes', SPLIT, (t, s) => {
    descriptor(s, 0, s.rig.alloc(64), 0, 0);
    descriptor(s, 1, s.rig.alloc(64), 0, WRITE);
    offer(t, s, [0, 1]);
  }),
  hostile('BE-HOST-011', 'writable buffers in front of readable ones', SPLIT, (t, s) => {
    descriptor(s, 0, s.rig.alloc(64), 64, WRITE | NEXT, 1);
    descriptor(s, 1, s.rig.alloc(64), 64, 0);
    offer(t, s, [0]);
  }),
  hostile('BE-HOST-012', 'a request without readable buffers', SPLIT, (t, s) => {
    descriptor(s, 0, s.rig.alloc(64), 64, WRITE);
    offer(t, s, [0]);
  }),
  hostile('BE-HOST-013', 'a request of one byte', SPLIT, (t, s) => {
    descriptor(s, 0, s.rig.alloc(64), 1, 0);
    offer(t, s, [0]);
  }),
  hostile('BE-HOST-014', 'all flags set', SPLIT, (t, s) => {
    descriptor(s, 0, s.rig.alloc(64), 64, 0xffff, 3);
    offer(t, s, [0]);
  }),
  hostile('BE-HOST-015', 'the same head again and again', SPLIT, (t, s) => {
    descriptor(s, 0, s.rig.alloc(128), 76, 0);
    offer(
      t,
      s,
      Array.from({ length: 64 }, () => 0),
    );
  }),
  hostile('BE-HOST-016', 'a chain of all descriptors', SPLIT, (t, s) => {
    const gpa = s.rig.alloc(64);
    for (let n = 0; n < 64; n++) descriptor(s, n, gpa, 64, n < 63 ? NEXT : 0, n + 1);
    offer(t, s, [0]);
  }),
  hostile('BE-HOST-017', 'an indirect table although none was negotiated', TABLE, (t, s) => {
    descriptor(s, 0, s.rig.alloc(256), 64, INDIRECT);
    offer(t, s, [0]);
  }),
  ...(
    [
      ['BE-HOST-020', 'an indirect table of no bytes', 0, 0],
      ['BE-HOST-021', 'an indirect table of 17 bytes', 17, 0],
      ['BE-HOST-022', 'an indirect table that loops', 32, NEXT],
      ['BE-HOST-023', 'an indirect table inside an indirect table', 32, INDIRECT],
      ['BE-HOST-024', 'an indirect table of 4 GiB', 0xffff_fff0, NEXT],
      ['BE-HOST-025', 'an indirect table with a successor outside', 32, NEXT | 0x100],
    ] as const
  ).map(([id, what, len, flags]) =>
    hostile(
      id,
      what,
      TABLE,
      (t, s) => {
        const table = s.rig.alloc(4096);
        const at = s.rig.offsetOf(table);
        const outside = (flags & 0x100) !== 0;
        descriptor(s, 0, table, 64, flags & 0xff, outside ? 5000 : 1, at);
        descriptor(s, 1, table, 64, flags & 0xff, 0, at);
        descriptor(s, 0, table, len, INDIRECT);
        offer(t, s, [0]);
      },
      { indirect: true },
    ),
  ),
  hostile(
    'BE-HOST-026',
    'an indirect table outside memory',
    TABLE,
    (t, s) => {
      descriptor(s, 0, s.rig.endGpa + 4096, 64, INDIRECT);
      offer(t, s, [0]);
    },
    { indirect: true },
  ),
  hostile(
    'BE-HOST-030',
    'a packed ring that is one chain without end',
    PACKED,
    (t, s) => {
      const gpa = s.rig.alloc(64);
      for (let n = 0; n < 64; n++) packedDescriptor(s, n, gpa, 64, n, NEXT);
      t.kick(s.ring);
    },
    { packed: true },
  ),
  hostile(
    'BE-HOST-031',
    'a packed buffer id beyond the ring',
    PACKED,
    (t, s) => {
      packedDescriptor(s, 0, s.rig.alloc(128), 76, 0xffff, 0);
      t.kick(s.ring);
    },
    { packed: true },
  ),
  hostile(
    'BE-HOST-032',
    'a packed buffer outside memory',
    PACKED,
    (t, s) => {
      packedDescriptor(s, 0, s.rig.endGpa, 4096, 0, 0);
      t.kick(s.ring);
    },
    { packed: true },
  ),
  hostile(
    'BE-HOST-033',
    'a packed indirect table of nonsense',
    PACKED,
    (t, s) => {
      packedDescriptor(s, 0, s.rig.alloc(64), 15, 0, INDIRECT);
      packedDescriptor(s, 1, s.rig.endGpa, 0xffff_fff0, 1, INDIRECT);
      t.kick(s.ring);
    },
    { packed: true, indirect: true },
  ),
  hostile('BE-HOST-040', 'a guest that takes its memory away', 'Memory access', (t, s) => {
    t.post(s);
    truncate(s.rig.memory.fd.number, 0);
    t.kick(s.ring);
  }),
  hostile('BE-HOST-041', 'a guest that rewrites its ring while it is processed', SPLIT, (t, s) => {
    const gpa = s.rig.alloc(256);
    for (let n = 0; n < 64; n++) descriptor(s, n, gpa, 64, n % 2 ? NEXT : WRITE, (n * 7) % 64);
    offer(
      t,
      s,
      Array.from({ length: 64 }, (_, n) => n),
    );
    for (let round = 0; round < 200; round++) {
      descriptor(s, round % 64, gpa + round, round * 977, round & 7, (round * 13) % 80);
      Atomics.store(s.ring.queue.avail, 1, (64 + round) & 0xffff);
      s.ring.signal();
    }
  }),
];
