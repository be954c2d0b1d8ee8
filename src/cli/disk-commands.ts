/** What the commands of `vring disks` do. */
import { resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { CutResult } from '../storage/index.ts';
import type { DiskStatus } from '../daemon/disks/disk-types.ts';
import { parseBytes } from '../storage/index.ts';
import { ApiClient } from './client.ts';
import { latencyText, ratesBetween, ratesTable, type DiskSample } from './disk-rates.ts';
import { parseLifetime } from './option-values.ts';
import { drawScreen, takeScreen } from './live-screen.ts';
import {
  pc,
  print,
  printable,
  printJson,
  short,
  STATE_COLOURS,
  table,
  UsageError,
} from './output.ts';
import type { ClientOptions } from './port-commands.ts';

const COLOURS: typeof STATE_COLOURS = { ...STATE_COLOURS, failed: pc.red };
export const stateText = ({ state }: Pick<DiskStatus, 'state'>): string =>
  (COLOURS[state] ?? String)(state);
const url = (name: string, what = ''): string => `/v1/disks/${encodeURIComponent(name)}${what}`;

export type DisksOptions = ClientOptions & {
  readonly watch?: boolean;
  readonly once?: boolean;
  readonly interval: string;
};

export async function showDisks(options: DisksOptions): Promise<void> {
  const client = new ApiClient(options.control);
  if (options.watch || options.once) return watchDisks(client, options);
  const disks = await client.json<DiskStatus[]>('/v1/disks');
  if (options.json) return printJson(disks);
  if (disks.length === 0) {
    const example = 'vring disks add vm0 --socket /run/vring/vm0-disk.sock --file vm0.img';
    return print(`no disks; add one: ${example}`);
  }
  const columns = [
    { title: 'DISK' },
    { title: 'STATE' },
    { title: 'SIZE', align: 'right' },
    { title: 'READS', align: 'right' },
    { title: 'WRITES', align: 'right' },
    { title: 'ERRORS', align: 'right' },
    { title: 'LIMITS' },
    { title: 'SOCKET' },
    { title: 'LAYERS' },
  ] as const;
  print(await table(columns, disks.map(diskRow)));
  for (const disk of disks) {
    const { name, reason } = disk;
    if (reason === null || disk.state === 'up') continue;
    print(`${printable(name)}: ${printable(reason.message)} (${reason.code}, ${reason.at})`);
  }
}

function diskRow(disk: DiskStatus): string[] {
  const { name, sizeBytes, counters, errors, limits, socket, layers } = disk;
  return [
    printable(name),
    stateText(disk),
    sizeBytes === null ? '-' : short(sizeBytes),
    short(counters['reads'] ?? 0),
    short(counters['writes'] ?? 0),
    errors > 0 ? pc.red(short(errors)) : '0',
    limitsText(limits),
    printable(socket),
    printable(layers.join(' over ')),
  ];
}

function limitsText(limits: DiskStatus['limits']): string {
  if (limits === null) return '-';
  const { iops, bytesPerSecond } = limits;
  const words = [
    ...(iops === undefined ? [] : [`${short(iops)} IOPS`]),
    ...(bytesPerSecond === undefined ? [] : [`${short(bytesPerSecond)}B/s`]),
  ];
  return words.join(', ') || '-';
}

async function watchDisks(client: ApiClient, options: DisksOptions): Promise<void> {
  const seconds = Number(options.interval);
  if (!(seconds >= 0.1 && seconds <= 3600)) {
    throw new UsageError(`--interval: "${options.interval}" is not 0.1 to 3600 seconds`);
  }
  const isLive = !options.once && !options.json && process.stdout.isTTY;
  const sample = async (): Promise<DiskSample> => {
    const disks = await client.json<DiskStatus[]>('/v1/disks');
    return { atMs: performance.now(), disks };
  };
  let before = await sample();
  if (isLive) takeScreen();
  for (;;) {
    await sleep(seconds * 1000);
    const now = await sample();
    const rates = ratesBetween(before, now);
    before = now;
    if (options.json) printJson(rates, options.once ? 'answer' : 'line');
    else if (isLive) drawScreen('vring disks', client.path, await ratesTable(rates));
    else print(await ratesTable(rates));
    if (options.once) return;
    if (!options.json && !isLive) print('');
  }
}

export async function showDisk(name: string, options: ClientOptions): Promise<void> {
  const disk = await new ApiClient(options.control).json<DiskStatus>(url(name));
  if (options.json) return printJson(disk);
  const { reason, lastError: last } = disk;
  const facts: [string, string][] = [
    ['disk', printable(disk.name)],
    ['state', stateText(disk)],
    [
      'reason',
      reason === null ? '-' : `${printable(reason.message)} (${reason.code}, ${reason.at})`,
    ],
    ['socket', printable(disk.socket)],
    ['unit of', disk.unit === null ? '-' : `SCSI adapter ${printable(disk.unit.adapter)}`],
    ['size', disk.sizeBytes === null ? '-' : `${disk.sizeBytes} bytes`],
    ['layers', printable(disk.layers.join(' over '))],
    ['read-only', disk.readOnly ? 'yes' : 'no'],
    ['queues', String(disk.queues)],
    ['serial', printable(disk.serial)],
    ['limits', limitsText(disk.limits)],
    ['export', disk.export === null ? '-' : printable(disk.export)],
    ['kept by', disk.origin === 'api' ? 'the daemon' : 'the configuration file'],
    ['sessions', String(disk.sessions)],
    ['errors', String(disk.errors)],
    ['last error', last === null ? '-' : `${last.op} at byte ${last.at}: ${last.errno}`],
    ...Object.entries(disk.latency).map(([op, latency]): [string, string] => {
      return [`${op} latency`, latencyText(latency)];
    }),
    ...Object.entries({ ...disk.counters, ...disk.layerCounters })
      .filter(([, value]) => value !== 0)
      .map(([counter, value]): [string, string] => [counter, String(value)]),
  ];
  for (const [key, value] of facts) print(`${key.padEnd(20)} ${value}`);
}

export type AddOptions = ClientOptions & {
  readonly socket: string;
  readonly file?: string;
  readonly layer?: readonly string[];
  readonly readOnly?: boolean;
  readonly queues?: string;
  readonly serial?: string;
  readonly blockSize?: string;
  readonly packed: boolean;
  readonly iommu?: boolean;
  readonly secureErase?: boolean;
  readonly lifetime?: string;
  readonly mode?: string;
  readonly owner?: string;
};

export async function addDisk(name: string, options: AddOptions): Promise<void> {
  const { packed, iommu, secureErase, lifetime } = options;
  const body = {
    name,
    ...socketOf(options),
    ...mediumOf(options),
    ...(packed ? {} : { packed }),
    ...(iommu ? { iommu } : {}),
    ...(secureErase ? { secureErase } : {}),
    ...(lifetime === undefined ? {} : { lifetime: parseLifetime(lifetime) }),
  };
  const client = new ApiClient(options.control);
  tell(await client.json<DiskStatus>('/v1/disks', { method: 'POST', body }), options);
}

/** Where front-ends connect, of the API's words. */
export function socketOf(
  options: Pick<AddOptions, 'socket' | 'queues' | 'mode' | 'owner'>,
): Record<string, unknown> {
  const { queues, mode, owner } = options;
  return {
    socket: resolve(options.socket),
    ...(queues === undefined ? {} : { queues: Number(queues) }),
    ...(mode === undefined ? {} : { socketMode: mode }),
    ...(owner === undefined ? {} : { socketOwner: owner }),
  };
}

/** The bytes, and what a guest sees of them. @throws UsageError. */
export function mediumOf(
  options: Pick<AddOptions, 'file' | 'layer' | 'serial' | 'readOnly' | 'blockSize'>,
): Record<string, unknown> {
  const { file, layer, serial, readOnly, blockSize } = options;
  if ((file === undefined) === (layer === undefined)) {
    throw new UsageError('say where the bytes are: either --file PATH or --layer LAYER...');
  }
  return {
    // The daemon has another working directory.
    layers: layer?.map(absolute) ?? [resolve(file!)],
    ...(readOnly ? { readOnly } : {}),
    ...(serial === undefined ? {} : { serial }),
    ...(blockSize === undefined ? {} : { blockSize: Number(blockSize) }),
  };
}

const absolute = (layer: string): string => (/^\.\.?\//.test(layer) ? resolve(layer) : layer);

export async function removeDisk(name: string, options: ClientOptions): Promise<void> {
  await new ApiClient(options.control).json(url(name), { method: 'DELETE' });
  if (options.json) printJson({ removed: name });
  else print(`disk ${printable(name)} is removed; its image stays`);
}

export async function reopenDisk(name: string, options: ClientOptions): Promise<void> {
  const client = new ApiClient(options.control);
  tell(await client.json<DiskStatus>(url(name, '/reopen'), { method: 'POST' }), options);
}

export async function resizeDisk(
  name: string,
  size: string,
  options: ClientOptions & { readonly shrink?: boolean },
): Promise<void> {
  const shrink = options.shrink ? { shrink: true } : {};
  const body = { sizeBytes: parseBytes(size, 'SIZE'), ...shrink };
  await change(name, body, options);
}

export type LimitOptions = ClientOptions & {
  readonly iops?: string;
  readonly bandwidth?: string;
  readonly burst?: string;
  readonly none?: boolean;
};

export async function limitDisk(name: string, options: LimitOptions): Promise<void> {
  const { iops, bandwidth, burst, none } = options;
  const limits = {
    ...(iops === undefined ? {} : { iops: Number(iops) }),
    ...(bandwidth === undefined ? {} : { bytesPerSecond: parseBytes(bandwidth, '--bandwidth') }),
    ...(burst === undefined ? {} : { burstSeconds: Number(burst) }),
  };
  const isEmpty = Object.keys(limits).length === 0;
  if (isEmpty === (none !== true)) {
    throw new UsageError('say the limits: --iops, --bandwidth, --burst; or --none, alone');
  }
  await change(name, { limits: none ? null : limits }, options);
}

async function change(name: string, body: unknown, options: ClientOptions): Promise<void> {
  const client = new ApiClient(options.control);
  tell(await client.json<DiskStatus>(url(name), { method: 'PATCH', body }), options);
}

export type ExportOptions = ClientOptions & {
  readonly socket?: string;
  readonly readOnly?: boolean;
  readonly end?: boolean;
};

export async function exportDisk(name: string, options: ExportOptions): Promise<void> {
  const { socket, readOnly, end } = options;
  if ((socket === undefined) === (end !== true)) {
    throw new UsageError('say where clients connect: --socket PATH; or --end');
  }
  const body = { socket: resolve(socket ?? ''), ...(readOnly ? { readOnly } : {}) };
  const request = end ? { method: 'DELETE' as const } : { method: 'POST' as const, body };
  const client = new ApiClient(options.control);
  const disk = await client.json<DiskStatus>(url(name, '/export'), request);
  if (options.json) printJson(disk);
  else if (disk.export === null) print(`disk ${printable(name)} is not exported any more`);
  else print(`disk ${printable(name)} is exported: ${printable(disk.export)}`);
}

export async function cutPower(
  name: string,
  options: ClientOptions & { readonly seed?: string },
): Promise<void> {
  const body = options.seed === undefined ? {} : { seed: Number(options.seed) };
  const client = new ApiClient(options.control);
  const cut = await client.json<CutResult>(url(name, '/cut'), { method: 'POST', body });
  if (options.json) return printJson(cut);
  const { requests, kept, lost, torn, seed } = cut;
  const fates = `${kept} kept, ${lost} lost, ${torn} torn`;
  print(`disk ${printable(name)}: of ${requests} unflushed requests ${fates} (seed ${seed})`);
  print(`it fails until vring disks reopen ${printable(name)}`);
}

export async function showSnapshots(name: string, options: ClientOptions): Promise<void> {
  printJson(await new ApiClient(options.control).json(url(name, '/snapshots')));
}

export async function snapshotDisk(
  name: string,
  snapshot: string,
  options: ClientOptions,
): Promise<void> {
  const request = { method: 'POST' as const, body: { name: snapshot } };
  const answer = await new ApiClient(options.control).json(url(name, '/snapshots'), request);
  if (options.json) printJson(answer);
  else print(`disk ${printable(name)} has a snapshot ${printable(snapshot)}`);
}

export async function rollbackDisk(
  name: string,
  snapshot: string | undefined,
  options: ClientOptions & { readonly force?: boolean },
): Promise<void> {
  const body = {
    ...(snapshot ? { name: snapshot } : {}),
    ...(options.force ? { force: true } : {}),
  };
  const request = { method: 'POST' as const, body };
  const answer = await new ApiClient(options.control).json(url(name, '/rollback'), request);
  if (options.json) printJson(answer);
  else print(`disk ${printable(name)} is as it was at ${snapshot ?? 'its last snapshot'}`);
}

export async function commitDisk(
  name: string,
  options: ClientOptions & { readonly toBase?: boolean; readonly status?: boolean },
): Promise<void> {
  const client = new ApiClient(options.control);
  if (options.status) return printJson(await client.json(url(name, '/commit')));
  const body = options.toBase ? { to: 'base' } : {};
  const answer = await client.json(url(name, '/commit'), { method: 'POST', body });
  if (options.json) printJson(answer);
  else print(`disk ${printable(name)}: merging; vring disks commit ${name} --status says how far`);
}

export async function deleteSnapshot(
  name: string,
  snapshot: string,
  options: ClientOptions,
): Promise<void> {
  const path = url(name, `/snapshots/${encodeURIComponent(snapshot)}`);
  const client = new ApiClient(options.control);
  const answer = await client.json(path, { method: 'DELETE' });
  if (options.json) printJson(answer ?? null);
  else print(`disk ${printable(name)}: snapshot ${printable(snapshot)} is deleted`);
}

function tell(disk: DiskStatus, options: ClientOptions): void {
  if (options.json) return printJson(disk);
  const size = disk.sizeBytes === null ? '' : `, ${disk.sizeBytes} bytes`;
  const limits = disk.limits === null ? '' : `, limits ${limitsText(disk.limits)}`;
  print(
    `disk ${printable(disk.name)} is ${stateText(disk)}: ${printable(disk.socket)}${size}${limits}`,
  );
}
