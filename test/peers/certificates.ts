/** An authority in a folder and what it has signed, by the names that QEMU and libnbd look for. */
import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

export class Authority {
  readonly folder: string;

  /** Makes `ca-cert.pem` and `ca-key.pem` there. */
  constructor(folder: string) {
    this.folder = folder;
    mkdirSync(folder, { recursive: true });
    openssl('req', '-x509', ...NEW_KEY, '-days', '2', '-subj', '/CN=ca', ...this.#out('ca', true));
  }

  /** `NAME-cert.pem` and `NAME-key.pem`, of localhost. */
  sign(name: string): { certificate: string; key: string } {
    const [request, extension] = [this.path(`${name}.csr`), this.path(`${name}.ext`)];
    openssl('req', ...NEW_KEY, '-subj', `/CN=${name}`, '-keyout', this.key(name), '-out', request);
    writeFileSync(extension, 'subjectAltName=DNS:localhost\n');
    const by = ['-CA', this.certificate('ca'), '-CAkey', this.key('ca'), '-extfile', extension];
    openssl('x509', '-req', '-days', '2', '-in', request, ...by, ...this.#out(name, false));
    return { certificate: this.certificate(name), key: this.key(name) };
  }

  path(name: string): string {
    return join(this.folder, name);
  }

  certificate(name: string): string {
    return this.path(`${name}-cert.pem`);
  }

  key(name: string): string {
    return this.path(`${name}-key.pem`);
  }

  #out(name: string, withKey: boolean): string[] {
    const key = withKey ? ['-keyout', this.key(name)] : [];
    return [...key, '-out', this.certificate(name)];
  }
}

const NEW_KEY = ['-newkey', 'rsa:2048', '-nodes'];

function openssl(...args: string[]): void {
  execFileSync('openssl', args, { stdio: 'pipe' });
}
