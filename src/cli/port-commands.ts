/** `vring ports`, `vring port ...`, `vring macs`, `vring version`. */
import { resolve } from 'node:path';
import { totalDrops } from '../daemon/switch-control.ts';
import type { MacEntry, PortStatus, QueueStatus, VlanConfig } from '../daemon/switch-types.ts';
import { ApiClient } from './client.ts';
import {
  counted,
  print,
  printable,
  printJson,
  short,
  STATE_COLOURS,
  table,
  UsageError,
  pc,
} from './output.ts';

export type ClientOptions = { readonly control?: string; readonly json?: boolean };

const portUrl = (name: string): string => `/v1/ports/${encodeURIComponent(name)}`;

export async function showPorts(options: ClientOptions): Promise<void> {
  const ports = await new ApiClient(options.control).json<PortStatus[]>('/v1/ports');
  if (options.json) return printJson(ports);
  if (ports.length === 0) {
    return print('no ports; add one: vring port add vm0=vhost-user:/run/vring/vm0.sock');
  }
  const columns = [
    { title: 'PORT' },
    { title: 'STATE' },
    { title: 'VLAN' },
    { title: 'MTU', align: 'right' },
    { title: 'QUEUES', align: 'right' },
    { title: 'RX FRAMES', align: 'right' },
    { title: 'TX FRAMES', align: 'right' },
    { title: 'DROPS', align: 'right' },
    { title: 'ENDPOINT' },
  ] as const;
  print(await table(columns, ports.map(portRow)));
  for (const port of ports) {
    if (port.reason && port.state !== 'up') print(reasonLine(port));
  }
}

function portRow(port: PortStatus): string[] {
  const { counters } = port;
  const drops = totalDrops(counters);
  return [
    printable(port.name),
    stateText(port),
    vlanText(port.vlan),
    String(port.mtu),
    port.queues.length === 0 ? '-' : `${runningQueues(port)}/${port.queues.length}`,
    short(counters.rxFrames ?? 0),
    short(counters.txFrames ?? 0),
    drops > 0 ? pc.yellow(short(drops)) : '0',
    `${port.kind}:${printable(port.endpoint)}`,
  ];
}

function stateText(port: PortStatus): string {
  return (STATE_COLOURS[port.state] ?? String)(port.state);
}

function reasonLine(port: PortStatus): string {
  const { code, message, at } = port.reason!;
  return `${printable(port.name)}: ${printable(message)} (${code}, ${at})`;
}

function runningQueues(port: PortStatus): number {
  return port.queues.filter((queue) => queue.enabled && queue.started && !queue.fault).length;
}

export function vlanText(vlan: VlanConfig): string {
  if (vlan.mode === 'access') return String(vlan.vid);
  const allowed = vlan.allowed === 'all' ? 'all' : vlan.allowed.join('+');
  const shown = allowed.length > 20 ? `${allowed.slice(0, 17)}...` : allowed;
  return `trunk ${shown}${vlan.native === null ? '' : ` native ${vlan.native}`}`;
}

export async function showPort(name: string, options: ClientOptions): Promise<void> {
  const port = await new ApiClient(options.control).json<PortStatus>(portUrl(name));
  if (options.json) printJson(port);
  else await printPort(port);
}

/** Other counters are shown once they count something; `--json` has all. */
const ALWAYS_SHOWN = new Set(['rxFrames', 'rxBytes', 'txFrames', 'txBytes']);

async function printPort(port: PortStatus): Promise<void> {
  const features = (set: PortStatus['features']) =>
    set === null ? '-' : `${set.bits} ${set.names.join(' ')}`;
  const facts: [string, string][] = [
    ['port', printable(port.name)],
    ['state', stateText(port)],
    ['reason', port.reason ? reasonLine(port).replace(`${printable(port.name)}: `, '') : '-'],
    ['link', port.linkUp ? 'up' : 'down'],
    ['policy', port.policy],
    ['endpoint', `${port.kind}:${printable(port.endpoint)}`],
    ['sessions', String(port.sessions)],
    ['vlan', vlanText(port.vlan)],
    ['mtu', String(port.mtu)],
    ['features', features(port.features)],
    ['protocol features', features(port.protocolFeatures)],
    [
      'memory',
      port.memory
        ? `${counted(port.memory.regions, 'region')}, ${short(port.memory.bytes)} bytes`
        : '-',
    ],
    ...sessionFacts(port.session),
    ...Object.entries(port.counters)
      .filter(([key, value]) => value !== 0 || ALWAYS_SHOWN.has(key))
      .map(([key, value]): [string, string] => [key, String(value)]),
  ];
  for (const [key, value] of facts) print(`${key.padEnd(20)} ${value}`);
  if (port.queues.length === 0) return;
  const counters = Object.keys(port.queues[0]!.counters);
  const columns = [
    { title: 'QUEUE' },
    { title: 'SIZE', align: 'right' as const },
    { title: 'STATE' },
    ...counters.map((name) => ({ title: spaced(name), align: 'right' as const })),
  ];
  const rows = port.queues.map((queue) => [
    queue.name,
    String(queue.size),
    queueState(queue),
    ...counters.map((name) => String(queue.counters[name] ?? 0)),
  ]);
  print(`\n${await table(columns, rows)}`);
}

/** What is not there is not shown; `--json` has all. */
function sessionFacts(session: PortStatus['session']): [string, string][] {
  if (session === null) return [];
  const { log, iotlb, channel, postcopy, messages, refusals } = session;
  const facts: [string, string][] = [['messages', `${messages}, ${refusals} refused`]];
  if (log !== null) facts.push(['dirty log', log.active ? 'active' : 'shared, not active']);
  if (iotlb !== null) {
    const { entries, misses, updates, invalidations } = iotlb;
    const text = `${entries} entries, ${misses} misses, ${updates} updates`;
    facts.push(['iotlb', `${text}, ${invalidations} invalidations`]);
  }
  if (channel !== null) facts.push(['backend channel', counted(channel.requests, 'request')]);
  if (postcopy !== 'none') facts.push(['postcopy', postcopy]);
  return facts;
}

/** `callsSuppressed` to `CALLS SUPPRESSED`. */
function spaced(name: string): string {
  return name.replaceAll(/([A-Z])/g, ' $1').toUpperCase();
}

function queueState(queue: QueueStatus): string {
  if (queue.fault !== null) return pc.red(`broken: ${printable(queue.fault)}`);
  if (!queue.started) return 'stopped';
  return queue.enabled ? pc.green('running') : 'disabled';
}

export async function addPort(spec: string, options: ClientOptions): Promise<void> {
  const { parsePortSpec } = await import('../daemon/port-spec.ts');
  const parsed = parsePortSpec(spec);
  if (parsed.problems) {
    throw new UsageError(
      parsed.problems.map((p) => `${p.path.replace(/^--port/, 'port')}: ${p.problem}`).join('\n'),
    );
  }
  const body = parsed.input;
  const port = await new ApiClient(options.control).json<PortStatus>('/v1/ports', {
    method: 'POST',
    body: body.kind === 'vhost-user' ? { ...body, path: resolve(body.path) } : body,
  });
  if (options.json) printJson(port);
  else print(`port ${port.name} is ${stateText(port)}: ${port.kind}:${port.endpoint}`);
}

export async function removePort(name: string, options: ClientOptions): Promise<void> {
  await new ApiClient(options.control).json(portUrl(name), { method: 'DELETE' });
  if (options.json) printJson({ removed: name });
  else print(`port ${printable(name)} is removed`);
}

export type SetOptions = ClientOptions & {
  readonly link?: string;
  readonly vlan?: string;
  readonly trunk?: string;
  readonly native?: string;
  readonly mtu?: string;
  readonly policy?: string;
};

export async function setPort(name: string, options: SetOptions): Promise<void> {
  const body: { linkUp?: boolean; vlan?: unknown; mtu?: number; policy?: string } = {};
  if (options.policy !== undefined) body.policy = options.policy;
  if (options.mtu !== undefined) body.mtu = Number(options.mtu);
  if (options.link !== undefined) {
    if (options.link !== 'up' && options.link !== 'down') {
      throw new UsageError(`--link: "${options.link}" is not one of up, down`);
    }
    body.linkUp = options.link === 'up';
  }
  const vlan = vlanOf(options);
  if (vlan !== undefined) body.vlan = vlan;
  if (Object.keys(body).length === 0) {
    throw new UsageError('nothing to set; give --link, --vlan, --trunk, --mtu or --policy');
  }
  const client = new ApiClient(options.control);
  const port = await client.json<PortStatus>(portUrl(name), { method: 'PATCH', body });
  if (options.json) return printJson(port);
  const link = port.linkUp ? 'up' : 'down';
  const { name: itself, vlan: its, mtu, policy } = port;
  print(`port ${itself}: link ${link}, vlan ${vlanText(its)}, mtu ${mtu}, policy ${policy}`);
}

/** Numbers where they are numbers; what is not gets the switch's own error. */
function vlanOf({ vlan, trunk, native }: SetOptions): unknown {
  const number = (text: string): unknown => (/^\d{1,9}$/.test(text) ? Number(text) : text);
  if (vlan !== undefined && (trunk !== undefined || native !== undefined)) {
    throw new UsageError('--vlan makes an access port; it contradicts --trunk and --native');
  }
  if (vlan !== undefined) return number(vlan);
  if (trunk === undefined) {
    if (native !== undefined) throw new UsageError('--native belongs to a trunk; add --trunk');
    return undefined;
  }
  const allowed = trunk === 'all' ? 'all' : trunk.split('+').map(number);
  const untagged = native === undefined || native === 'none' ? null : number(native);
  return { mode: 'trunk', allowed, native: untagged };
}

export type MacOptions = ClientOptions & { readonly port?: string; readonly flush?: boolean };

export async function showMacs(options: MacOptions): Promise<void> {
  const client = new ApiClient(options.control);
  const query = options.port === undefined ? '' : `?port=${encodeURIComponent(options.port)}`;
  if (options.flush) {
    const result = await client.json<{ flushed: number }>(`/v1/macs${query}`, { method: 'DELETE' });
    if (options.json) return printJson(result);
    const what = result.flushed === 1 ? 'address is' : 'addresses are';
    return print(`${result.flushed} ${what} forgotten`);
  }
  const entries = await client.json<MacEntry[]>(`/v1/macs${query}`);
  if (options.json) return printJson(entries);
  if (entries.length === 0) return print('no addresses learned yet');
  const columns = [
    { title: 'MAC' },
    { title: 'VLAN', align: 'right' },
    { title: 'PORT' },
    { title: 'AGE', align: 'right' },
  ] as const;
  const rows = entries.map(({ mac, vlan, port, ageSeconds }) => [
    mac,
    String(vlan),
    printable(port),
    `${Math.round(ageSeconds)}s`,
  ]);
  print(await table(columns, rows));
}

type RunningVersion = { version: string; node: string; pid: number; startedAt: string };

/** The CLI's version, and the switch's when one runs. */
export async function showVersion(options: ClientOptions): Promise<void> {
  const { VERSION } = await import('../daemon/version.ts');
  const client = new ApiClient(options.control);
  const running = await client.json<RunningVersion>('/v1/version').catch(() => null);
  if (options.json) return printJson({ version: VERSION, node: process.version, switch: running });
  print(`vring ${VERSION} (Node ${process.version})`);
  if (!running) return print(`no switch runs at ${client.path}`);
  const { version, node, pid, startedAt } = running;
  print(`switch ${version} (Node ${node}) at ${client.path}, pid ${pid}, since ${startedAt}`);
}
