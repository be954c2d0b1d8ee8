/**
 * Zoned block devices: what a driver relies on. The checks that write do so in the last zone that
 * is empty, and leave it empty; a disk that has none, or that is read-only, has nothing to say.
 */
import {
  BlkConfig,
  BlkZoneDescriptor,
  BlkZoneReport,
  VIRTIO_BLK_F_RO,
  VIRTIO_BLK_F_ZONED,
  VIRTIO_BLK_S_OK,
  VIRTIO_BLK_S_ZONE_INVALID_CMD,
  VIRTIO_BLK_S_ZONE_UNALIGNED_WP,
  VIRTIO_BLK_T_OUT,
  VIRTIO_BLK_T_ZONE_APPEND,
  VIRTIO_BLK_T_ZONE_FINISH,
  VIRTIO_BLK_T_ZONE_REPORT,
  VIRTIO_BLK_T_ZONE_RESET,
  VIRTIO_BLK_Z_HM,
  VIRTIO_BLK_ZS_EMPTY,
  VIRTIO_BLK_ZS_FULL,
  VIRTIO_BLK_ZS_IOPEN,
  VIRTIO_BLK_ZT_CONV,
  VIRTIO_BLK_ZT_SWR,
} from '../../wire/virtio-blk.ts';
import { ConfigHeader, VHOST_USER_PROTOCOL_F_CONFIG } from '../../wire/vhost-user.ts';
import { hasFeature } from '../../wire/virtio.ts';
import { REQUEST } from '../../vhost-user/index.ts';
import { type Check, check } from '../check.ts';
import type { CheckContext, Session } from '../context.ts';
import { BLK_IN, BLK_S_UNSUPP } from '../profiles.ts';

const ZONED = {
  devices: ['blk'],
  traffic: true,
  virtio: [VIRTIO_BLK_F_ZONED],
  protocol: [VHOST_USER_PROTOCOL_F_CONFIG],
} as const;
const CONFIG = { protocol: [VHOST_USER_PROTOCOL_F_CONFIG] } as const;
const UNTOUCHED = 0xa5;
const NONE = new Uint8Array(0);
/** Zones of one report. */
const REPORT_ZONES = 8;

type Answer = { readonly status: number; readonly len: number; readonly data: Uint8Array };

/** Any request: 16 bytes of header, `write`, room for `readBytes`, status. */
async function ask(
  t: CheckContext,
  session: Session,
  type: number,
  sector: bigint,
  {
    write = NONE,
    readBytes = 0,
  }: { readonly write?: Uint8Array; readonly readBytes?: number } = {},
): Promise<Answer> {
  const { rig } = session;
  const header = new DataView(new ArrayBuffer(16));
  header.setUint32(0, type, true);
  header.setBigUint64(8, sector, true);
  const [headerGpa, writeGpa, readGpa, statusGpa] = [
    rig.alloc(16),
    rig.alloc(Math.max(1, write.length)),
    rig.alloc(Math.max(1, readBytes)),
    rig.alloc(1),
  ];
  rig.write(headerGpa, new Uint8Array(header.buffer));
  rig.write(writeGpa, write);
  rig.write(statusGpa, Uint8Array.of(UNTOUCHED));
  const readable = [{ gpa: headerGpa, len: 16 }];
  if (write.length > 0) readable.push({ gpa: writeGpa, len: write.length });
  const writable = [{ gpa: statusGpa, len: 1 }];
  if (readBytes > 0) writable.unshift({ gpa: readGpa, len: readBytes });
  rig.submit(session.ring, readable, writable);
  t.kick(session.ring);
  const [used] = await t.completed(session, 1);
  const status = rig.read(statusGpa, 1)[0]!;
  t.saw(`request ${type} at sector ${sector}: status ${status}, used.len ${used!.len}`);
  return { status, len: used!.len, data: rig.read(readGpa, readBytes) };
}

function expect(t: CheckContext, what: string, { status }: Answer, due: number): void {
  if (status !== due) t.fail(`${what}: status ${status}, expected ${due}`);
}

async function configOf(t: CheckContext, session: Session): Promise<BlkConfig> {
  const bytes = BlkConfig.size;
  const header = ConfigHeader.encode({ offset: 0, sizeBytes: bytes, flags: 0 });
  const payload = Buffer.concat([header, new Uint8Array(bytes)]);
  const answer = await session.peer.ask(REQUEST.GET_CONFIG, payload);
  if (answer.length !== payload.length) {
    t.fail(`${answer.length} bytes of payload, expected ${payload.length}`);
  }
  return BlkConfig.decode(answer.slice(header.length));
}

/** A session over a host-managed disk. */
async function begin(t: CheckContext): Promise<{ session: Session; config: BlkConfig }> {
  const session = await t.start(CONFIG);
  const config = await configOf(t, session);
  if (config.zonedModel !== VIRTIO_BLK_Z_HM) t.notApplicable('the disk is not host-managed');
  if (config.zoneSectors === 0) t.fail('zone_sectors is 0');
  return { session, config };
}

async function zoneAt(t: CheckContext, session: Session, sector: bigint) {
  const readBytes = BlkZoneReport.size + BlkZoneDescriptor.size;
  const answer = await ask(t, session, VIRTIO_BLK_T_ZONE_REPORT, sector, { readBytes });
  expect(t, 'ZONE_REPORT', answer, VIRTIO_BLK_S_OK);
  if (BlkZoneReport.decode(answer.data).nrZones !== 1n) t.fail('the report has not one zone');
  return BlkZoneDescriptor.decode(answer.data.slice(BlkZoneReport.size));
}

/** The last zone, where it is sequential and empty: what is done there is undone by a reset. */
async function emptyZone(t: CheckContext, session: Session, config: BlkConfig) {
  if (hasFeature(t.offer.features, VIRTIO_BLK_F_RO)) t.notApplicable('the disk is read-only');
  const zone = await zoneAt(t, session, config.capacity - 1n);
  const { zType, zState } = zone;
  if (zType === VIRTIO_BLK_ZT_SWR && zState === VIRTIO_BLK_ZS_EMPTY) return zone;
  return t.notApplicable('the last zone is not empty, and would lose what is in it');
}

function block(config: BlkConfig): Uint8Array {
  return new Uint8Array(Math.max(512, config.writeGranularity)).fill(0x5a);
}

export const zonedChecks: readonly Check[] = [
  check(
    'BE-ZONED-001',
    'A report names the zones one behind the other',
    'ZONE_REPORT of sector 0 has a descriptor for each zone that fits: multiples of ' +
      'zone_sectors, a capacity within them, conventional zones without a write pointer, others ' +
      'with one inside.',
    'virtio 1.3, 5.2.6',
    { needs: ZONED },
    async (t) => {
      const { session, config } = await begin(t);
      const readBytes = BlkZoneReport.size + REPORT_ZONES * BlkZoneDescriptor.size;
      const answer = await ask(t, session, VIRTIO_BLK_T_ZONE_REPORT, 0n, { readBytes });
      expect(t, 'ZONE_REPORT', answer, VIRTIO_BLK_S_OK);
      const size = BigInt(config.zoneSectors);
      const all = (config.capacity + size - 1n) / size;
      const due = all < REPORT_ZONES ? Number(all) : REPORT_ZONES;
      const { nrZones } = BlkZoneReport.decode(answer.data);
      if (nrZones !== BigInt(due)) t.fail(`nr_zones is ${nrZones}, expected ${due}`);
      for (let i = 0; i < due; i++) {
        const at = BlkZoneReport.size + i * BlkZoneDescriptor.size;
        const { zStart, zCap, zWp, zType, zState } = BlkZoneDescriptor.decode(
          answer.data.slice(at),
        );
        if (zStart !== BigInt(i) * size) t.fail(`zone ${i} begins at sector ${zStart}`);
        if (zCap === 0n || zCap > size) t.fail(`zone ${i} has a capacity of ${zCap} sectors`);
        const isConventional = zType === VIRTIO_BLK_ZT_CONV;
        if (isConventional !== (zState === 0)) t.fail(`zone ${i}: type ${zType}, state ${zState}`);
        const hasPointer = zState >= VIRTIO_BLK_ZS_EMPTY && zState <= 4;
        if (hasPointer && (zWp < zStart || zWp > zStart + zCap)) {
          t.fail(`zone ${i} begins at ${zStart}, and its write pointer is at ${zWp}`);
        }
      }
    },
  ),
  check(
    'BE-ZONED-002',
    'The characteristics of zones fit each other',
    'max_append_sectors is at most seg_max times size_max, write_granularity a sector or more, ' +
      'max_open_zones at most max_active_zones, where both limit.',
    'virtio 1.3, 5.2.5',
    { needs: ZONED },
    async (t) => {
      const { config } = await begin(t);
      const { maxAppendSectors, segMax, sizeMax, maxOpenZones, maxActiveZones } = config;
      if (config.writeGranularity < 512) t.fail(`write_granularity ${config.writeGranularity}`);
      const most = sizeMax === 0 ? Infinity : (segMax * sizeMax) / 512;
      if (maxAppendSectors > most) t.fail(`max_append_sectors ${maxAppendSectors}, above ${most}`);
      if (maxActiveZones > 0 && maxOpenZones > maxActiveZones) {
        t.fail(`${maxOpenZones} zones may be open, and ${maxActiveZones} active`);
      }
    },
  ),
  check(
    'BE-ZONED-003',
    'A zone is written at its pointer, and nowhere else',
    'A write at the pointer moves it; one behind it is UNALIGNED_WP and moves nothing; what is ' +
      'not written does not fail a report; RESET makes the zone empty again.',
    'virtio 1.3, 5.2.6',
    { needs: ZONED },
    async (t) => {
      const { session, config } = await begin(t);
      const { zStart } = await emptyZone(t, session, config);
      const write = block(config);
      const sectors = BigInt(write.length / 512);
      expect(t, 'a write', await ask(t, session, VIRTIO_BLK_T_OUT, zStart, { write }), 0);
      const zone = await zoneAt(t, session, zStart);
      if (zone.zWp !== zStart + sectors) t.fail(`the pointer is at ${zone.zWp}`);
      if (zone.zState !== VIRTIO_BLK_ZS_IOPEN) t.fail(`the state is ${zone.zState}, expected 2`);
      for (const at of [zStart, zStart + 2n * sectors]) {
        const answer = await ask(t, session, VIRTIO_BLK_T_OUT, at, { write });
        expect(t, 'a write elsewhere', answer, VIRTIO_BLK_S_ZONE_UNALIGNED_WP);
      }
      const readBytes = write.length;
      const { data, status } = await ask(t, session, BLK_IN, zStart, { readBytes });
      if (status !== 0 || !Buffer.from(data).equals(write)) t.fail('other bytes are read');
      expect(t, 'RESET', await ask(t, session, VIRTIO_BLK_T_ZONE_RESET, zStart), 0);
      const after = await zoneAt(t, session, zStart);
      if (after.zState !== VIRTIO_BLK_ZS_EMPTY || after.zWp !== zStart) t.fail('it is not empty');
    },
  ),
  check(
    'BE-ZONED-004',
    'An append says where it went',
    'Two appends to a zone go one behind the other, and append_sector says where; used.len ' +
      'counts it; one that does not name the first sector of the zone is INVALID_CMD.',
    'virtio 1.3, 5.2.6',
    { needs: ZONED },
    async (t) => {
      const { session, config } = await begin(t);
      if (config.maxAppendSectors === 0) t.notApplicable('the disk has no appends');
      const { zStart } = await emptyZone(t, session, config);
      const write = block(config);
      const sectors = BigInt(write.length / 512);
      for (const due of [zStart, zStart + sectors]) {
        const how = { write, readBytes: 8 };
        const answer = await ask(t, session, VIRTIO_BLK_T_ZONE_APPEND, zStart, how);
        expect(t, 'an append', answer, VIRTIO_BLK_S_OK);
        const at = new DataView(answer.data.buffer).getBigUint64(0, true);
        if (at !== due) t.fail(`append_sector is ${at}, expected ${due}`);
        if (answer.len !== 9) t.fail(`used.len is ${answer.len}, 9 bytes were to be written`);
      }
      const how = { write, readBytes: 8 };
      const wrong = await ask(t, session, VIRTIO_BLK_T_ZONE_APPEND, zStart + sectors, how);
      expect(t, 'an append into the middle', wrong, VIRTIO_BLK_S_ZONE_INVALID_CMD);
      expect(t, 'RESET', await ask(t, session, VIRTIO_BLK_T_ZONE_RESET, zStart), 0);
    },
  ),
  check(
    'BE-ZONED-005',
    'A full zone takes no more',
    'FINISH makes a zone full; a write to it is INVALID_CMD; so is an action on a sector that is ' +
      'not the first of its zone.',
    'virtio 1.3, 5.2.6',
    { needs: ZONED },
    async (t) => {
      const { session, config } = await begin(t);
      const { zStart } = await emptyZone(t, session, config);
      const write = block(config);
      expect(t, 'a write', await ask(t, session, VIRTIO_BLK_T_OUT, zStart, { write }), 0);
      expect(t, 'FINISH', await ask(t, session, VIRTIO_BLK_T_ZONE_FINISH, zStart), 0);
      const { zState } = await zoneAt(t, session, zStart);
      if (zState !== VIRTIO_BLK_ZS_FULL) t.fail(`the state is ${zState}, expected 14`);
      const at = zStart + BigInt(write.length / 512);
      const full = await ask(t, session, VIRTIO_BLK_T_OUT, at, { write });
      expect(t, 'a write to a full zone', full, VIRTIO_BLK_S_ZONE_INVALID_CMD);
      const middle = await ask(t, session, VIRTIO_BLK_T_ZONE_RESET, zStart + 1n);
      expect(t, 'a RESET of its second sector', middle, VIRTIO_BLK_S_ZONE_INVALID_CMD);
      expect(t, 'RESET', await ask(t, session, VIRTIO_BLK_T_ZONE_RESET, zStart), 0);
    },
  ),
  check(
    'BE-ZONED-006',
    'Zone requests need the feature',
    'Of a driver that did not take ZONED, a zone request is UNSUPP.',
    'virtio 1.3, 5.2.6',
    { severity: 'should', needs: { devices: ['blk'], traffic: true } },
    async (t) => {
      if (hasFeature(t.offer.features, VIRTIO_BLK_F_ZONED)) {
        t.notApplicable('a host-managed disk refuses such a driver');
      }
      const session = await t.start();
      const readBytes = BlkZoneReport.size;
      const answer = await ask(t, session, VIRTIO_BLK_T_ZONE_REPORT, 0n, { readBytes });
      expect(t, 'ZONE_REPORT', answer, BLK_S_UNSUPP);
    },
  ),
];
