/** TLS of a client: the server must be who the address says, by an authority that we know. */
import { readFileSync } from 'node:fs';
import { isIP, type Socket } from 'node:net';
import { join } from 'node:path';
import { connect, type ConnectionOptions } from 'node:tls';
import { ConfigError, messageOf } from '../../base/errors.ts';
import { NbdError } from './nbd-error.ts';
import type { NbdAddress } from './nbd-uri.ts';

/** @throws NbdError ERR_VRING_NBD_REFUSED; ConfigError: files. */
export function secureSocket(socket: Socket, tls: NonNullable<NbdAddress['tls']>): Promise<Socket> {
  const { hostname, certificates } = tls;
  const options: ConnectionOptions = { socket, host: hostname, ...tlsFiles(certificates) };
  if (isIP(hostname) === 0) options.servername = hostname;
  return new Promise((resolve, reject) => {
    const secure = connect(options);
    const failed = (cause: Error): void => {
      const text = `TLS with ${hostname}: ${cause.message}`;
      reject(new NbdError('ERR_VRING_NBD_REFUSED', text, { cause }));
    };
    secure.once('error', failed);
    secure.once('close', () => failed(new Error('the connection ended during its handshake')));
    secure.once('secureConnect', () => {
      secure.removeAllListeners('error');
      secure.removeAllListeners('close');
      resolve(secure);
    });
  });
}

function tlsFiles(folder: string | null): ConnectionOptions {
  if (folder === null) return {}; // the system's authorities
  const file = (name: string): Buffer => readFileSync(join(folder, name));
  try {
    const ca = file('ca-cert.pem');
    try {
      return { ca, cert: file('client-cert.pem'), key: file('client-key.pem') };
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
      return { ca }; // a server that asks for no certificate of ours
    }
  } catch (cause) {
    const text = `${messageOf(cause)}; expected are ca-cert.pem, client-cert.pem, client-key.pem`;
    throw new ConfigError('tls-certificates', text, { cause });
  }
}
