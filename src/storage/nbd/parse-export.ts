/**
 * An export as people write it:
 *
 *   unix:PATH[,mode=0660]        tcp:HOST:PORT
 *
 * with `name=NAME`, `read-only`, `max=CONNECTIONS`, and for TLS `tls-certificate=FILE` with
 * `tls-key=FILE` and perhaps `tls-ca=FILE`, or `tls-psk=FILE`, and `tls=allowed` for clients in the
 * clear, too.
 */
import { ConfigError } from '../../base/errors.ts';
import { PartOptions } from '../stack/part-options.ts';
import type { NbdExportOptions } from './nbd-export.ts';
import type { ExportTlsOptions } from './server-tls.ts';

/** @throws ConfigError at `path`. */
export function parseExport(text: string, path: string): NbdExportOptions {
  // A path stands for `unix:`, and the flag for its value.
  const whole = /^[./]/.test(text) ? `unix:${text}` : text;
  const o = PartOptions.parse(whole.replace(/,read-only(?=,|$)/, ',read-only=on'), path);
  const at = placeOf(o);
  const options: NbdExportOptions = {
    at,
    ...o.optional('name', 'name'),
    ...o.flag('read-only', 'readOnly'),
    ...o.number('max', 'maxConnections'),
    ...tlsOf(o),
  };
  o.finish();
  return options;
}

function placeOf(o: PartOptions): NbdExportOptions['at'] {
  if (o.kind === 'unix') {
    const socket = o.argument('a path');
    const { mode } = o.optional('mode', 'mode');
    if (mode === undefined) return { socket };
    if (/^0?[0-7]{3}$/.test(mode)) return { socket, mode: Number.parseInt(mode, 8) };
    throw new ConfigError(o.path, `mode=${mode}, expected is octal, such as 0660`);
  }
  if (o.kind !== 'tcp') {
    const text = `'${o.kind}' is no place for an export; expected is unix:PATH or tcp:HOST:PORT`;
    throw new ConfigError(o.path, text);
  }
  const address = o.argument('HOST:PORT');
  const [, v6, name, digits] = /^(?:\[([^\]]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(address) ?? [];
  const port = Number(digits);
  if (port <= 65_535) return { host: (v6 ?? name)!, port };
  throw new ConfigError(o.path, `'${address}', expected is HOST:PORT, such as 127.0.0.1:10809`);
}

function tlsOf(o: PartOptions): { tls?: ExportTlsOptions } {
  const files = {
    ...o.optional('tls-certificate', 'certificate'),
    ...o.optional('tls-key', 'key'),
    ...o.optional('tls-ca', 'ca'),
    ...o.optional('tls-psk', 'psk'),
  };
  const { tls } = o.choice('tls', ['required', 'allowed'] as const, 'tls');
  if (Object.keys(files).length > 0) return { tls: { ...files, required: tls !== 'allowed' } };
  if (tls === undefined) return {};
  throw new ConfigError(o.path, `tls=${tls} needs tls-certificate and tls-key, or tls-psk`);
}
