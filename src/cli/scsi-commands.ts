/** What the commands of `vring scsi` do. */
import type { DiskStatus } from '../daemon/disks/disk-types.ts';
import { type AdapterStatus, parseUnitPlace, unitName } from '../daemon/disks/scsi-types.ts';
import { ApiClient } from './client.ts';
import { type AddOptions, mediumOf, socketOf, stateText } from './disk-commands.ts';
import { print, printable, printJson, table } from './output.ts';
import type { ClientOptions } from './port-commands.ts';

const url = (name: string, what = ''): string => `/v1/scsi/${encodeURIComponent(name)}${what}`;

export async function showAdapters(options: ClientOptions): Promise<void> {
  const adapters = await new ApiClient(options.control).json<AdapterStatus[]>('/v1/scsi');
  if (options.json) return printJson(adapters);
  if (adapters.length === 0) {
    const example = 'vring scsi add vm0 --socket /run/vring/vm0-scsi.sock';
    return print(`no SCSI adapters; add one: ${example}`);
  }
  const columns = [
    { title: 'ADAPTER' },
    { title: 'STATE' },
    { title: 'QUEUES', align: 'right' },
    { title: 'SOCKET' },
    { title: 'UNITS' },
  ] as const;
  const rows = adapters.map((adapter) => [
    printable(adapter.name),
    stateText(adapter),
    String(adapter.queues),
    printable(adapter.socket),
    printable(adapter.units.map((unit) => placeOf(adapter.name, unit)).join(' ')) || '-',
  ]);
  print(await table(columns, rows));
  for (const { name, state, reason } of adapters) {
    if (reason === null || state === 'up') continue;
    print(`${printable(name)}: ${printable(reason.message)} (${reason.code}, ${reason.at})`);
  }
}

export async function showAdapter(name: string, options: ClientOptions): Promise<void> {
  const adapter = await new ApiClient(options.control).json<AdapterStatus>(url(name));
  if (options.json) return printJson(adapter);
  const { reason } = adapter;
  const why = reason && `${printable(reason.message)} (${reason.code}, ${reason.at})`;
  const facts: [string, string][] = [
    ['adapter', printable(adapter.name)],
    ['state', stateText(adapter)],
    ['reason', why ?? '-'],
    ['socket', printable(adapter.socket)],
    ['queues', String(adapter.queues)],
    ['kept by', adapter.origin === 'api' ? 'the daemon' : 'the configuration file'],
    ['sessions', String(adapter.sessions)],
    ['units', printable(adapter.units.join(' ')) || '-'],
    ...Object.entries(adapter.counters)
      .filter(([, value]) => value !== 0)
      .map(([counter, value]): [string, string] => [counter, String(value)]),
  ];
  for (const [key, value] of facts) print(`${key.padEnd(20)} ${value}`);
}

export type AddAdapterOptions = ClientOptions &
  Pick<AddOptions, 'socket' | 'queues' | 'mode' | 'owner'>;

export async function addAdapter(name: string, options: AddAdapterOptions): Promise<void> {
  const body = { name, ...socketOf(options) };
  const client = new ApiClient(options.control);
  const adapter = await client.json<AdapterStatus>('/v1/scsi', { method: 'POST', body });
  if (options.json) return printJson(adapter);
  print(`SCSI adapter ${printable(name)} is ${stateText(adapter)}: ${printable(adapter.socket)}`);
}

export async function removeAdapter(name: string, options: ClientOptions): Promise<void> {
  await new ApiClient(options.control).json(url(name), { method: 'DELETE' });
  if (options.json) printJson({ removed: name });
  else print(`SCSI adapter ${printable(name)} is removed; the images of its units stay`);
}

export type AttachOptions = ClientOptions &
  Pick<AddOptions, 'file' | 'layer' | 'serial' | 'readOnly' | 'blockSize'>;

export async function attachUnit(
  name: string,
  unit: string,
  options: AttachOptions,
): Promise<void> {
  const body = { unit, ...mediumOf(options) };
  const client = new ApiClient(options.control);
  const disk = await client.json<DiskStatus>(url(name, '/units'), { method: 'POST', body });
  if (options.json) return printJson(disk);
  const size = disk.sizeBytes === null ? '' : `, ${disk.sizeBytes} bytes`;
  print(`disk ${printable(disk.name)} is attached, ${stateText(disk)}${size}`);
}

export async function detachUnit(
  name: string,
  unit: string,
  options: ClientOptions,
): Promise<void> {
  const { target, lun } = parseUnitPlace(unit, 'UNIT');
  const disk = unitName(name, target, lun);
  const client = new ApiClient(options.control);
  await client.json(`/v1/disks/${encodeURIComponent(disk)}`, { method: 'DELETE' });
  if (options.json) printJson({ detached: disk });
  else print(`disk ${printable(disk)} is detached; its image stays`);
}

const placeOf = (adapter: string, unit: string): string => unit.slice(adapter.length + 1);
