/** From a port as people write it to the port that the switch runs: what crosses several keys. */
import { MAX_PORTS } from '../base/limits.ts';
import { MAX_SOCKET_PATH_BYTES } from './input-fields.ts';
import type { PortInput } from './port-input.ts';
import { valueText, type RawProblem } from './config-problem.ts';
import { resolveOwner, type AccountFiles } from './owner.ts';
import type { OffloadConfig, PortConfig, VlanConfig } from './switch-types.ts';

export const DEFAULT_SOCKET_MODE = '0660';

/** What `resolvePort` and its helpers found wrong, with keys below the port. */
export type Report = (keys: readonly PropertyKey[], problem: string) => void;

/** Returns the port, or null after reporting why not. `keys` is where the port stands. */
export function resolvePort(
  input: PortInput,
  keys: readonly PropertyKey[],
  problems: RawProblem[],
  accounts?: AccountFiles,
): PortConfig | null {
  const before = problems.length;
  const report: Report = (below, problem) => problems.push({ keys: [...keys, ...below], problem });
  const common = {
    name: input.name,
    vlan: resolveVlan(input.vlan, report),
    offload: resolveOffload(input.offload ?? {}, report),
    mtu: input.mtu,
    reflect: input.reflect,
    macLimit: input.macLimit,
    ...(input.policy === undefined ? {} : { policy: input.policy }),
  };
  let port: PortConfig;
  if (input.kind === 'tap') {
    port = { ...common, kind: 'tap', interface: input.interface, queues: input.queues };
  } else if (input.kind === 'packet') {
    const { kind, interface: name, queues, qdiscBypass } = input;
    port = { ...common, kind, interface: name, queues, qdiscBypass };
  } else if (input.kind === 'xdp') {
    const { kind, interface: name, queues, copyMode, attach } = input;
    port = { ...common, kind, interface: name, queues: queues ?? null, copyMode, attach };
  } else if (input.kind === 'vduse') {
    const { kind, device, packed, mrgRxbuf, bind, keep } = input;
    const mac = input.mac?.toLowerCase() ?? null;
    port = { ...common, kind, device, mac, packed, mrgRxbuf, bind, keep };
  } else {
    checkSocketPath(input.path, ['path'], report);
    port = {
      ...common,
      ...resolveSocket(input, report, accounts),
      kind: 'vhost-user',
      path: input.path,
      queuePairs: input.queuePairs,
      mac: input.mac?.toLowerCase() ?? null,
      packed: input.packed,
      mrgRxbuf: input.mrgRxbuf,
      iommu: input.iommu,
      postcopy: input.postcopy,
    };
  }
  return problems.length === before ? port : null;
}

/** `sun_path` counts bytes; the schema counted characters. */
export function checkSocketPath(path: string, keys: readonly PropertyKey[], report: Report): void {
  const bytes = Buffer.byteLength(path);
  if (bytes <= MAX_SOCKET_PATH_BYTES) return;
  report(
    keys,
    `${valueText(path)} has ${bytes} bytes; Unix sockets allow ${MAX_SOCKET_PATH_BYTES}`,
  );
}

/** `0660`, `0o660` and `660` are the same mode. */
export function parseFileMode(text: string): number {
  return Number.parseInt(text.slice(-3), 8);
}

type VhostUserInput = Extract<PortInput, { kind: 'vhost-user' }>;

function resolveSocket(input: VhostUserInput, report: Report, accounts?: AccountFiles) {
  if (input.mode === 'client') {
    for (const key of ['socketOwner', 'socketMode'] as const) {
      if (input[key] === undefined) continue;
      report([key], 'the other side makes the socket in client mode; remove this or client mode');
    }
    return { mode: input.mode, socketOwner: null, socketMode: null };
  }
  let socketOwner = null;
  if (input.socketOwner !== undefined) {
    const owner = resolveOwner(input.socketOwner, accounts);
    if (typeof owner === 'string') report(['socketOwner'], owner);
    else socketOwner = owner;
  }
  const socketMode = parseFileMode(input.socketMode ?? DEFAULT_SOCKET_MODE);
  return { mode: input.mode, socketOwner, socketMode };
}

/** A number is an access VLAN; the native VLAN of a trunk is always allowed on it. */
export function resolveVlan(input: PortInput['vlan'], report: Report): VlanConfig {
  if (typeof input === 'number') return { mode: 'access', vid: input };
  if (input.mode === 'access') return input;
  if (input.allowed === 'all') return { mode: 'trunk', allowed: 'all', native: input.native };
  const allowed = new Set(input.allowed);
  if (allowed.size !== input.allowed.length) {
    const list: readonly number[] = input.allowed;
    const twice = list.findIndex((vid, i) => list.indexOf(vid) !== i);
    report(['vlan', 'allowed', twice], `VLAN ${list[twice]} is listed twice; remove one`);
  }
  if (input.native !== null) allowed.add(input.native);
  return { mode: 'trunk', allowed: [...allowed].sort((a, b) => a - b), native: input.native };
}

/** Segmentation needs checksums: without csum the others are off, unless they were asked for. */
function resolveOffload(
  input: { csum?: boolean | undefined; tso?: boolean | undefined; uso?: boolean | undefined },
  report: Report,
): OffloadConfig {
  const csum = input.csum ?? true;
  for (const key of ['tso', 'uso'] as const) {
    if (csum || input[key] !== true) continue;
    report(['offload', key], `${key} needs checksum offload; turn csum on or ${key} off`);
  }
  return { csum, tso: csum && (input.tso ?? true), uso: csum && (input.uso ?? true) };
}

/** What a port leads to, and its key in the configuration. */
function endpointOf(port: PortConfig): readonly ['interface' | 'path' | 'device', string] {
  if ('interface' in port) return ['interface', port.interface];
  return port.kind === 'vduse' ? ['device', port.device] : ['path', port.path];
}

/** A port and where it was written. */
export type PlacedPort = { readonly port: PortConfig; readonly keys: readonly PropertyKey[] };

/** Names, sockets and interfaces belong to one port each. `where` names the first owner. */
export function findDuplicates(
  ports: readonly PlacedPort[],
  report: (placed: PlacedPort, key: string, problem: string) => void,
): void {
  const seen = new Map<string, PlacedPort>();
  for (const placed of ports) {
    const { port } = placed;
    for (const [key, value] of [['name', port.name] as const, endpointOf(port)]) {
      const first = seen.get(`${key} ${value}`);
      if (first) {
        const also = key === 'name' ? '' : ` ${first.port.name}`;
        report(
          placed,
          key,
          `${valueText(value)} belongs to another port${also}; give each its own`,
        );
      } else {
        seen.set(`${key} ${value}`, placed);
      }
    }
  }
  const extra = ports[MAX_PORTS];
  if (extra) {
    report(extra, 'name', `this is port ${MAX_PORTS + 1}; one switch has at most ${MAX_PORTS}`);
  }
}
