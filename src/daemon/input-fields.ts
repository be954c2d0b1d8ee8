/**
 * Kinds of values in the configuration, as zod schemas. Every message says what is expected, as the
 * end of the sentence "VALUE is not ..."; `config-problem.ts` writes the rest.
 */
import * as z from 'zod';

/** Longest path of a Unix socket: `sun_path` has 108 bytes and ends with a zero. unix(7). */
export const MAX_SOCKET_PATH_BYTES = 107;

/** A mapping that refuses unknown keys, and names its own for "did you mean". */
export function mapping<S extends z.core.$ZodLooseShape>(shape: S, expects: string) {
  const known = JSON.stringify(Object.keys(shape));
  return z.strictObject(shape, {
    error: (issue) => (issue.code === 'unrecognized_keys' ? known : expects),
  });
}

export function int(min: number, max: number, what: string) {
  const error = `a whole number from ${min} to ${max} (${what})`;
  return z.int({ error }).min(min, { error }).max(max, { error });
}

export function text(pattern: RegExp, expects: string) {
  return z.string({ error: expects }).regex(pattern, { error: expects });
}

export const bool = () => z.boolean({ error: 'true or false' });

export const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/;
export const NAME_RULE = '1 to 63 letters, digits, ".", "_", "-"; a letter or digit first';

const OCTAL = 'a file mode as octal digits in quotes, such as "0660"';
/** YAML reads `0660` as the number 660; the loader hands over what was written. */
export const fileMode = () => text(/^(0o?)?[0-7]{3}$/, OCTAL);
const OWNER = 'an owner, as user:group, user or uid:gid, such as "libvirt-qemu:kvm"';
export const owner = () =>
  text(/^([A-Za-z0-9_][A-Za-z0-9_.@-]*\$?)?(:[A-Za-z0-9_][A-Za-z0-9_.@-]*)?$/, OWNER).min(1, {
    error: OWNER,
  });
const EXAMPLE = '/run/vring/vm0.sock';
const SOCKET = `an absolute path of at most ${MAX_SOCKET_PATH_BYTES} bytes, such as ${EXAMPLE}`;
export const socketPath = () => text(/^\/[^\0]{0,105}[^/\0]$/, SOCKET);
