/** The text form of one thing with options: `KIND[:ARGUMENT][,NAME=VALUE]...`. */
import { ConfigError } from '../../base/errors.ts';

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

type One<Name extends string, Value> = { readonly [name in Name]?: Value };

/** The words behind a kind; each is asked for once, and what nobody asked for is an error. */
export class PartOptions {
  readonly path: string;
  readonly kind: string;
  #argument: string | null = null;
  readonly #values = new Map<string, string>();

  /** `KIND[:ARGUMENT][,NAME=VALUE]...`, a comma within by two of them. @throws ConfigError. */
  static parse(text: string, path: string): PartOptions {
    const [head = '', ...rest] = text.replaceAll(',,', '\0').split(',');
    const words = [head, ...rest].map((word) => word.replaceAll('\0', ','));
    const colon = words[0]!.indexOf(':');
    const options = new PartOptions(colon < 0 ? words[0]! : words[0]!.slice(0, colon), path);
    const argument = colon < 0 ? '' : words[0]!.slice(colon + 1);
    // `limit:iops=5`: what follows the colon is an option where the kind has no argument.
    if (argument !== '') options.#add(argument);
    for (const word of words.slice(1)) options.#add(word);
    return options;
  }

  private constructor(kind: string, path: string) {
    this.kind = kind;
    this.path = path;
  }

  #add(word: string): void {
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
    throw new ConfigError(this.path, `${this.kind} needs ${what}: ${this.kind}:...`);
  }

  /** An argument that may be left out. */
  sizeArgument<Name extends string>(as: Name): One<Name, number> {
    const argument = this.#argument;
    this.#argument = null;
    if (argument === null) return {};
    return { [as]: parseBytes(argument, this.path) } as One<Name, number>;
  }

  text(name: string): string {
    const value = this.#take(name);
    if (value !== undefined && value !== '') return value;
    throw new ConfigError(this.path, `${this.kind} needs ${name}=...`);
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
    name: string,
    values: readonly Value[],
    as: Name,
  ): One<Name, Value> {
    const value = this.#take(name);
    if (value === undefined) return {};
    if ((values as readonly string[]).includes(value)) return { [as]: value } as One<Name, Value>;
    throw new ConfigError(this.path, `${name}=${value}, expected ${values.join(', ')}`);
  }

  flag<Name extends string>(name: string, as: Name): One<Name, boolean> {
    const { chosen } = this.choice(name, ['on', 'off'] as const, 'chosen');
    return chosen === undefined ? {} : ({ [as]: chosen === 'on' } as One<Name, boolean>);
  }

  /** @throws ConfigError: something was not asked for. */
  finish(): void {
    const [name] = this.#values.keys();
    if (name !== undefined) throw new ConfigError(this.path, `${this.kind} has no option ${name}`);
    if (this.#argument === null) return;
    throw new ConfigError(this.path, `'${this.#argument}': ${this.kind} takes options only`);
  }

  #take(name: string): string | undefined {
    const value = this.#values.get(name);
    this.#values.delete(name);
    return value;
  }
}
