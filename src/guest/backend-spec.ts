/** Back-ends as people write them: `vhost-user:/run/vm0.sock,server`, `in-process:tap0`. */
import { ConfigError } from '../base/errors.ts';

export type BackendSpec =
  | { readonly kind: 'vhost-user'; readonly socket: string; readonly server: boolean }
  | { readonly kind: 'vhost-net'; readonly tap: string }
  | { readonly kind: 'vhost-vdpa'; readonly device: string; readonly shadow: boolean }
  | { readonly kind: 'in-process'; readonly tap: string | null };

export type BackendKind = BackendSpec['kind'];

/** For messages and help texts. */
export const BACKEND_FORMS =
  'vhost-user:PATH[,server], vhost-net:TAP, vhost-vdpa:DEVICE[,shadow] or in-process[:TAP]';

type Form = {
  /** What stands behind the colon. */
  readonly argument: string;
  readonly example: string;
  /** Words that may follow behind a comma. */
  readonly options: readonly string[];
  make(argument: string, options: ReadonlySet<string>): BackendSpec;
};

const FORMS: Readonly<Record<BackendKind, Form>> = {
  'vhost-user': {
    argument: 'the path of a socket',
    example: 'vhost-user:/run/vring/vm0.sock',
    options: ['server'],
    make: (socket, options) => ({ kind: 'vhost-user', socket, server: options.has('server') }),
  },
  'vhost-net': {
    argument: 'the name of a TAP interface',
    example: 'vhost-net:tap0',
    options: [],
    make: (tap) => ({ kind: 'vhost-net', tap }),
  },
  'vhost-vdpa': {
    argument: 'the path of a device node',
    example: 'vhost-vdpa:/dev/vhost-vdpa-0',
    options: ['shadow'],
    make: (device, options) => ({ kind: 'vhost-vdpa', device, shadow: options.has('shadow') }),
  },
  'in-process': {
    argument: 'the name of a TAP interface',
    example: 'in-process:tap0, or in-process alone, which returns every frame',
    options: [],
    make: (tap) => ({ kind: 'in-process', tap: tap === '' ? null : tap }),
  },
};

/**
 * @param path where it stands, for errors: `--backend`.
 * @throws ConfigError naming what is expected.
 */
export function parseBackendSpec(text: string, path: string): BackendSpec {
  const { kind, argument, options } = split(text);
  if (!isKind(kind)) {
    throw new ConfigError(path, `"${text}" is no back-end; expected is ${BACKEND_FORMS}`);
  }
  const form = FORMS[kind];
  if (argument === '' && (kind !== 'in-process' || text.includes(':'))) {
    const problem = `"${text}" lacks ${form.argument}; for example ${form.example}`;
    throw new ConfigError(path, problem);
  }
  for (const option of options) {
    if (form.options.includes(option)) continue;
    const known = form.options.length === 0 ? 'no options' : `only ${form.options.join(', ')}`;
    throw new ConfigError(path, `"${text}": ${kind} knows ${known}, and no "${option}"`);
  }
  return form.make(argument, new Set(options));
}

/** Where a plain path has always meant a vhost-user socket. @throws as `parseBackendSpec`. */
export function parseBackendOrSocket(text: string, path: string): BackendSpec {
  if (isKind(split(text).kind)) return parseBackendSpec(text, path);
  return { kind: 'vhost-user', socket: text, server: false };
}

/** As `parseBackendSpec` takes it. */
export function backendText(spec: BackendSpec): string {
  switch (spec.kind) {
    case 'vhost-user':
      return `vhost-user:${spec.socket}${spec.server ? ',server' : ''}`;
    case 'vhost-net':
      return `vhost-net:${spec.tap}`;
    case 'vhost-vdpa':
      return `vhost-vdpa:${spec.device}${spec.shadow ? ',shadow' : ''}`;
    case 'in-process':
      return spec.tap === null ? 'in-process' : `in-process:${spec.tap}`;
  }
}

/** A comma is a separator only behind the kind: paths with one are written as sockets. */
function split(text: string): { kind: string; argument: string; options: string[] } {
  const colon = text.indexOf(':');
  if (colon === -1) {
    const [kind, ...options] = text.split(',');
    return { kind: kind!, argument: '', options };
  }
  const [argument, ...options] = text.slice(colon + 1).split(',');
  return { kind: text.slice(0, colon), argument: argument!, options };
}

function isKind(text: string): text is BackendKind {
  return Object.hasOwn(FORMS, text);
}
