/** NBD over TLS: our client on qemu-nbd, and libnbd and qemu-img on our export. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { FileLayer } from '../../src/storage/layer/file-layer.ts';
import {
  type ExportTlsOptions,
  NbdExport,
  type NbdExportStatus,
  openNbdLayer,
} from '../../src/storage/nbd/index.ts';
import { openFd } from '../../src/sys/index.ts';
import { Authority } from '../peers/certificates.ts';
import { PeerServer } from '../peers/peer-server.ts';
import { requirePeer } from '../peers/require-peer.ts';
import { Scratch } from '../peers/scratch.ts';

const run = promisify(execFile);
const MIB = 2 ** 20;
const O_RDWR = 2;
const CLIENTS = ['openssl', 'nbdinfo', 'nbdcopy', 'qemu-img'] as const;

/** The output of a program that must succeed. */
async function output(program: string, ...args: string[]): Promise<string> {
  return (await run(program, args, { timeout: 30_000 })).stdout;
}

function refused(program: string, ...args: string[]): Promise<void> {
  return assert.rejects(output(program, ...args), ({ code }: { code: unknown }) => code === 1);
}

async function secured(
  scratch: Scratch,
  tls: ExportTlsOptions,
): Promise<{ path: string; socket: string; status: () => NbdExportStatus }> {
  const path = scratch.path('disk.img');
  writeFileSync(path, randomBytes(4 * MIB));
  const layer = scratch.own(new FileLayer({ file: openFd(path, O_RDWR), path, readOnly: false }));
  const socket = scratch.path('export');
  const server = scratch.own(await NbdExport.start(layer, { at: { socket }, name: 'e', tls }));
  return { path, socket, status: () => server.status() };
}

test('our export with certificates of both sides', async (t) => {
  if (!requirePeer(t, ...CLIENTS)) return;
  await using scratch = new Scratch();
  const authority = new Authority(scratch.path('pki'));
  const { folder } = authority;
  authority.sign('client');
  const tls = { ...authority.sign('server'), ca: authority.certificate('ca') };
  const { path, socket, status } = await secured(scratch, tls);
  assert.match(status().uri, /^nbds\+unix:\/\/\/e\?socket=/);
  const uri = `nbds+unix:///e?socket=${socket}&tls-certificates=${folder}`;

  assert.match(await output('nbdinfo', uri), /protocol: newstyle-fixed with TLS, using structured/);
  const copy = scratch.path('copy.img');
  writeFileSync(copy, randomBytes(4 * MIB));
  await output('nbdcopy', '--flush', copy, uri);
  assert.ok(readFileSync(path).equals(readFileSync(copy)), 'nbdcopy to us');
  const object = ['--object', `tls-creds-x509,id=t,dir=${folder},endpoint=client`];
  const server = `server.type=unix,server.path=${socket},tls-creds=t,tls-hostname=localhost`;
  const options = ['--image-opts', `driver=nbd,export=e,${server}`];
  const other = `driver=raw,file.driver=file,file.filename=${copy}`;
  await output('qemu-img', 'compare', ...object, ...options, other);
  const disk = scratch.own(await openNbdLayer({ uri }));
  const back = Buffer.alloc(4 * MIB);
  await disk.read(0, back);
  assert.ok(back.equals(readFileSync(copy)), 'our client on our export');

  assert.equal(status().badClients, 0);
  await refused('nbdinfo', `nbd+unix:///e?socket=${socket}`);
  await refused('nbdinfo', '--list', `nbd+unix:///?socket=${socket}`);
  const code = 'ERR_VRING_NBD_REFUSED';
  const clear = openNbdLayer({ uri: `nbd+unix:///e?socket=${socket}` });
  await assert.rejects(clear, { code, message: /wants TLS; use nbds/ });
  // Somebody with a certificate of an authority that we do not know, and somebody with none.
  const stranger = new Authority(scratch.path('stranger'));
  stranger.sign('client');
  writeFileSync(stranger.certificate('ca'), readFileSync(authority.certificate('ca')));
  const nobody = scratch.path('pki/nobody');
  const strangers = `nbds+unix:///e?socket=${socket}&tls-certificates=${stranger.folder}`;
  await refused('nbdinfo', strangers);
  await assert.rejects(openNbdLayer({ uri: strangers }));
  const anonymous = new Authority(nobody);
  writeFileSync(anonymous.certificate('ca'), readFileSync(authority.certificate('ca')));
  await assert.rejects(
    openNbdLayer({ uri: `nbds+unix:///e?socket=${socket}&tls-certificates=${nobody}` }),
  );
  assert.ok(status().badClients >= 3, `${status().badClients} refused`);
  await disk.read(0, back);
  assert.equal(status().failedRequests, 0);
});

test('our export with TLS for who wants it, and with pre-shared keys', async (t) => {
  if (!requirePeer(t, ...CLIENTS)) return;
  await using scratch = new Scratch();
  const authority = new Authority(scratch.path('pki'));
  {
    await using inner = new Scratch();
    const { socket } = await secured(inner, { ...authority.sign('server'), required: false });
    const [clear, tls] = [`nbd+unix:///e?socket=${socket}`, `nbds+unix:///e?socket=${socket}`];
    assert.match(await output('nbdinfo', clear), /newstyle-fixed without TLS/);
    const certificates = `&tls-certificates=${authority.folder}`;
    assert.match(await output('nbdinfo', tls + certificates), /newstyle-fixed with TLS/);
  }
  const psk = scratch.path('keys.psk');
  writeFileSync(psk, `# made by hand\nalice:${randomBytes(32).toString('hex')}\n`);
  const { socket, path } = await secured(scratch, { psk });
  const uri = `nbds+unix://alice@/e?socket=${socket}&tls-psk-file=`;
  assert.match(await output('nbdinfo', uri + psk), /newstyle-fixed with TLS/);
  const copy = scratch.path('copy.img');
  await output('nbdcopy', uri + psk, copy);
  assert.ok(readFileSync(copy).equals(readFileSync(path)));
  const wrong = scratch.path('wrong.psk');
  writeFileSync(wrong, `alice:${randomBytes(32).toString('hex')}\n`);
  await refused('nbdinfo', uri + wrong);
  await refused('nbdinfo', `nbd+unix:///e?socket=${socket}`);
});

test('files of TLS that are none are said by name', async (t) => {
  if (!requirePeer(t, 'openssl')) return;
  await using scratch = new Scratch();
  const authority = new Authority(scratch.path('pki'));
  const { certificate, key } = authority.sign('server');
  const other = authority.sign('other');
  const text = scratch.path('text');
  writeFileSync(text, 'alice=00\n');
  for (const [tls, message] of [
    [{ certificate }, /tls: needs certificate and key, or psk/],
    [{ certificate, key: scratch.path('none') }, /tls\.key: ENOENT/],
    [{ certificate, key: other.key }, /expected are PEM files that belong together: /],
    [{ certificate: text, key }, /expected are PEM files that belong together: /],
    [{ psk: text }, /tls\.psk: .*text: line 1 is not NAME:HEX/],
    [{ psk: text, key }, /psk goes without certificate, key and ca/],
  ] as const) {
    await assert.rejects(secured(scratch, tls), { code: 'ERR_VRING_CONFIG', message });
  }
});

test('our client on qemu-nbd: a certificate that we know, one that we do not, none', async (t) => {
  if (!requirePeer(t, 'qemu-nbd', 'openssl')) return;
  await using scratch = new Scratch();
  const path = scratch.path('disk.img');
  writeFileSync(path, Buffer.alloc(MIB));
  const authority = new Authority(scratch.path('pki'));
  authority.sign('server');
  const socket = scratch.path('s');
  const { folder } = authority;
  const credentials = `tls-creds-x509,id=t,dir=${folder},endpoint=server,verify-peer=off`;
  const secure = ['--object', credentials, '--tls-creds', 't'];
  const exported = ['-t', '-e', '8', '-f', 'raw', '-x', 'e', '-k', socket, path];
  const server = scratch.own(new PeerServer(['qemu-nbd', ...secure, ...exported], socket));
  await server.start();

  const uri = `nbds+unix:///e?socket=${socket}&tls-certificates=${folder}`;
  const disk = scratch.own(await openNbdLayer({ uri }));
  const bytes = randomBytes(MIB);
  await disk.write(0, bytes, true);
  const back = Buffer.alloc(MIB);
  await disk.read(0, back);
  assert.ok(back.equals(bytes));
  assert.ok(readFileSync(path).equals(bytes));

  const unknown = `nbds+unix:///e?socket=${socket}`;
  const code = 'ERR_VRING_NBD_REFUSED';
  await assert.rejects(openNbdLayer({ uri: unknown }), { code, message: /certificate/ });
  const other = `${uri}&tls-hostname=example.org`;
  await assert.rejects(openNbdLayer({ uri: other }), { code, message: /example\.org/ });
  const clear = `nbd+unix:///e?socket=${socket}`;
  await assert.rejects(openNbdLayer({ uri: clear }), { code, message: /wants TLS; use nbds/ });
});
