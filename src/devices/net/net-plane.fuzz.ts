/**
 * Fuzzes the data plane of the switch with hostile drivers: rings of every format full of chains
 * that are almost legal, while rings come, go, move between workers and break, policies change and
 * the plane stands still.
 *
 *     npm run fuzz -- net-plane
 *
 * What must hold: nothing throws; nothing outside of the memory that a guest shared is written;
 * a ring that was detached is not touched any more; a page that was written is in the dirty log;
 * drivers that stop let the workers sleep.
 */
import { assert } from '../../base/assert.ts';
import { Iotlb, PrivateMemory } from '../../memory/index.ts';
import type { AddressMap } from '../../memory/address-map.ts';
import type { PlaneEvent, ResumedVring, VringAttach } from '../../runtime/data-plane.ts';
import { COUNTERS_BYTES, MacTable, SWITCH_SCRATCH_BYTES } from '../../switch/index.ts';
import { arena, regionFaults } from '../../sys/arena.ts';
import { createEventfd } from '../../sys/eventfd.ts';
import type { Fd } from '../../sys/fd.ts';
import { SHARED_RING_WORDS } from '../../virtqueue/shared-ring.hot.ts';
import { Random } from '../../vhost-user/testing/random.ts';
import * as net from '../../wire/virtio-net.ts';
import * as virtio from '../../wire/virtio.ts';
import { type NetPlane, createPlane } from './net-plane.ts';
import { PARKED_FRAMES_BYTES } from './parked-frames.ts';
import { PORT_POLICIES } from './port-policy.ts';
import { REST_TOKEN } from './rest-timer.ts';

const WORKERS = 2;
const PORTS = 3;
const PAIRS = 2;
const RINGS = 2 * PAIRS + 1;
const RING_BYTES = 8192;
const RANGE_BYTES = 131072;
const GUARD_BYTES = 4096;
const GUARD = 0xa5;
const BLOCK_BYTES = 3 * GUARD_BYTES + 2 * RANGE_BYTES;
const GPAS = [0xffff_0000, 0x2_0000_0000]; // the first crosses 4 GiB
/** A bit for each page up to the end of the second. */
const LOG_BYTES = (GPAS[1]! + RANGE_BYTES) / 4096 / 8;
const SLOT_BYTES = 2048;
const SLOTS_AT = 65536; // in each range; rings are in front of them in the first
const SLOTS = (RANGE_BYTES - SLOTS_AT) / SLOT_BYTES;

/** True in so many of a hundred. */
const chance = (random: Random, percent: number): boolean => random.next(100) < percent;

/** One guest: its memory, and what is attached of its rings. */
class Guest {
  readonly block: PrivateMemory;
  readonly parked: PrivateMemory;
  readonly log: PrivateMemory;
  readonly kicks: Fd[];
  readonly call: Fd;
  readonly attached: (VringAttach | null)[] = Array.from({ length: RINGS }, () => null);
  /** Worker that has it; -1: all. */
  readonly owner: number[] = Array.from({ length: RINGS }, () => 0);
  features = 0n;
  iotlb = false;
  isLogged = false;
  /** Into how many ranges of its table each of the two is cut. */
  pieces = 1;

  constructor() {
    this.block = PrivateMemory.allocate(BLOCK_BYTES);
    this.parked = PrivateMemory.allocate(WORKERS * PARKED_FRAMES_BYTES);
    this.log = PrivateMemory.allocate(LOG_BYTES);
    const bytes = arena().bytes;
    for (let r = 0; r <= 2; r++) {
      const at = this.block.offset + r * (GUARD_BYTES + RANGE_BYTES);
      bytes.fill(GUARD, at, at + GUARD_BYTES);
    }
    this.kicks = Array.from({ length: RINGS }, () => createEventfd('kick'));
    this.call = createEventfd('call');
  }

  offset(range: number): number {
    return this.block.offset + GUARD_BYTES + range * (GUARD_BYTES + RANGE_BYTES);
  }

  get map(): AddressMap {
    const ranges = [0, 1].flatMap((range) => {
      const bytes = RANGE_BYTES / this.pieces;
      return Array.from({ length: this.pieces }, (_, k) => [
        GPAS[range]! + k * bytes,
        GPAS[range]! + (k + 1) * bytes,
        this.offset(range) - GPAS[range]!,
      ]);
    });
    const column = (k: number): Float64Array => Float64Array.from(ranges, (range) => range[k]!);
    return { count: ranges.length, start: column(0), end: column(1), delta: column(2) };
  }

  checkGuards(): void {
    const bytes = arena().bytes;
    for (let r = 0; r <= 2; r++) {
      const at = this.block.offset + r * (GUARD_BYTES + RANGE_BYTES);
      for (let i = at; i < at + GUARD_BYTES; i++) {
        assert(bytes[i] === GUARD, () => `guard ${r} of a guest is whole`);
      }
    }
  }

  hash(): number {
    const words = new Int32Array(arena().buffer, this.block.offset, BLOCK_BYTES / 4);
    let sum = 0;
    for (const word of words) sum = (Math.imul(sum, 31) + word) | 0;
    return sum;
  }

  close(): void {
    this.block.close();
    this.parked.close();
    this.log.close();
    for (const fd of [...this.kicks, this.call]) fd.close();
  }
}

class World {
  readonly random: Random;
  /** How many in a thousand of what a driver writes is wrong; most worlds get somewhere. */
  readonly wild: number;
  readonly workers: number;
  readonly planes: NetPlane[] = [];
  readonly watched: Map<number, number>[] = [];
  readonly guests: Guest[] = [];
  readonly scratch = PrivateMemory.allocate(WORKERS * SWITCH_SCRATCH_BYTES);
  readonly news: [number, number, unknown][] = [];
  readonly loads = new SharedArrayBuffer(8 * 4096);
  nowMs = performance.now();
  faults = 0;
  markedPages = 0;
  /** Rings that the front-end sets up again some time. */
  readonly broken: [number, number][] = [];
  suspended = false;
  log: string[] = [];

  constructor(random: Random) {
    this.random = random;
    this.wild = [0, 1, 3, 30][this.random.next(4)]!;
    this.workers = 1 + this.random.next(WORKERS);
    const table = MacTable.create({ shared: true, ageingSeconds: 0 });
    for (let worker = 0; worker < this.workers; worker++) {
      const watched = new Map<number, number>();
      this.watched.push(watched);
      this.planes.push(
        createPlane({
          watch: (fd, token) => {
            assert(!watched.has(fd));
            watched.set(fd, token);
          },
          unwatch: (fd) => assert(watched.delete(fd)),
          emit: (event) => this.heard(worker, event),
          spinMs: 0.05,
          options: {
            macTable: table.memory,
            counters: new SharedArrayBuffer(COUNTERS_BYTES),
            scratchAt: this.scratch.offset + worker * SWITCH_SCRATCH_BYTES,
            worker,
            workers: this.workers,
            loads: this.loads,
          },
        }) as NetPlane,
      );
    }
    for (let port = 0; port < PORTS; port++) {
      const guest = new Guest();
      this.guests.push(guest);
      for (const [worker, plane] of this.planes.entries()) {
        const parkedAt = guest.parked.offset + worker * PARKED_FRAMES_BYTES;
        const one = { port, queuePairs: PAIRS, mtu: 1500, mac: null, linkUp: true, parkedAt };
        plane.command('addNetPort', { ...one, settings: this.settings() });
      }
    }
  }

  isWrong(): boolean {
    return this.random.next(1000) < this.wild;
  }

  settings(): unknown {
    const r = this.random;
    const vlan = chance(r, 80)
      ? { mode: 'access', vid: 1 }
      : { mode: 'trunk', allowed: 'all', native: null };
    const policy = PORT_POLICIES[r.next(PORT_POLICIES.length)];
    return { vlan, macLimit: 16, reflect: chance(r, 10), policy };
  }

  heard(worker: number, event: PlaneEvent): void {
    if (event.kind === 'driver-state') this.news.push([worker, event.device, event.state]);
    else if (event.kind === 'fault') {
      this.faults++;
      if (event.index >= 0) this.broken.push([event.device, event.index]);
    }
  }

  each(work: (plane: NetPlane) => void): void {
    for (const plane of this.planes) work(plane);
  }

  negotiate(guest: Guest): void {
    const r = this.random;
    const maybe = [
      net.VIRTIO_NET_F_MRG_RXBUF,
      net.VIRTIO_NET_F_CSUM,
      net.VIRTIO_NET_F_GUEST_CSUM,
      net.VIRTIO_NET_F_HOST_TSO4,
      net.VIRTIO_NET_F_GUEST_TSO4,
      virtio.VIRTIO_RING_F_EVENT_IDX,
      virtio.VIRTIO_F_IN_ORDER,
      virtio.VIRTIO_F_RING_PACKED,
      virtio.VIRTIO_RING_F_INDIRECT_DESC,
      virtio.VIRTIO_F_VERSION_1,
    ].filter(() => chance(r, 55));
    guest.features = virtio.featureSet(net.VIRTIO_NET_F_MQ, ...maybe);
    guest.iotlb = chance(r, 20);
    guest.isLogged = chance(r, 30);
    guest.pieces = chance(r, 70) ? 1 : 1 << r.next(5);
  }

  attach(port: number, index: number): void {
    const r = this.random;
    const guest = this.guests[port]!;
    if (guest.attached[index] !== null) return;
    if (guest.attached.every((one) => one === null)) this.negotiate(guest);
    const { features } = guest;
    const has = (bit: number): boolean => virtio.hasFeature(features, bit);
    const packed = has(virtio.VIRTIO_F_RING_PACKED);
    const size = packed ? 1 + r.next(64) : 1 << r.next(7);
    const layout = virtio.ringLayout(size, packed);
    assert(layout.totalBytes <= RING_BYTES);
    const at = guest.offset(0) + index * RING_BYTES;
    const isReceiveq = index % 2 === 0 && index < 2 * PAIRS;
    const isShared = isReceiveq && this.workers > 1;
    const owner = isShared ? -1 : r.next(this.workers);
    const record = (): Int32Array => new Int32Array(new SharedArrayBuffer(4 * SHARED_RING_WORDS));
    const { offset, sizeBytes, handle } = guest.log;
    const place = { offset, sizeBytes, handle };
    const usedGpa = GPAS[0]! + index * RING_BYTES + layout.usedAt;
    const attach: VringAttach = {
      device: port,
      index,
      config: {
        size,
        packed,
        eventIdx: has(virtio.VIRTIO_RING_F_EVENT_IDX),
        indirect: has(virtio.VIRTIO_RING_F_INDIRECT_DESC),
        inOrder: has(virtio.VIRTIO_F_IN_ORDER),
        descOffset: at,
        availOffset: at + layout.availAt,
        usedOffset: at + layout.usedAt,
        base: packed ? 0x8000_8000 : arena().view.getUint16(at + layout.availAt + 2, true),
      },
      map: guest.iotlb ? new Iotlb().map() : guest.map,
      regions: [guest.block.handle],
      features,
      kickFd: guest.kicks[index]!.number,
      callFd: chance(r, 80) ? guest.call.number : -1,
      injectedQueue: -1,
      errFd: -1,
      enabled: isShared ? false : chance(r, 95),
      iotlb: guest.iotlb,
      log: guest.isLogged ? { ...place, usedGpa, gpa: guest.map } : null,
      inflight: null,
      drain: true,
      ...(isShared && { shared: record() }),
    };
    guest.attached[index] = attach;
    guest.owner[index] = owner;
    this.owners(port, index, (plane) => plane.attachVring(attach));
    if (isShared) this.each((plane) => plane.enableVring(port, index, true));
    if (guest.iotlb) this.translate(guest, port);
  }

  translate(guest: Guest, port: number): void {
    const r = this.random;
    for (let n = r.next(8); n > 0; n--) {
      const range = r.next(2);
      const page = r.next(RANGE_BYTES / 4096) * 4096;
      const sizeBytes = 4096 * (1 + r.next(2));
      const entry = {
        iova: GPAS[range]! + page,
        sizeBytes: Math.min(sizeBytes, RANGE_BYTES - page),
        offset: guest.offset(range) + page,
        permissions: chance(r, 90) ? 3 : 1 + r.next(2),
      };
      if (chance(r, 80)) this.each((plane) => plane.updateIotlb(port, entry));
      else this.each((plane) => plane.invalidateIotlb(port, entry.iova, entry.sizeBytes));
    }
  }

  owners(port: number, index: number, work: (plane: NetPlane) => unknown): void {
    const owner = this.guests[port]!.owner[index]!;
    if (owner >= 0) work(this.planes[owner]!);
    else this.each((plane) => void work(plane));
  }

  detach(port: number, index: number): void {
    const guest = this.guests[port]!;
    if (guest.attached[index] === null) return;
    this.owners(port, index, (plane) => plane.detachVring(port, index));
    guest.attached[index] = null;
    if (guest.attached.some((one) => one !== null)) return;
    this.each((plane) => plane.resetDevice(port));
  }

  /** The driver writes. */
  strike(port: number): void {
    const r = this.random;
    const guest = this.guests[port]!;
    const view = arena().view;
    for (let n = r.next(4); n > 0; n--) {
      const range = r.next(2);
      this.frame(guest, guest.offset(range) + SLOTS_AT + r.next(SLOTS) * SLOT_BYTES, port);
    }
    const index = chance(r, 3) ? 2 * PAIRS : r.next(2 * PAIRS);
    const attach = guest.attached[index];
    if (attach === null || attach === undefined) return;
    const { size, packed, descOffset, availOffset } = attach.config;
    const writes = index % 2 === 0 && index < 2 * PAIRS;
    for (let n = 1 + r.next(packed ? 40 : 12); n > 0; n--) {
      const slot = r.next(size);
      const at = descOffset + 16 * slot;
      let flags = writes !== this.isWrong() ? 2 : 0;
      if (chance(r, 3)) flags |= 1;
      else if (this.isWrong()) flags = 4;
      if (this.isWrong()) flags = r.next(65536);
      if (packed) flags |= chance(r, 50) ? 0x80 : 0x8000;
      const next = (slot + 1) % size;
      const link = this.isWrong() ? r.next(65536) : packed ? r.next(size) : next;
      view.setBigUint64(at, this.address(), true);
      view.setUint32(at + 8, this.length(writes), true);
      if (!writes && chance(r, 15)) flags = (flags & ~3) | this.table(guest, at, packed);
      view.setUint16(at + 12, packed ? link : flags, true);
      view.setUint16(at + 14, packed ? flags : link, true);
    }
    if (!packed) {
      for (let n = r.next(16); n > 0; n--) {
        const head = this.isWrong() ? r.next(65536) : r.next(size);
        view.setUint16(availOffset + 4 + 2 * r.next(size), head, true);
      }
      const idx = view.getUint16(availOffset + 2, true);
      const used = view.getUint16(attach.config.usedOffset + 2, true);
      const ahead = (idx - used) & 0xffff;
      const room = ahead > size ? 0 : size - ahead;
      const step = this.isWrong() ? r.next(65536) : writes ? room : r.next(room + 1);
      view.setUint16(availOffset + 2, idx + step, true);
    }
    if (chance(r, 10)) view.setUint16(availOffset, r.next(4), true);
    if (chance(r, 80)) this.kick(guest, index);
  }

  /** Makes the descriptor at `at` point to a table that is written here; INDIRECT, its flag. */
  table(guest: Guest, at: number, packed: boolean): number {
    const r = this.random;
    const { view } = arena();
    const range = r.next(2);
    const slot = SLOTS_AT + r.next(SLOTS) * SLOT_BYTES;
    const entries = 1 + r.next(chance(r, 90) ? 4 : 40);
    for (let k = 0; k < entries; k++) {
      const entry = guest.offset(range) + slot + 16 * k;
      let flags = k + 1 < entries ? 1 : 0;
      if (this.isWrong()) flags = r.next(8);
      view.setBigUint64(entry, this.address(), true);
      view.setUint32(entry + 8, k === 0 && chance(r, 50) ? 12 : this.length(false), true);
      view.setUint16(entry + (packed ? 14 : 12), flags, true);
      view.setUint16(entry + (packed ? 12 : 14), this.isWrong() ? r.next(entries) : k + 1, true);
      if (!packed && (flags & 1) === 0) view.setUint16(entry + 14, 0, true);
    }
    view.setBigUint64(at, BigInt(GPAS[range]! + slot), true);
    view.setUint32(at + 8, this.isWrong() ? r.next(700) : 16 * entries, true);
    return 4;
  }

  kick(guest: Guest, index: number): void {
    const fd = guest.kicks[index]!.number;
    for (const [worker, watched] of this.watched.entries()) {
      const token = watched.get(fd);
      if (token !== undefined) this.planes[worker]!.ready(token, this.nowMs);
    }
  }

  frame(guest: Guest, at: number, port: number): void {
    const r = this.random;
    const view = arena().view;
    const header = virtio.hasFeature(guest.features, virtio.VIRTIO_F_VERSION_1) ? 12 : 10;
    const bytes = arena().bytes;
    bytes.fill(r.next(256), at, at + SLOT_BYTES);
    bytes.fill(0, at, at + header);
    if (chance(r, 20)) {
      view.setUint8(at, r.next(4));
      view.setUint8(at + 1, chance(r, 30) ? r.next(6) : 0);
      view.setUint16(at + 2, r.next(100), true);
      view.setUint16(at + 4, r.next(1500), true);
      view.setUint16(at + 6, chance(r, 90) ? 34 : r.next(2000), true);
      view.setUint16(at + 8, chance(r, 90) ? 6 : r.next(100), true);
    }
    const mac = (n: number): number[] => [2, 0, 0, 0, 0, n];
    const to = chance(r, 70) ? mac(r.next(PORTS)) : [255, 255, 255, 255, 255, 255];
    bytes.set([...to, ...mac(port), ...(chance(r, 10) ? [0x81, 0, 0, 1] : [8, 0])], at + header);
    bytes.set([0x45, 0, 1, 0, 0, 0, 0, 0, 64, chance(r, 50) ? 17 : 6], at + header + 14);
  }

  address(): bigint {
    const r = this.random;
    const range = r.next(2);
    const gpa = GPAS[range]!;
    if (this.isWrong()) return (BigInt(r.next(2 ** 32)) << 32n) | BigInt(r.next(2 ** 32));
    if (this.isWrong()) return BigInt(gpa) - BigInt(r.next(64));
    if (this.isWrong()) return BigInt(gpa + RANGE_BYTES - r.next(2000));
    // Into the rings, too.
    if (this.isWrong()) return BigInt(gpa + r.next(RANGE_BYTES - 2048));
    return BigInt(gpa + SLOTS_AT + r.next(SLOTS) * SLOT_BYTES);
  }

  length(writes: boolean): number {
    const r = this.random;
    if (this.isWrong()) return r.next(2 ** 32);
    if (this.isWrong()) return r.next(14);
    if (this.isWrong()) return 65553 + 10 + r.next(4);
    return writes ? (chance(r, 95) ? 2048 : 13 + r.next(2035)) : 26 + r.next(1600);
  }

  move(port: number, index: number): void {
    const guest = this.guests[port]!;
    const attach = guest.attached[index];
    if (!attach || guest.owner[index]! < 0 || attach.iotlb) return;
    const from = this.planes[guest.owner[index]!]!;
    const resumed = from.command('releaseVring', { device: port, index }) as ResumedVring | null;
    if (resumed === null) return;
    const next = { ...attach, config: { ...attach.config, base: resumed.base }, resumed };
    guest.owner[index] = (guest.owner[index]! + 1) % this.workers;
    guest.attached[index] = next;
    this.planes[guest.owner[index]!]!.attachVring(next);
  }

  /** A front-end truncates its memory and leaves. */
  truncate(port: number): void {
    const guest = this.guests[port]!;
    regionFaults()[guest.block.handle] = 1;
    if (chance(this.random, 50)) this.rounds(3);
    for (let index = 0; index < RINGS; index++) this.detach(port, index);
    regionFaults()[guest.block.handle] = 0;
  }

  rounds(count: number): void {
    for (let n = 0; n < count; n++) {
      // Not behind the plane's own clock.
      this.nowMs = Math.max(this.nowMs, performance.now()) + this.random.next(100) / 1000;
      for (const [worker, plane] of this.planes.entries()) {
        if (plane.awake > 0 && chance(this.random, 90)) plane.poll(this.nowMs);
        const isResting = [...this.watched[worker]!.values()].includes(REST_TOKEN);
        if (isResting && chance(this.random, 30)) plane.ready(REST_TOKEN, this.nowMs);
      }
      for (const [worker, port, state] of this.news.splice(0)) {
        for (const [other, plane] of this.planes.entries()) {
          if (other !== worker) plane.command('loadDriver', { port, state });
        }
        this.planes[worker]!.command('driverHeard', { port });
      }
    }
  }

  step(): void {
    const r = this.random;
    if (this.broken.length > 0 && chance(r, 30)) {
      const [device, ring] = this.broken.pop()!;
      this.detach(device, ring);
      this.attach(device, ring);
    }
    const port = r.next(PORTS);
    const index = r.next(RINGS);
    const what = r.next(100);
    this.log.push(`${what} ${port} ${index}`);
    if (what < 60) for (let n = 1 + r.next(6); n > 0; n--) this.strike(r.next(PORTS));
    else if (what < 72) this.attach(port, index);
    else if (what < 75) this.detach(port, index);
    else if (what < 82) this.move(port, index);
    else if (what < 84) {
      const settings = this.settings();
      this.each((plane) => plane.command('updatePort', { port, settings }));
    } else if (what < 86) {
      this.suspended = !this.suspended;
      this.each((plane) => plane.command(this.suspended ? 'suspend' : 'resume', undefined));
    } else if (what < 87) this.truncate(port);
    else if (what < 89) {
      const enabled = chance(r, 70);
      this.owners(port, index, (plane) => plane.enableVring(port, index, enabled));
    } else if (what < 90) {
      this.each((plane) => plane.command('setLink', { port, up: chance(r, 90) }));
    } else if (what < 93) this.translate(this.guests[port]!, port);
    else if (what < 95) this.gone(port);
    else if (what < 96) this.calm();
    else if (what < 98) this.marked(port);
    else if (what < 99) {
      this.planes[0]!.command('announce', { port, mac: Uint8Array.of(2, 0, 0, 0, 0, port) });
    } else this.owners(port, index, (plane) => plane.setCallFd(port, index, -1));
    this.rounds(r.next(4));
  }

  /** Without rings nothing of a guest is touched. */
  gone(port: number): void {
    const guest = this.guests[port]!;
    for (let index = 0; index < RINGS; index++) this.detach(port, index);
    const before = guest.hash();
    for (let other = 0; other < PORTS; other++) if (other !== port) this.strike(other);
    this.rounds(10);
    assert(guest.hash() === before, 'memory of a guest without rings is not written');
  }

  /** What was written into a guest with a dirty log is marked there. */
  marked(port: number): void {
    const guest = this.guests[port]!;
    if (!guest.isLogged) return;
    const { bytes } = arena();
    const { offset } = guest.log;
    const copies = [0, 1].map((range) => bytes.slice(guest.offset(range), guest.offset(range) + RANGE_BYTES)); // prettier-ignore
    bytes.fill(0, offset, offset + LOG_BYTES);
    for (let n = 0; n < 10; n++) {
      this.strike((port + 1 + (n % (PORTS - 1))) % PORTS);
      this.rounds(2);
    }
    for (const [range, before] of copies.entries()) {
      for (let page = 0; page < RANGE_BYTES; page += 4096) {
        const at = guest.offset(range) + page;
        const isSame = Buffer.compare(bytes.subarray(at, at + 4096), before.subarray(page, page + 4096)) === 0; // prettier-ignore
        const number = (GPAS[range]! + page) / 4096;
        const isMarked = ((bytes[offset + Math.trunc(number / 8)]! >> (number % 8)) & 1) === 1;
        assert(isSame || isMarked, () => `page ${number} of port ${port} was written and marked`);
        if (!isSame) this.markedPages++;
      }
    }
  }

  /** Drivers that do nothing let the workers sleep. */
  calm(): void {
    for (let n = 0; n < 400; n++) {
      this.rounds(1);
      this.nowMs += 2;
    }
    this.each((plane) => assert(plane.awake === 0, () => `${plane.awake} still awake`));
  }

  check(): void {
    for (const guest of this.guests) guest.checkGuards();
  }

  /** Returns how many chains there were. */
  close(): number {
    const chains = new Float64Array(this.loads).reduce((sum, load) => sum + load, 0);
    for (let port = 0; port < PORTS; port++) {
      for (let index = 0; index < RINGS; index++) this.detach(port, index);
      this.each((plane) => plane.command('removePort', { port }));
    }
    this.each((plane) => {
      if (this.suspended) plane.command('resume', undefined);
      plane.close();
    });
    for (const guest of this.guests) guest.close();
    this.scratch.close();
    return chains;
  }
}

export type NetPlaneFuzzReport = {
  iterations: number;
  chains: number;
  faults: number;
  markedPages: number;
};

const STEPS = 600;

/** @throws Error naming seed and iteration. */
export async function fuzz(options: {
  seconds: number;
  seed: number;
  onlyIteration?: number;
}): Promise<NetPlaneFuzzReport> {
  const { seconds, seed, onlyIteration } = options;
  const report = { iterations: 0, chains: 0, faults: 0, markedPages: 0 };
  const end = performance.now() + seconds * 1000;
  for (let iteration = onlyIteration ?? 0; performance.now() < end; iteration++) {
    const world = new World(Random.ofIteration(seed, iteration));
    try {
      for (let n = 0; n < STEPS; n++) {
        world.step();
        if (n % 20 === 0) world.check();
      }
      world.check();
    } catch (cause) {
      const where = `seed ${seed}, iteration ${iteration} (--only-iteration)`;
      throw new Error(`${where}, after ${world.log.slice(-6).join('; ')}`, { cause });
    }
    report.chains += world.close();
    report.faults += world.faults;
    report.markedPages += world.markedPages;
    report.iterations++;
    if (onlyIteration !== undefined) break;
    await new Promise((resolve) => setImmediate(resolve));
  }
  return report;
}
