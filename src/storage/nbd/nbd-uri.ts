/**
 * Where an export is, as a URI (doc/uri.md of the NBD project):
 *
 *   nbd://host[:port]/export                nbd+unix:///export?socket=/path
 *   nbds://host[:port]/export               nbds+unix:///export?socket=/path
 *
 * with the parameters `tls-certificates` (a folder with ca-cert.pem, client-cert.pem and
 * client-key.pem, as of QEMU and libnbd) and `tls-hostname`.
 */
import { ConfigError } from '../../base/errors.ts';
import { NBD_MAX_STRING_BYTES } from '../../wire/nbd.ts';

const DEFAULT_PORT = 10809;

export type NbdAddress = {
  /** As given, for messages; no secrets are possible in it. */
  readonly uri: string;
  readonly at: { readonly path: string } | { readonly host: string; readonly port: number };
  readonly exportName: string;
  /** Null: in the clear. */
  readonly tls: { readonly hostname: string; readonly certificates: string | null } | null;
};

/** @throws ConfigError. */
export function parseNbdUri(uri: string): NbdAddress {
  const fail = (problem: string): never => {
    throw new ConfigError('nbd', `${uri}: ${problem}`);
  };
  const [, s, unix] = /^nbd(s?)(\+unix)?:\/\//.exec(uri) ?? [];
  if (s === undefined) return fail('expected is nbd://HOST/NAME or nbd+unix:///NAME?socket=PATH');
  const url = URL.parse(uri) ?? fail('is no URI');
  if (url.username !== '' || url.password !== '') fail('NBD knows no users; leave them out');
  if (url.hash !== '') fail('has a fragment (#), which means nothing here');
  const exportName = decoded(url.pathname.replace(/^\//, ''), fail);
  if (Buffer.byteLength(exportName) > NBD_MAX_STRING_BYTES) fail('has a name over 4096 bytes');
  const allowed = new Set(['socket', 'tls-certificates', 'tls-hostname']);
  for (const name of url.searchParams.keys()) {
    if (!allowed.has(name))
      fail(`parameter ${name} is unknown; known are ${[...allowed].join(', ')}`);
  }
  const at = unix === undefined ? networkAt(url, fail) : unixAt(url, fail);
  return { uri, at, exportName, tls: s === '' ? null : tlsOf(url) };
}

function unixAt(url: URL, fail: (problem: string) => never): { path: string } {
  const path = url.searchParams.get('socket') ?? '';
  if (url.host !== '') fail('has a host, but nbd+unix takes ?socket=PATH; write nbd+unix:///NAME');
  return path === '' ? fail('needs ?socket=PATH') : { path };
}

function networkAt(url: URL, fail: (problem: string) => never): { host: string; port: number } {
  if (url.searchParams.has('socket')) fail('socket goes with nbd+unix:// only');
  const host = url.hostname.replace(/^\[(.*)\]$/, '$1');
  return { host: host === '' ? 'localhost' : host, port: Number(url.port || DEFAULT_PORT) };
}

function tlsOf(url: URL): NonNullable<NbdAddress['tls']> {
  const hostname = url.searchParams.get('tls-hostname') ?? url.hostname;
  return {
    hostname: hostname === '' ? 'localhost' : hostname.replace(/^\[(.*)\]$/, '$1'),
    certificates: url.searchParams.get('tls-certificates'),
  };
}

function decoded(text: string, fail: (problem: string) => never): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return fail('has a % that begins no encoded byte');
  }
}
