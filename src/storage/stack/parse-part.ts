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

const UNITS: Readonly<Record<string, number>> = {
  '': 1,
  k: 2 ** 10,
  m: 2 ** 20,
  g: 2 ** 30,
  t: 2 ** 40,
};

/**
 * `64M`, `1GiB`: bytes.
 * @throws ConfigError.
 */
export function parseBytes(text: string, path: string): number {
  const match = /^(\d+)([kmgt]?)(?:i?b)?$/i.exec(text);
  const bytes = match === null ? NaN : Number(match[1]) * UNITS[match[2]!.toLowerCase()]!;
  if (Number.isSafeInteger(bytes)) return bytes;
  throw new ConfigError(path, `'${text}' is no number of bytes; expected is such as 4096, 64M, 1G`);
}

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
  const [head = '', ...rest] = text.replaceAll(',,', '\0').split(',');
  const words = [head, ...rest].map((word) => word.replaceAll('\0', ','));
  const colon = words[0]!.indexOf(':');
  const kind = colon < 0 ? words[0]! : words[0]!.slice(0, colon);
  const options = new PartOptions(kind, path);
  const argument = colon < 0 ? '' : words[0]!.slice(colon + 1);
  // `limit:iops=5`: what follows the colon is an option where the kind has no argument.
  for (const word of [...(argument === '' ? [] : [argument]), ...words.slice(1)]) options.add(word);
  const part = partOf(kind, options);
  options.finish();
  return part;
}

function partOf(kind: string, o: PartOptions): PartSpec {
  switch (kind) {
    case 'file':
      return {
        kind,
        path: o.argument('a path'),
        ...o.choice('direct', ['off', 'auto', 'on'] as const),
        ...o.choice('uring', ['off', 'auto', 'on'] as const),
        ...o.flag('lock'),
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
        ...o.choice('addressing', ['path', 'virtual-host'] as const),
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
        ...o.choice('discard', ['pass', 'keep'] as const),
      };
    case 'overlay':
      return { kind, folder: o.argument('a folder') };
    case 'qcow2':
      return { kind, ...o.choice('backing', ['refuse', 'follow'] as const) };
    case 'fault':
      return {
        kind,
        ...o.number('seed', 'seed'),
        ...o.choice('cache', ['none', 'volatile'] as const),
      };
    default:
      throw new ConfigError(o.path, `'${kind}' is no kind of layer; ${KINDS}`);
  }
}

const KINDS =
  'expected is file:PATH, memory:SIZE, null:SIZE, nbd:URI, http:URL, s3:, limit:, crypt:KEYFILE, ' +
  'overlay:FOLDER, qcow2 or fault:';

function cacheOf(o: PartOptions): { cache?: CacheSpec } {
  const { sizeBytes } = o.bytes('cache-size', 'sizeBytes');
  const more = { ...o.optional('cache', 'path'), ...o.bytes('cache-block', 'blockBytes') };
  if (sizeBytes !== undefined) return { cache: { ...more, sizeBytes } };
  if (Object.keys(more).length > 0)
    throw new ConfigError(o.path, 'cache needs a cache-size, such as 1G');
  return {};
}

type One<Name extends string, Value> = { readonly [name in Name]?: Value };

/** The words behind a kind; each is asked for once, and what nobody asked for is an error. */
class PartOptions {
  readonly path: string;
  readonly #kind: string;
  #argument: string | null = null;
  readonly #values = new Map<string, string>();

  constructor(kind: string, path: string) {
    this.#kind = kind;
    this.path = path;
  }

  add(word: string): void {
    const [, name, value] = /^([a-z-]+)=(.*)$/.exec(word) ?? [];
    if (name === undefined) {
      if (this.#argument !== null || this.#values.size > 0) {
        throw new ConfigError(this.path, `'${word}' is no option; expected is NAME=VALUE`);
      }
      this.#argument = word;
    } else if (this.#values.has(name)) {
      throw new ConfigError(this.path, `${name} is given twice`);
    } else {
      this.#values.set(name, value!);
    }
  }

  argument(what: string): string {
    const argument = this.#argument;
    this.#argument = null;
    if (argument !== null) return argument;
    throw new ConfigError(this.path, `${this.#kind} needs ${what}: ${this.#kind}:...`);
  }

  text(name: string): string {
    const value = this.#take(name);
    if (value !== undefined && value !== '') return value;
    throw new ConfigError(this.path, `${this.#kind} needs ${name}=...`);
  }

  optional<Name extends string>(name: string, as: Name): One<Name, string> {
    const value = this.#take(name);
    return value === undefined ? {} : ({ [as]: value } as One<Name, string>);
  }

  number<Name extends string>(name: string, as: Name): One<Name, number> {
    const value = this.#take(name);
    if (value === undefined) return {};
    const number = Number(value);
    if (value !== '' && Number.isFinite(number) && number >= 0) {
      return { [as]: number } as One<Name, number>;
    }
    throw new ConfigError(this.path, `${name}=${value} is no number from 0 on`);
  }

  bytes<Name extends string>(name: string, as: Name): One<Name, number> {
    const value = this.#take(name);
    if (value === undefined) return {};
    return { [as]: parseBytes(value, this.path) } as One<Name, number>;
  }

  choice<Name extends string, Value extends string>(
    name: Name,
    values: readonly Value[],
  ): One<Name, Value> {
    const value = this.#take(name);
    if (value === undefined) return {};
    if ((values as readonly string[]).includes(value)) return { [name]: value } as One<Name, Value>;
    throw new ConfigError(this.path, `${name}=${value}, expected ${values.join(', ')}`);
  }

  flag<Name extends string>(name: Name): One<Name, boolean> {
    const chosen = this.choice(name, ['on', 'off'] as const)[name];
    return chosen === undefined ? {} : ({ [name]: chosen === 'on' } as One<Name, boolean>);
  }

  /** @throws ConfigError: something was not asked for. */
  finish(): void {
    const [name] = this.#values.keys();
    if (name !== undefined) throw new ConfigError(this.path, `${this.#kind} has no option ${name}`);
    if (this.#argument === null) return;
    throw new ConfigError(this.path, `'${this.#argument}': ${this.#kind} takes options only`);
  }

  #take(name: string): string | undefined {
    const value = this.#values.get(name);
    this.#values.delete(name);
    return value;
  }
}
