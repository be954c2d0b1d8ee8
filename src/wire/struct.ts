/**
 * Wire structs as tables: every field with its offset written by hand, checked when the module
 * loads. For the control plane, where clarity comes first; the data plane reads words itself.
 *
 * Byte order: all formats here are little-endian, or "native" on hosts that are little-endian
 * (vhost-user, ioctls), which are the only ones that vring supports.
 */

/** One scalar of a wire struct: where it is, how wide it is, how to move it. */
export type Field<T> = {
  readonly at: number;
  readonly bytes: number;
  get(view: DataView, base: number): T;
  set(view: DataView, base: number, value: T): void;
};

export const u8 = (at: number): Field<number> => ({
  at,
  bytes: 1,
  get: (view, base) => view.getUint8(base + at),
  set: (view, base, value) => view.setUint8(base + at, value),
});

export const u16 = (at: number): Field<number> => ({
  at,
  bytes: 2,
  get: (view, base) => view.getUint16(base + at, true),
  set: (view, base, value) => view.setUint16(base + at, value, true),
});

export const u32 = (at: number): Field<number> => ({
  at,
  bytes: 4,
  get: (view, base) => view.getUint32(base + at, true),
  set: (view, base, value) => view.setUint32(base + at, value, true),
});

export const u64 = (at: number): Field<bigint> => ({
  at,
  bytes: 8,
  get: (view, base) => view.getBigUint64(base + at, true),
  set: (view, base, value) => view.setBigUint64(base + at, value, true),
});

/** A fixed array of bytes, such as a UUID. `read` copies; `write` demands the exact length. */
export const bytes = (at: number, count: number): Field<Uint8Array> => ({
  at,
  bytes: count,
  get: (view, base) => new Uint8Array(view.buffer, view.byteOffset + base + at, count).slice(),
  set: (view, base, value) => {
    if (value.length !== count) throw new RangeError(`${value.length} bytes, expected ${count}`);
    new Uint8Array(view.buffer, view.byteOffset + base + at, count).set(value);
  },
});

type Fields = Readonly<Record<string, Field<number> | Field<bigint> | Field<Uint8Array>>>;

/** The value that a struct reads and writes: `{ field: number | bigint | Uint8Array }`. */
export type Value<F extends Fields> = {
  -readonly [K in keyof F]: F[K] extends Field<infer T> ? T : never;
};

export type Struct<F extends Fields> = {
  readonly name: string;
  /** Bytes on the wire. */
  readonly size: number;
  readonly fields: F;
  /** The view must hold `size` bytes from `base` on: a shorter one is a RangeError. */
  read(view: DataView, base: number): Value<F>;
  write(view: DataView, base: number, value: Value<F>): void;
  /** The struct as bytes of its own. */
  encode(value: Value<F>): Uint8Array;
  /** Reads from byte `at` of an array on. */
  decode(source: Uint8Array, at?: number): Value<F>;
};

/** Any struct, where only its shape matters. */
export type AnyStruct = Pick<Struct<Fields>, 'name' | 'size' | 'fields'>;

/**
 * Checks the hand-written offsets when the module loads: no hole, no overlap, exact size.
 * @throws Error naming the field. Never at run time.
 */
export function struct<F extends Fields>(name: string, size: number, fields: F): Struct<F> {
  const entries = Object.entries(fields) as [keyof F & string, Field<never>][];
  let end = 0;
  for (const [key, field] of entries) {
    if (field.at !== end) throw new Error(`${name}.${key} is at ${field.at}, expected ${end}`);
    end += field.bytes;
  }
  if (end !== size) throw new Error(`${name} covers ${end} bytes, declared ${size}`);

  function read(view: DataView, base: number): Value<F> {
    const value: Partial<Record<keyof F, unknown>> = {};
    for (const [key, field] of entries) value[key] = field.get(view, base);
    return value as Value<F>;
  }
  function write(view: DataView, base: number, value: Value<F>): void {
    for (const [key, field] of entries) field.set(view, base, value[key] as never);
  }
  return {
    name,
    size,
    fields,
    read,
    write,
    encode(value) {
      const target = new Uint8Array(size);
      write(new DataView(target.buffer), 0, value);
      return target;
    },
    decode(source, at = 0) {
      return read(new DataView(source.buffer, source.byteOffset, source.byteLength), at);
    },
  };
}
