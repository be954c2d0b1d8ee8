/**
 * One session of a front-end under test: what it said so far, and which rules that broke.
 *
 * A rule is *exercised* when there was an occasion to break it, and *broken* with a reason; a
 * rule without occasion has no verdict. Payloads, fds, features and states are judged by the
 * message table; memory and rings here.
 */
import { MemoryTable, SharedRegion, translate } from '../memory/index.ts';
import { type Fd, fdStat, fdTarget } from '../sys/index.ts';
import { parsePayload } from '../wire/vhost-user-parse.ts';
import * as wire from '../wire/vhost-user.ts';
import { hasFeature, VIRTIO_F_RING_PACKED, VIRTIO_RING_F_EVENT_IDX } from '../wire/virtio.ts';
import {
  FRONT_END_MESSAGES,
  type MessageEntry,
  type ProtocolState,
  REQUEST,
} from '../vhost-user/index.ts';
import type { RawMessage } from './raw-socket.ts';

export type WatchedRing = {
  size: number;
  base: number | null;
  addr: wire.VringAddr | null;
  kick: Fd | null;
  call: Fd | null;
  enabled: boolean;
  kickMessage: boolean;
  /** The kick fd was readable, or the ring is polled. */
  started: boolean;
  /** What GET_VRING_BASE answered, while the ring is stopped. */
  stoppedAt: number | null;
};

export type Findings = {
  readonly exercised: Set<string>;
  readonly broken: Map<string, string>;
};

const ALIGN = { descUva: 16, availUva: 2, usedUva: 4 } as const;

export class FrontEndWatch implements ProtocolState {
  readonly findings: Findings;
  features: bigint | null = null;
  protocolFeatures: bigint | null = null;
  postcopy: ProtocolState['postcopy'] = 'none';
  stateTransfer = false;
  readonly rings = new Map<number, WatchedRing>();
  readonly memory = new MemoryTable();
  readonly asked = new Set<number>();
  readonly #offered: { readonly virtio: bigint; readonly protocol: bigint };
  readonly #queues: number;
  #inflight: Uint8Array | null = null;

  constructor(
    findings: Findings,
    offered: { readonly virtio: bigint; readonly protocol: bigint },
    queues: number,
  ) {
    this.findings = findings;
    this.#offered = offered;
    this.#queues = queues;
  }

  isRunning(index: number): boolean {
    return this.rings.get(index)?.started ?? false;
  }

  vringSetup(index: number): { size: number; base: number | null; bigEndian: boolean } | null {
    const ring = this.rings.get(index);
    return ring === undefined ? null : { size: ring.size, base: ring.base, bigEndian: false };
  }

  get runningVrings(): number {
    return [...this.rings.values()].filter((ring) => ring.started).length;
  }

  get acks(): boolean {
    return hasFeature(this.protocolFeatures ?? 0n, wire.VHOST_USER_PROTOCOL_F_REPLY_ACK);
  }

  ring(index: number): WatchedRing {
    let ring = this.rings.get(index);
    if (ring === undefined) {
      ring = {
        size: 0,
        base: null,
        addr: null,
        kick: null,
        call: null,
        enabled: false,
        kickMessage: false,
        started: false,
        stoppedAt: null,
      };
      this.rings.set(index, ring);
    }
    return ring;
  }

  /** The rule had an occasion; it is broken unless `holds`. */
  judge(id: string, holds: boolean, why: string | (() => string)): void {
    this.findings.exercised.add(id);
    if (holds || this.findings.broken.has(id)) return;
    this.findings.broken.set(id, typeof why === 'string' ? why : why());
  }

  /** Judges one message and takes it in; its fds belong to the watch or are closed afterwards. */
  take(message: RawMessage): void {
    const { request, flags, payload, fds } = message;
    const entry = FRONT_END_MESSAGES.get(request);
    const short = entry?.name.replace('VHOST_USER_', '') ?? `request ${request}`;
    const text = `${short}: flags 0x${flags.toString(16)}`;
    this.judge('FE-FRAME-001', (flags & ~8) === 1, text);
    if (flags & wire.VHOST_USER_NEED_REPLY_MASK) {
      this.judge('FE-FRAME-002', this.acks, `${short} before REPLY_ACK was acked`);
    }
    this.judge('FE-FRAME-003', entry !== undefined, short);
    if (entry === undefined) return;
    this.#gates(entry, short);
    const [least, most] = entry.fds;
    const counted = fds.length >= least && fds.length <= most;
    this.judge('FE-MSG-002', counted, `${short} came with ${fds.length} fds`);
    let value: unknown;
    try {
      value = parsePayload(entry.payload, short, payload);
    } catch (error) {
      this.judge('FE-MSG-001', false, (error as Error).message);
      return;
    }
    this.judge('FE-MSG-001', true, '');
    const due = entry.payload.fdCount?.(value);
    if (due !== undefined) {
      this.judge('FE-MSG-002', due === fds.length, `${short}: ${fds.length} fds, ${due} are due`);
    }
    for (const rule of entry.legal) {
      const id = `FE-STATE-${rule.id.toUpperCase()}`;
      this.judge(id, rule.holds(this, value), `${short} breaks it`);
    }
    this.asked.add(request);
    this.#takeIn(entry, value, message, short);
  }

  close(): void {
    for (const ring of this.rings.values()) {
      ring.kick?.close();
      ring.call?.close();
    }
    this.memory.close();
  }

  /** When the session is over. */
  conclude(orderly: boolean): void {
    const bit30 = hasFeature(this.features ?? 0n, wire.VHOST_USER_F_PROTOCOL_FEATURES);
    const kicked = [...this.rings].filter(([, ring]) => ring.started || ring.stoppedAt !== null);
    if (this.asked.has(REQUEST.SET_VRING_ENABLE.id) && this.features !== null) {
      this.judge('FE-NEG-006', bit30, 'SET_FEATURES never acked bit 30');
    }
    if (hasFeature(this.protocolFeatures ?? 0n, wire.VHOST_USER_PROTOCOL_F_BACKEND_REQ)) {
      const opened = this.asked.has(REQUEST.SET_BACKEND_REQ_FD.id);
      this.judge('FE-CHAN-001', opened, 'SET_BACKEND_REQ_FD never came');
    }
    if (bit30 && kicked.length > 0) {
      const enabled = kicked.some(([, ring]) => ring.enabled) || this.#wasEnabled;
      this.judge('FE-RING-009', enabled, 'no kicked ring was ever enabled');
    }
    if (orderly && kicked.length > 0) {
      const running = kicked.filter(([, ring]) => ring.started).map(([index]) => index);
      this.judge('FE-RING-007', running.length === 0, `rings ${running.join(', ')} were running`);
    }
  }

  #wasEnabled = false;

  #gates(entry: MessageEntry, short: string): void {
    if (entry.needs !== null) {
      const has = hasFeature(this.protocolFeatures ?? 0n, entry.needs);
      const name = wire.PROTOCOL_FEATURE_NAMES[entry.needs] ?? entry.needs;
      this.judge('FE-MSG-003', has, `${short} without ${name}`);
    }
    if (entry.needsVirtio !== null) {
      const has = hasFeature(this.features ?? 0n, entry.needsVirtio);
      this.judge('FE-MSG-003', has, `${short} without virtio feature ${entry.needsVirtio}`);
    }
  }

  #takeIn(entry: MessageEntry, value: unknown, message: RawMessage, short: string): void {
    const { fds, payload } = message;
    switch (entry.id) {
      case REQUEST.SET_FEATURES.id: {
        const acked = value as bigint;
        const extra = acked & ~this.#offered.virtio;
        this.judge('FE-NEG-001', extra === 0n, () => `0x${extra.toString(16)} was not offered`);
        this.judge('FE-NEG-003', this.asked.has(REQUEST.GET_FEATURES.id), short);
        this.features = acked;
        return;
      }
      case REQUEST.SET_PROTOCOL_FEATURES.id: {
        const acked = value as bigint;
        const extra = acked & ~this.#offered.protocol;
        this.judge('FE-NEG-002', extra === 0n, () => `0x${extra.toString(16)} was not offered`);
        this.judge('FE-NEG-003', this.asked.has(REQUEST.GET_PROTOCOL_FEATURES.id), short);
        this.protocolFeatures = acked;
        return;
      }
      case REQUEST.SET_MEM_TABLE.id:
        this.#owner(short);
        for (const region of this.memory.regions.splice(0)) region.close();
        for (const [i, region] of (value as wire.MemoryRegion[]).entries()) {
          this.#addRegion(region, fds[i], short);
        }
        return;
      case REQUEST.ADD_MEM_REG.id:
        this.#owner(short);
        this.#addRegion(value as wire.MemoryRegion, fds[0], short);
        return;
      case REQUEST.REM_MEM_REG.id: {
        const found = this.memory.remove(value as wire.MemoryRegion);
        this.judge('FE-MEM-003', found !== null, 'a region that is not there');
        this.judge('FE-MEM-003', fds.length === 0, `${fds.length} fds came`);
        found?.close();
        return;
      }
      case REQUEST.GET_CONFIG.id:
      case REQUEST.SET_CONFIG.id:
        this.judge('FE-CONFIG-001', true, '');
        return;
      case REQUEST.SET_INFLIGHT_FD.id: {
        const same = this.#inflight !== null && Buffer.from(payload).equals(this.#inflight);
        this.judge('FE-INFLIGHT-001', same, 'it describes another region');
        return;
      }
      default:
        this.#takeRing(entry.id, value, fds, short);
    }
  }

  #owner(short: string): void {
    this.judge('FE-NEG-004', this.asked.has(REQUEST.SET_OWNER.id), `${short} before SET_OWNER`);
  }

  /** What GET_INFLIGHT_FD was answered. */
  gaveInflight(payload: Uint8Array): void {
    this.#inflight = payload.slice();
  }

  #addRegion(region: wire.MemoryRegion, fd: Fd | undefined, short: string): void {
    if (fd === undefined) return;
    const { kind, sizeBytes } = fdStat(fd.number);
    const end = region.fdOffset + region.sizeBytes;
    const isFile = kind === 'file' || kind === 'memfd-like';
    this.judge('FE-MEM-002', isFile && end <= BigInt(sizeBytes), () => {
      return `${short}: the region ends at ${end}, the ${kind} at ${sizeBytes}`;
    });
    let mapped: SharedRegion | null = null;
    try {
      mapped = SharedRegion.map(fd.number, region, 'front-end memory');
      this.memory.add(mapped);
      this.judge('FE-MEM-001', true, '');
    } catch (error) {
      mapped?.close();
      const { code, message } = error as { code?: string; message: string };
      if (code === 'ERR_VRING_MEMORY_OVERLAP') {
        this.judge('FE-MEM-001', false, `${short}: ${message}`);
      }
    }
  }

  #takeRing(id: number, value: unknown, fds: Fd[], short: string): void {
    const { index } = (value ?? {}) as { index?: number };
    if (typeof index !== 'number') return;
    this.judge('FE-RING-001', index < this.#queues, `${short}: ring ${index} of ${this.#queues}`);
    const ring = this.ring(index);
    const { num } = value as { num: number };
    switch (id) {
      case REQUEST.SET_VRING_NUM.id:
        ring.size = num;
        return;
      case REQUEST.SET_VRING_BASE.id:
        if (ring.stoppedAt !== null) {
          const fresh = num === 0 || (num & 0x7fff_7fff) === 0;
          this.judge('FE-RING-008', num === ring.stoppedAt || fresh, () => {
            return `ring ${index} was stopped at ${ring.stoppedAt}, its base is set to ${num}`;
          });
        }
        ring.base = num;
        return;
      case REQUEST.SET_VRING_ADDR.id: {
        const addr = value as wire.VringAddr;
        ring.addr = addr;
        if (addr.flags & wire.VHOST_VRING_F_LOG) {
          const log = hasFeature(this.features ?? 0n, wire.VHOST_F_LOG_ALL);
          this.judge('FE-LOG-001', log, `ring ${index}`);
        }
        return;
      }
      case REQUEST.SET_VRING_ENABLE.id:
        ring.enabled = (value as { enabled: boolean }).enabled;
        this.#wasEnabled ||= ring.enabled;
        return;
      case REQUEST.SET_VRING_KICK.id:
      case REQUEST.SET_VRING_CALL.id:
      case REQUEST.SET_VRING_ERR.id:
        this.#takeNotifier(id, ring, fds, short);
        return;
      default:
    }
  }

  #takeNotifier(id: number, ring: WatchedRing, fds: Fd[], short: string): void {
    const fd = fds.shift() ?? null;
    if (fd !== null) {
      const target = fdTarget(fd.number);
      const right = target === 'anon_inode:[eventfd]' || target.startsWith('pipe:');
      this.judge('FE-RING-005', right, `${short}: the fd is ${target}`);
    }
    if (id === REQUEST.SET_VRING_KICK.id) {
      ring.kick?.close();
      ring.kick = fd;
      ring.kickMessage = true;
    } else if (id === REQUEST.SET_VRING_CALL.id) {
      ring.call?.close();
      ring.call = fd;
    } else fd?.close();
  }

  /**
   * The ring was kicked: is it complete? Returns arena offsets of its areas, or null.
   */
  kicked(index: number): { descOffset: number; availOffset: number; usedOffset: number } | null {
    const ring = this.ring(index);
    ring.started = true;
    ring.stoppedAt = null;
    const { size, addr } = ring;
    this.judge('FE-NEG-005', this.features !== null, `ring ${index} was kicked before`);
    const complete = size > 0 && addr !== null && this.memory.regions.length > 0;
    this.judge('FE-RING-004', complete, () => {
      const has = [size > 0 && 'size', addr !== null && 'addresses'].filter(Boolean).join(', ');
      return `ring ${index} has ${has || 'nothing'} when it is kicked`;
    });
    if (!complete || this.features === null) return null;
    const packed = hasFeature(this.features, VIRTIO_F_RING_PACKED);
    const possible = size <= 32768 && (packed || (size & (size - 1)) === 0);
    this.judge('FE-RING-002', possible, `ring ${index} has ${size} descriptors`);
    if (!possible) return null;
    const event = hasFeature(this.features, VIRTIO_RING_F_EVENT_IDX) ? 2 : 0;
    const bytes = packed
      ? { descUva: 16 * size, availUva: 4, usedUva: 4 }
      : { descUva: 16 * size, availUva: 4 + 2 * size + event, usedUva: 4 + 8 * size + event };
    const map = this.memory.uvaMap();
    const offsets = (['descUva', 'availUva', 'usedUva'] as const).map((area) => {
      const uva = Number(addr[area]);
      const offset = translate(map, uva, bytes[area]);
      const right = offset >= 0 && uva % (packed && area !== 'descUva' ? 4 : ALIGN[area]) === 0;
      this.judge('FE-RING-003', right, `ring ${index}: ${area} is 0x${uva.toString(16)}`);
      return right ? offset : -1;
    });
    if (offsets.some((offset) => offset < 0)) return null;
    const [descOffset, availOffset, usedOffset] = offsets as [number, number, number];
    return { descOffset, availOffset, usedOffset };
  }
}
