/**
 * A part of a stack as people write it: `KIND[:ARGUMENT][,NAME=VALUE]...`, a comma within by two of
 * them. A path stands for `file:`, a URL for the kind that its scheme means.
 *
 *   /srv/a.img              overlay:/srv/vm0        crypt:/etc/keys/vm0
 *   file:/dev/sdb,direct=on limit:iops=500,burst=10 nbd://localhost/x
 */
import { ConfigError } from '../../base/errors.ts';
import type { CacheSpec, PartSpec, StackSpec } from './stack-spec.ts';
import { checkStack } from './check-stack.ts';
import { parseBytes, PartOptions } from './part-options.ts';

/**
 * From top to bottom.
 * @throws ConfigError naming part and option.
 */
export function parseStack(texts: readonly string[], path: string): StackSpec {
  const stack = texts.map((text, i) => parsePart(text, `${path}[${i}]`));
  checkStack(stack, path);
  return stack;
}

/** @throws ConfigError. */
export function parsePart(text: string, path: string): PartSpec {
  if (/^[./]/.test(text)) return parsePart(`file:${text.replaceAll(',', ',,')}`, path);
  if (/^(nbds?(\+unix)?|https?):\/\//.test(text)) {
    const kind = text.startsWith('nbd') ? 'nbd' : 'http';
    return parsePart(`${kind}:${text}`, path);
  }
  const options = PartOptions.parse(text, path);
  const part = partOf(options.kind, options);
  options.finish();
  return part;
}

function partOf(kind: string, o: PartOptions): PartSpec {
  switch (kind) {
    case 'file':
      return {
        kind,
        path: o.argument('a path'),
        ...o.choice('direct', ['off', 'auto', 'on'] as const, 'direct'),
        ...o.choice('uring', ['off', 'auto', 'on'] as const, 'uring'),
        ...o.flag('lock', 'lock'),
      };
    case 'memory':
    case 'null':
      return { kind, sizeBytes: parseBytes(o.argument('a size'), o.path) };
    case 'nbd':
      return { kind, uri: o.argument('a URI'), ...o.number('timeout', 'timeoutSeconds') };
    case 'http':
      return {
        kind,
        url: o.argument('a URL'),
        ...cacheOf(o),
        ...o.number('timeout', 'timeoutSeconds'),
      };
    case 's3':
      return {
        kind,
        endpoint: o.text('endpoint'),
        region: o.text('region'),
        bucket: o.text('bucket'),
        key: o.text('key'),
        ...o.optional('credentials', 'credentialsFile'),
        ...o.choice('addressing', ['path', 'virtual-host'] as const, 'addressing'),
        ...cacheOf(o),
        ...o.number('timeout', 'timeoutSeconds'),
      };
    case 'limit':
      return {
        kind,
        ...o.number('iops', 'iops'),
        ...o.bytes('bandwidth', 'bytesPerSecond'),
        ...o.number('burst', 'burstSeconds'),
      };
    case 'crypt':
      return {
        kind,
        keyFile: o.argument('a key file'),
        ...o.choice('discard', ['pass', 'keep'] as const, 'discard'),
      };
    case 'overlay':
      return { kind, folder: o.argument('a folder') };
    case 'zoned':
      return {
        kind,
        ...o.sizeArgument('zoneBytes'),
        ...o.bytes('capacity', 'capacityBytes'),
        ...o.number('conventional', 'conventional'),
        ...o.number('open', 'maxOpen'),
        ...o.number('active', 'maxActive'),
        ...o.bytes('granularity', 'granularityBytes'),
      };
    case 'qcow2':
      return { kind, ...o.choice('backing', ['refuse', 'follow'] as const, 'backing') };
    case 'fault':
      return {
        kind,
        ...o.number('seed', 'seed'),
        ...o.choice('cache', ['none', 'volatile'] as const, 'cache'),
      };
    default:
      throw new ConfigError(o.path, `'${kind}' is no kind of layer; ${KINDS}`);
  }
}

const KINDS =
  'expected is file:PATH, memory:SIZE, null:SIZE, nbd:URI, http:URL, s3:, limit:, crypt:KEYFILE, ' +
  'overlay:FOLDER, qcow2, zoned:SIZE or fault:';

function cacheOf(o: PartOptions): { cache?: CacheSpec } {
  const { sizeBytes } = o.bytes('cache-size', 'sizeBytes');
  const more = { ...o.optional('cache', 'path'), ...o.bytes('cache-block', 'blockBytes') };
  if (sizeBytes !== undefined) return { cache: { ...more, sizeBytes } };
  if (Object.keys(more).length > 0)
    throw new ConfigError(o.path, 'cache needs a cache-size, such as 1G');
  return {};
}
