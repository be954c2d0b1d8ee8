/**
 * The state of a net device between two back-ends: what its driver set through the control queue,
 * what the switch learned and counted of its port. It travels over SET_DEVICE_STATE_FD when a
 * guest migrates (specification, "Migrating back-end state") and is described in
 * docs/device-state.md.
 *
 * The bytes are a line `vring-net-port/<version>` and JSON. They passed through a front-end that we
 * do not know: everything is checked here, and what does not fit is refused by name.
 */
import { MAX_VRINGS } from '../../base/limits.ts';
import { messageOf, VringError } from '../../base/errors.ts';
import { isMacText } from '../../wire/ethernet.ts';
import { FILTER_ADDRESSES_MAX, type FilterState } from './receive-filter.ts';

/** What a worker keeps of a port for its driver. */
export type NetPlaneState = {
  readonly filter: FilterState;
  /** Queue pairs in use. */
  readonly activePairs: number;
  /** By name, of the data half. */
  readonly counters: Readonly<Record<string, number>>;
};

export type LearnedMac = readonly [mac: string, vlan: number, ageSeconds: number];

export type NetState = NetPlaneState & {
  /** Acked virtio features. */
  readonly features: bigint;
  readonly mtu: number;
  readonly linkUp: boolean;
  /** The address in the configuration space; null: none was offered or written. */
  readonly mac: string | null;
  readonly macs: readonly LearnedMac[];
  /** By name, of the switch. */
  readonly switchCounters: Readonly<Record<string, number>>;
};

export const NET_STATE_VERSION = 1;
const MAGIC = 'vring-net-port';
/** 65536 learned addresses take 2 MiB. */
export const MAX_NET_STATE_BYTES = 4 * 1024 * 1024;
/** As many as a port may learn at most. */
const MAX_MACS = 65536;
const MAX_COUNTERS = 256;
const MAX_AGE_SECONDS = 0x7fff_ffff;

/** Not a state of ours, or cut short. */
export const ERR_STATE_FORMAT = 'ERR_VRING_STATE_FORMAT';
/** Of another version of the format. */
export const ERR_STATE_VERSION = 'ERR_VRING_STATE_VERSION';
/** A value that no state of ours has. */
export const ERR_STATE_VALUE = 'ERR_VRING_STATE_VALUE';
/** Sound, but this port cannot go on with it. */
export const ERR_STATE_MISMATCH = 'ERR_VRING_STATE_MISMATCH';

export function encodeNetState(state: NetState): Uint8Array {
  const { features, ...rest } = state;
  const json = JSON.stringify({ ...rest, features: `0x${features.toString(16)}` });
  return new TextEncoder().encode(`${MAGIC}/${NET_STATE_VERSION}\n${json}\n`);
}

/** @throws VringError ERR_VRING_STATE_FORMAT, _VERSION, _VALUE. */
export function parseNetState(bytes: Uint8Array): NetState {
  const value = readDocument(bytes);
  const root = record(value, 'state', [
    'filter',
    'activePairs',
    'counters',
    'features',
    'mtu',
    'linkUp',
    'mac',
    'macs',
    'switchCounters',
  ]);
  return {
    filter: parseFilter(root.filter),
    activePairs: integer(root.activePairs, 'activePairs', 1, (MAX_VRINGS - 1) / 2),
    counters: counters(root.counters, 'counters'),
    features: bits(root.features, 'features'),
    mtu: integer(root.mtu, 'mtu', 68, 65535),
    linkUp: flag(root.linkUp, 'linkUp'),
    mac: root.mac === null ? null : mac(root.mac, 'mac'),
    macs: list(root.macs, 'macs', MAX_MACS).map((entry, i) => learnedMac(entry, `macs[${i}]`)),
    switchCounters: counters(root.switchCounters, 'switchCounters'),
  };
}

/** What a port offers, as far as a state may exceed it. */
export type NetStateLimits = {
  readonly features: bigint;
  readonly queuePairs: number;
  readonly mtu: number;
};

/** @throws VringError ERR_VRING_STATE_MISMATCH. */
export function checkNetState(state: NetState, limits: NetStateLimits): void {
  const refuse = (problem: string): never => {
    throw new VringError(ERR_STATE_MISMATCH, `device state: ${problem}`);
  };
  const extra = state.features & ~limits.features;
  if (extra !== 0n) refuse(`its driver acked 0x${extra.toString(16)}, which this port lacks`);
  if (state.activePairs > limits.queuePairs) {
    refuse(`${state.activePairs} queue pairs are in use, this port has ${limits.queuePairs}`);
  }
  if (state.mtu > limits.mtu) {
    refuse(`its mtu is ${state.mtu}, this port's ${limits.mtu}; configure at least as much here`);
  }
}

function readDocument(bytes: Uint8Array): unknown {
  if (bytes.length > MAX_NET_STATE_BYTES) {
    throw format(`has ${bytes.length} bytes, at most ${MAX_NET_STATE_BYTES} are taken`);
  }
  const end = bytes.subarray(0, 64).indexOf(0x0a);
  const line = new TextDecoder('latin1').decode(bytes.subarray(0, Math.max(end, 0)));
  const match = /^vring-net-port\/(\d{1,9})$/.exec(line);
  if (match === null) throw format(`does not begin with "${MAGIC}/${NET_STATE_VERSION}"`);
  if (Number(match[1]) !== NET_STATE_VERSION) {
    const text = `device state: has version ${match[1]}, this vring knows ${NET_STATE_VERSION}`;
    throw new VringError(ERR_STATE_VERSION, text);
  }
  try {
    const text = new TextDecoder('utf-8', { fatal: true }).decode(bytes.subarray(end + 1));
    return JSON.parse(text);
  } catch (cause) {
    throw format(`is no JSON after its first line: ${messageOf(cause)}`, cause);
  }
}

function parseFilter(value: unknown): FilterState {
  const fields = record(value, 'filter', [
    'promiscuous',
    'allMulticast',
    'allUnicast',
    'noMulticast',
    'noUnicast',
    'noBroadcast',
    'own',
    'addresses',
    'vlans',
  ]);
  const addresses = list(fields.addresses, 'filter.addresses', 2 * FILTER_ADDRESSES_MAX);
  const vlans = fields.vlans === null ? null : list(fields.vlans, 'filter.vlans', 4096);
  return {
    promiscuous: flag(fields.promiscuous, 'filter.promiscuous'),
    allMulticast: flag(fields.allMulticast, 'filter.allMulticast'),
    allUnicast: flag(fields.allUnicast, 'filter.allUnicast'),
    noMulticast: flag(fields.noMulticast, 'filter.noMulticast'),
    noUnicast: flag(fields.noUnicast, 'filter.noUnicast'),
    noBroadcast: flag(fields.noBroadcast, 'filter.noBroadcast'),
    own: fields.own === null ? null : mac(fields.own, 'filter.own'),
    addresses: addresses.map((entry, i) => mac(entry, `filter.addresses[${i}]`)),
    vlans: vlans?.map((vid, i) => integer(vid, `filter.vlans[${i}]`, 0, 4095)) ?? null,
  };
}

function learnedMac(value: unknown, path: string): LearnedMac {
  const entry = list(value, path, 3);
  if (entry.length !== 3) throw wrong(path, entry, 'an address, a VLAN and an age');
  const address = mac(entry[0], `${path}[0]`);
  if (Number.parseInt(address.slice(0, 2), 16) & 1) throw wrong(path, address, 'no group address');
  return [
    address,
    integer(entry[1], `${path}[1]`, 1, 4094),
    integer(entry[2], `${path}[2]`, 0, MAX_AGE_SECONDS),
  ];
}

/** Exactly these keys, so that nothing is taken over that nobody looked at. */
function record<K extends string>(
  value: unknown,
  path: string,
  keys: readonly K[],
): Record<K, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw wrong(path, value, 'an object');
  }
  for (const key of Object.keys(value)) {
    if (!(keys as readonly string[]).includes(key)) throw wrong(path, key, 'no such key');
  }
  for (const key of keys) if (!Object.hasOwn(value, key)) throw wrong(path, value, `${key} in it`);
  return value as Record<K, unknown>;
}

function list(value: unknown, path: string, most: number): unknown[] {
  if (!Array.isArray(value) || value.length > most) {
    throw wrong(path, value, `a list of at most ${most}`);
  }
  return value;
}

function flag(value: unknown, path: string): boolean {
  if (typeof value !== 'boolean') throw wrong(path, value, 'true or false');
  return value;
}

function integer(value: unknown, path: string, min: number, max: number): number {
  if (!Number.isInteger(value) || (value as number) < min || (value as number) > max) {
    throw wrong(path, value, `a whole number from ${min} to ${max}`);
  }
  return value as number;
}

function mac(value: unknown, path: string): string {
  if (typeof value !== 'string' || !isMacText(value)) throw wrong(path, value, 'a MAC address');
  return value.toLowerCase();
}

function bits(value: unknown, path: string): bigint {
  if (typeof value !== 'string' || !/^0x[0-9a-f]{1,16}$/.test(value)) {
    throw wrong(path, value, 'feature bits as hexadecimal text');
  }
  return BigInt(value);
}

/** Names are free: a version with other counters is not another format. */
function counters(value: unknown, path: string): Record<string, number> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw wrong(path, value, 'counters by name');
  }
  const entries = Object.entries(value);
  if (entries.length > MAX_COUNTERS) {
    throw wrong(path, `${entries.length} counters`, `at most ${MAX_COUNTERS}`);
  }
  const parsed: Record<string, number> = {};
  for (const [name, count] of entries) {
    if (!/^[a-z][A-Za-z0-9]{0,63}$/.test(name)) throw wrong(path, name, 'the name of a counter');
    parsed[name] = integer(count, `${path}.${name}`, 0, Number.MAX_SAFE_INTEGER);
  }
  return parsed;
}

function format(problem: string, cause?: unknown): VringError {
  return new VringError(ERR_STATE_FORMAT, `device state: ${problem}`, { cause });
}

function wrong(path: string, value: unknown, expected: string): VringError {
  const text = JSON.stringify(value) ?? 'nothing';
  const shown = text.length > 60 ? `${text.slice(0, 60)}...` : text;
  return new VringError(ERR_STATE_VALUE, `device state: ${path} is ${shown}, expected ${expected}`);
}
