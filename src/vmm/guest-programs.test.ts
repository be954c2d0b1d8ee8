import { deepEqual, equal, match, ok, throws } from 'node:assert/strict';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { guestProgram } from './guest-programs.ts';
import { findKernel } from './kernel-modules.ts';
import { buildInitramfs } from './linux-guest.ts';
import { findProgram } from './programs.ts';
import { vhostUserDisks } from './qemu-disks.ts';

test('a program comes with the loader and the libraries that it names', () => {
  const files = guestProgram('tar');
  deepEqual(files[0], { path: 'bin/tar', source: findProgram('tar') });
  ok(files.some(({ path }) => path.endsWith('/libc.so.6')));
  ok(files.some(({ path }) => /^lib.*\/ld-/.test(path)));
  ok(files.every(({ path, source }) => !path.startsWith('/') && existsSync(source)));
  throws(() => guestProgram('no-such-program'), { code: 'ERR_VRING_MISSING_PROGRAM' });
});

test('files lie in the initramfs with their folders and modes, once', (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'vring-files-'));
  const [source, cache] = [join(folder, 'tool'), process.env['XDG_CACHE_HOME']];
  process.env['XDG_CACHE_HOME'] = folder;
  t.after(() => {
    if (cache === undefined) delete process.env['XDG_CACHE_HOME'];
    else process.env['XDG_CACHE_HOME'] = cache;
    rmSync(folder, { recursive: true });
  });
  if (findProgram('busybox') === null) {
    if (process.env['VRING_REQUIRE_PEERS'] === '1')
      throw new Error('apt-get install busybox-static');
    return t.skip('apt-get install busybox-static linux-image-cloud-amd64');
  }
  writeFileSync(source, 'the tool', { mode: 0o750 });
  const file = { path: 'opt/deep/tool', source };
  const text = readFileSync(buildInitramfs(findKernel(), [], [file, file]), 'latin1');
  equal(text.split('opt/deep/tool\0').length, 2, 'once');
  ok(text.indexOf('opt\0') < text.indexOf('opt/deep\0'), 'a folder before what it holds');
  match(text, /070701.{8}000081e8[^]{0,100}opt\/deep\/tool\0\0*the tool/); // regular, 0750
});

test("QEMU's words for disks", () => {
  const words = vhostUserDisks([{ socket: '/run/a,b' }, { socket: '/c', queues: 4, packed: true }]);
  deepEqual(words, [
    '-chardev',
    'socket,id=disk0,path=/run/a,,b,reconnect=1',
    '-device',
    'vhost-user-blk-pci,chardev=disk0,id=blk0,num-queues=1',
    '-chardev',
    'socket,id=disk1,path=/c,reconnect=1',
    '-device',
    'vhost-user-blk-pci,chardev=disk1,id=blk1,num-queues=4,packed=on',
  ]);
  match(vhostUserDisks([{ socket: '/c', bootIndex: 0 }])[3]!, /,bootindex=0$/);
});
