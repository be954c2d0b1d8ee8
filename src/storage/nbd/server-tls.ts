/**
 * TLS of an export: NBD_OPT_STARTTLS (doc/proto.md, "TLS"). Who has no users can have certificates:
 * with `ca`, clients bring one of that authority; a `psk` file has a key for each name.
 */
import { readFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { createSecureContext, createServer, type TlsOptions, type TLSSocket } from 'node:tls';
import { ConfigError, messageOf } from '../../base/errors.ts';
import { NbdError } from './nbd-error.ts';

/** Paths of PEM files, read when the export begins. */
export type ExportTlsOptions = {
  /** The server's, and what is between it and an authority. */
  readonly certificate?: string;
  readonly key?: string;
  /** Clients must have a certificate of this authority. */
  readonly ca?: string;
  /** In place of certificates: lines of `NAME:HEX`, as `psktool` writes them. */
  readonly psk?: string;
  /** False: clients in the clear are served, too. */
  readonly required?: boolean;
};

/**
 * Node has pre-shared keys up to TLS 1.2, and only where a cipher names them. Forward secrecy
 * first; the plain ones are what a client without Diffie-Hellman for them has.
 */
const PSK_CIPHERS = [
  'ECDHE-PSK-CHACHA20-POLY1305',
  'DHE-PSK-AES256-GCM-SHA384',
  'DHE-PSK-AES128-GCM-SHA256',
  'PSK-AES256-GCM-SHA384',
  'PSK-AES128-GCM-SHA256',
].join(':');

export class ExportTls {
  readonly required: boolean;
  readonly #options: TlsOptions;
  readonly #needsCertificate: boolean;

  /** @throws ConfigError: which file, and what is wrong with it. */
  constructor(options: ExportTlsOptions) {
    this.required = options.required ?? true;
    this.#needsCertificate = options.ca !== undefined;
    this.#options = options.psk === undefined ? certificates(options) : preShared(options);
  }

  /**
   * `socket` belongs to what is returned.
   * @throws NbdError ERR_VRING_NBD_REFUSED: it is not to be trusted, or speaks something else.
   */
  secure(socket: Socket): Promise<TLSSocket> {
    socket.on('error', () => {}); // told by what is over it
    return new Promise((resolve, reject) => {
      const failed = (cause: Error): void => {
        const text = `TLS with an NBD client: ${cause.message}`;
        reject(new NbdError('ERR_VRING_NBD_REFUSED', text, { cause }));
      };
      // Listens nowhere: a connection is handed to it.
      const server = createServer(this.#options, (secure) => {
        if (!this.#needsCertificate || secure.authorized) return resolve(secure);
        secure.destroy();
        failed(new Error(`its certificate: ${String(secure.authorizationError)}`));
      });
      server.once('tlsClientError', (error, secure) => {
        secure.destroy();
        failed(error);
      });
      socket.once('close', () => failed(new Error('the connection ended during its handshake')));
      server.emit('connection', socket);
    });
  }
}

function certificates({ certificate, key, ca }: ExportTlsOptions): TlsOptions {
  if (certificate === undefined || key === undefined) {
    throw new ConfigError('tls', 'needs certificate and key, or psk');
  }
  const cert = pem('certificate', certificate);
  const options = { cert, key: pem('key', key), ...(ca !== undefined && { ca: pem('ca', ca) }) };
  try {
    createSecureContext(options);
  } catch (cause) {
    const files = [certificate, key, ca].filter((path) => path !== undefined).join(', ');
    const text = `${messageOf(cause)}; expected are PEM files that belong together: ${files}`;
    throw new ConfigError('tls', text, { cause });
  }
  // Who is not authorized is told apart by ourselves, with a reason.
  return { ...options, requestCert: ca !== undefined, rejectUnauthorized: false };
}

function preShared({ psk, certificate, key, ca }: ExportTlsOptions): TlsOptions {
  if ((certificate ?? key ?? ca) !== undefined) {
    throw new ConfigError('tls', 'psk goes without certificate, key and ca');
  }
  const keys = new Map<string, Buffer>();
  for (const [i, line] of pem('psk', psk!).toString('utf8').split('\n').entries()) {
    if (line.trim() === '' || line.startsWith('#')) continue;
    const [, name, hex] = /^([^:]+):((?:[0-9a-f]{2})+)$/i.exec(line.trim()) ?? [];
    if (name === undefined) {
      throw new ConfigError('tls.psk', `${psk}: line ${i + 1} is not NAME:HEX`);
    }
    keys.set(name, Buffer.from(hex!, 'hex'));
  }
  return {
    ciphers: PSK_CIPHERS,
    maxVersion: 'TLSv1.2',
    pskCallback: (_socket, identity) => keys.get(identity) ?? null,
  };
}

function pem(name: string, path: string): Buffer {
  try {
    return readFileSync(path);
  } catch (cause) {
    throw new ConfigError(`tls.${name}`, messageOf(cause), { cause });
  }
}
