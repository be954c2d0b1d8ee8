/** What the commands of `vring guest blk` do that are for zoned disks. */
import { ConfigError } from '../base/errors.ts';
import {
  runZoneWorkload,
  ZonedDisk,
  type BlkDisk,
  type ZoneAction,
  type ZoneReport,
} from '../guest/index.ts';
import { complain, print, printJson } from './output.ts';

export type ZoneCommandOptions = {
  readonly json: boolean;
  readonly offset?: number;
  readonly all?: boolean;
  readonly count?: number;
  readonly appends: number;
  readonly zones: number;
  readonly flushEvery: number;
  readonly blockSize?: [number, number];
  readonly depth: number;
  readonly seconds?: number;
  readonly seed?: number;
};

const EXIT_FAILURE = 1;
const DEFAULT_SECONDS = 5;

export async function zones(disk: BlkDisk, options: ZoneCommandOptions): Promise<number> {
  const zoned = new ZonedDisk(disk.guest);
  const report = await zoned.report(options.offset ?? 0, options.count ?? Infinity);
  if (options.json) {
    printJson({ ...zoned.zones, zones: report }, 'line');
    return 0;
  }
  const { zoneBytes, maxOpen, maxActive, maxAppendBytes, granularityBytes } = zoned.zones;
  const limit = (most: number): string => (most === 0 ? 'any number' : `at most ${most}`);
  print(
    `zones of ${zoneBytes} bytes, written in multiples of ${granularityBytes}, appends up to ` +
      `${maxAppendBytes}; ${limit(maxOpen)} open, ${limit(maxActive)} active`,
  );
  for (const zone of report) print(zoneLine(zone));
  return 0;
}

function zoneLine({ at, capacityBytes, pointer, condition }: ZoneReport): string {
  const place = pointer === null ? '' : `pointer ${pointer}, ${pointer - at} bytes written`;
  return `${String(at).padStart(16)}  ${condition.padEnd(16)} capacity ${capacityBytes}  ${place}`;
}

export function act(action: ZoneAction) {
  return async (disk: BlkDisk, options: ZoneCommandOptions): Promise<number> => {
    const zoned = new ZonedDisk(disk.guest);
    const { offset, all = false } = options;
    if (all === (offset !== undefined)) {
      const text = 'say which zone, by its first byte' + (action === 'reset' ? ', or --all' : '');
      throw new ConfigError('--offset', text);
    }
    if (all) await zoned.resetAll();
    else await zoned.act(action, offset!);
    const what = { action, ...(all ? { all } : { offset }) };
    if (options.json) printJson(what, 'line');
    else print(`${action} of ${all ? 'all zones' : `the zone at ${offset}`}: done`);
    return 0;
  };
}

/** A file, in as many appends as it takes. */
export async function appendBytes(
  disk: BlkDisk,
  bytes: Uint8Array,
  options: ZoneCommandOptions,
): Promise<number> {
  const zoned = new ZonedDisk(disk.guest);
  const { granularityBytes: unit, maxAppendBytes } = zoned.zones;
  if (bytes.length === 0 || bytes.length % unit !== 0) {
    throw new ConfigError('--file', `${bytes.length} bytes; multiples of ${unit} are appended`);
  }
  const most = Math.min(disk.guest.requestBytes, maxAppendBytes);
  const pieceBytes = most - (most % unit);
  const places: number[] = [];
  for (let at = 0; at < bytes.length; at += pieceBytes) {
    places.push(await zoned.append(options.offset!, bytes.subarray(at, at + pieceBytes)));
  }
  await disk.flush();
  if (options.json) printJson({ zone: options.offset, bytes: bytes.length, places }, 'line');
  else print(`${bytes.length} bytes appended, from ${places[0]} on`);
  return 0;
}

export async function verifyZones(
  disk: BlkDisk,
  options: ZoneCommandOptions,
  signal: AbortSignal,
): Promise<number> {
  const seed = options.seed ?? (Math.random() * 2 ** 32) >>> 0;
  complain(`seed ${seed}`); // before anything can go wrong
  const report = await runZoneWorkload({
    guest: disk.guest,
    seconds: options.seconds ?? DEFAULT_SECONDS,
    depth: options.depth,
    appendPercent: options.appends,
    zones: options.zones,
    flushEvery: options.flushEvery,
    seed,
    signal,
    ...(options.blockSize === undefined ? {} : { blockBytes: options.blockSize[0] }),
  });
  if (options.json) printJson({ event: 'end', ...report }, 'line');
  else {
    const { seconds, writes, appends, resets, finishes, flushes, reconnects, checked } = report;
    print(
      `${writes} writes, ${appends} appends, ${resets} resets, ${finishes} finishes, ${flushes} ` +
        `flushes in ${seconds.toFixed(2)} s; reconnects ${reconnects}; blocks compared ${checked}`,
    );
    for (const text of report.wrong) print(`  ${text}`);
  }
  if (report.wrong.length > 0) complain('zones are not what was acknowledged');
  return report.wrong.length > 0 ? EXIT_FAILURE : 0;
}
