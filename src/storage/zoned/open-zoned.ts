/** Opens a zoned medium, or makes one of a medium that is blank. */
import { ConfigError, VringError } from '../../base/errors.ts';
import type { Layer } from '../layer/layer.ts';
import type { ZonedSpec } from '../stack/stack-spec.ts';
import {
  BLOCK_BYTES,
  decodeHeader,
  encodeHeader,
  FORMAT_VERSION,
  HEADER_MAGIC,
  MAX_ZONES,
  placesOf,
  type ZonedShape,
} from './zone-format.ts';
import { ZoneLog, type ZoneLogOptions } from './zone-log.ts';
import { ZonedLayer } from './zoned-layer.ts';
import { ZONE_EMPTY, ZONE_NOT_WP } from './zone-types.ts';

const MIN_ZONE_BYTES = 64 * 2 ** 10;
/** `zone_sectors` of a virtio disk has 32 bits. */
const MAX_ZONE_BYTES = 2 ** 40;
const GRANULARITY_BYTES = 4096;

/** The log has a 64th of the medium, from 64 KiB to 8 MiB: when it is full, tables are written. */
const MIN_LOG_BLOCKS = 16;
const MAX_LOG_BLOCKS = 2048;
const LOG_FRACTION = 64;

/**
 * @throws ConfigError: sizes that do not fit; VringError ERR_VRING_ZONED_FORMAT: what is there is
 *   neither a zoned medium nor blank, or broken, or made with other sizes.
 */
export async function openZonedLayer(
  below: Layer,
  spec: ZonedSpec,
  options: { readonly readOnly: boolean },
): Promise<ZonedLayer> {
  const readOnly = options.readOnly || below.readOnly;
  const found = await readShape(below);
  if (found !== null) checkSame(below, found, spec);
  const shape = found ?? chooseShape(below, spec);
  const { zones, logBlocks, zoneBytes, capacityBytes } = shape;
  const places = placesOf(zones, logBlocks);
  const logOptions = { below, places, zones, logBlocks, zoneBytes, capacityBytes };
  if (found === null) await format(shape, logOptions, readOnly);
  const log = await ZoneLog.open(logOptions, readOnly);
  if (log === null) throw unusable(below, 'neither of its two tables of zones is whole');
  return new ZonedLayer({ ...shape, below, log, readOnly, dataAt: places.dataAt });
}

/** Null: the medium may be blank. */
async function readShape(below: Layer): Promise<ZonedShape | null> {
  if (below.sizeBytes < BLOCK_BYTES) throw new ConfigError('zoned', `${below.sizeBytes} bytes`);
  const block = new Uint8Array(BLOCK_BYTES);
  await below.read(0, block);
  const shape = decodeHeader(block);
  if (shape === null) {
    if (!HEADER_MAGIC.equals(block.subarray(0, HEADER_MAGIC.length))) return null;
    throw unusable(below, 'its first block is damaged');
  }
  if (shape.version !== FORMAT_VERSION) {
    throw unusable(below, `its version is ${shape.version}, expected ${FORMAT_VERSION}`);
  }
  const problem = problemOf(shape, below.sizeBytes);
  if (problem !== null) throw unusable(below, problem);
  return shape;
}

/** A header that is whole, and all the same not one of ours. */
function problemOf(shape: ZonedShape, sizeBytes: number): string | null {
  const { zoneBytes, capacityBytes, zones, conventional, granularityBytes, logBlocks } = shape;
  if (!isPowerOfTwo(zoneBytes, MIN_ZONE_BYTES, MAX_ZONE_BYTES)) return `zones of ${zoneBytes}`;
  if (!isPowerOfTwo(granularityBytes, 512, 4096)) return `a granularity of ${granularityBytes}`;
  const isWhole = capacityBytes > 0 && capacityBytes % granularityBytes === 0;
  if (!isWhole || capacityBytes > zoneBytes) return `${capacityBytes} writable bytes in a zone`;
  if (zones < 1 || zones > MAX_ZONES || conventional >= zones) {
    return `${zones} zones, ${conventional} of them conventional`;
  }
  if (logBlocks < MIN_LOG_BLOCKS || logBlocks > MAX_LOG_BLOCKS) return `a log of ${logBlocks}`;
  const needed = placesOf(zones, logBlocks).dataAt + zones * zoneBytes;
  return needed <= sizeBytes ? null : `it needs ${needed} bytes, and there are ${sizeBytes}`;
}

/** @throws ConfigError. */
function chooseShape(below: Layer, spec: ZonedSpec): ZonedShape {
  const { zoneBytes, granularityBytes = GRANULARITY_BYTES, conventional = 0 } = spec;
  const { maxOpen = 0, maxActive = 0 } = spec;
  const wrong = (text: string): ConfigError => new ConfigError('zoned', text);
  if (zoneBytes === undefined) {
    throw wrong(
      `${below.description} is no zoned medium yet; say how large its zones are: zoned:64M`,
    );
  }
  if (!isPowerOfTwo(zoneBytes, MIN_ZONE_BYTES, MAX_ZONE_BYTES)) {
    throw wrong(`zones of ${zoneBytes} bytes; expected is a power of two from 64K to 1T`);
  }
  if (!isPowerOfTwo(granularityBytes, 512, 4096)) {
    throw wrong(`granularity=${granularityBytes}; expected is a power of two from 512 to 4096`);
  }
  const { capacityBytes = zoneBytes } = spec;
  if (capacityBytes <= 0 || capacityBytes > zoneBytes || capacityBytes % granularityBytes !== 0) {
    const expected = `a multiple of ${granularityBytes} up to the zone's ${zoneBytes}`;
    throw wrong(`capacity=${capacityBytes}; expected is ${expected}`);
  }
  const size = below.sizeBytes;
  const logBlocks = Math.floor(size / LOG_FRACTION / BLOCK_BYTES);
  const log = Math.min(MAX_LOG_BLOCKS, Math.max(MIN_LOG_BLOCKS, logBlocks));
  const most = Math.floor(size / zoneBytes);
  const { dataAt } = placesOf(Math.min(most, MAX_ZONES), log);
  const zones = Math.floor((size - dataAt) / zoneBytes);
  if (zones > MAX_ZONES) throw wrong(`${zones} zones, at most ${MAX_ZONES}: take larger ones`);
  if (conventional >= zones) {
    const room = `${size} bytes are room for ${Math.max(0, zones)} zones of ${zoneBytes}`;
    throw wrong(
      `${below.description}: ${room} beside ${dataAt} for what is known of them, and ` +
        `${conventional + 1} are the least`,
    );
  }
  for (const [name, limit] of [
    ['open', maxOpen],
    ['active', maxActive],
  ] as const) {
    if (!Number.isInteger(limit) || limit < 0 || limit > MAX_ZONES) {
      throw wrong(
        `${name}=${limit}; expected is a whole number up to ${MAX_ZONES}, 0 for no limit`,
      );
    }
  }
  if (maxActive > 0 && maxOpen > maxActive) {
    throw wrong(`open=${maxOpen} is more than active=${maxActive}, and open zones are active`);
  }
  const limits = { maxOpen, maxActive: maxActive };
  const version = FORMAT_VERSION;
  const sizes = { zoneBytes, capacityBytes, granularityBytes };
  return { version, ...sizes, zones, conventional, ...limits, logBlocks: log };
}

/** What is asked for must be what is there; what is left out is as it is. */
function checkSame(below: Layer, shape: ZonedShape, spec: ZonedSpec): void {
  const { kind: _, ...asked } = spec;
  for (const [name, value] of Object.entries(asked)) {
    const there = shape[name as keyof ZonedShape];
    if (value === undefined || value === there) continue;
    const text = `it was made with ${name} ${there}, and ${value} is asked for`;
    throw unusable(below, `${text}; leave that out, or take a new file`);
  }
}

/** @throws VringError: there is something. */
async function format(shape: ZonedShape, log: ZoneLogOptions, readOnly: boolean): Promise<void> {
  const { below, places } = log;
  if (readOnly) throw unusable(below, 'it is read-only, and no zoned medium yet');
  const bytes = new Uint8Array(BLOCK_BYTES);
  for (let at = 0; at < places.dataAt; at += BLOCK_BYTES) {
    await below.read(at, bytes);
    if (bytes.every((byte) => byte === 0)) continue;
    const place = `there is something at byte ${at}`;
    throw unusable(below, `${place}; a new medium is made of one that begins with zeros`);
  }
  // Room for what is known of zones is taken now: a full file system must not stop the log later.
  await below.zero(0, places.dataAt, { unmap: false, fua: false });
  const zones = Array.from({ length: shape.zones }, (_, index) => {
    const condition = index < shape.conventional ? ZONE_NOT_WP : ZONE_EMPTY;
    return { written: 0, generation: 0, condition };
  });
  await ZoneLog.format(log, zones);
  await below.flush();
  await below.write(0, encodeHeader(shape), true);
}

function isPowerOfTwo(value: number, least: number, most: number): boolean {
  return Number.isInteger(Math.log2(value)) && value >= least && value <= most;
}

function unusable(below: Layer, problem: string): VringError {
  const text = `${below.description} cannot be served as a zoned disk: ${problem}`;
  return new VringError('ERR_VRING_ZONED_FORMAT', text);
}
