/**
 * `vring disk` as management programs start back-ends: docs/interop/vhost-user.rst of QEMU,
 * "Backend program conventions" and "vhost-user-blk".
 */
import { deepEqual, equal, match, ok } from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { discovery } from '../../src/cli/disk.ts';
import { BlkDisk, connectBlkGuest } from '../../src/guest/index.ts';
import { type Fd, listenUnix, socketPair } from '../../src/sys/index.ts';
import { createDiskFile } from '../peers/blk-server.ts';
import { Scratch, waitFor } from '../peers/scratch.ts';

const PROGRAM = new URL('../../src/cli/vring-disk.ts', import.meta.url).pathname;
const MIB = 2 ** 20;

class Program {
  readonly child: ChildProcess;
  out = '';
  err = '';

  constructor(args: readonly string[], handedDown?: Fd) {
    const given = handedDown === undefined ? [] : [handedDown.number];
    this.child = spawn(process.execPath, [PROGRAM, ...args], {
      stdio: ['ignore', 'pipe', 'pipe', ...given],
    });
    this.child.stdout!.setEncoding('utf8').on('data', (text: string) => (this.out += text));
    this.child.stderr!.setEncoding('utf8').on('data', (text: string) => (this.err += text));
  }

  async ready(): Promise<void> {
    await waitFor(`ready\n${this.err}`, 10_000, () => this.out.includes('ready: blk'));
  }

  async ended(): Promise<number | null> {
    if (this.child.exitCode === null) await once(this.child, 'exit');
    return this.child.exitCode;
  }

  async close(): Promise<void> {
    this.child.kill('SIGKILL');
    if (this.child.signalCode === null && this.child.exitCode === null) {
      await once(this.child, 'exit');
    }
  }
}

function printed(...args: string[]): string {
  const { status, stdout, stderr } = spawnSync(process.execPath, [PROGRAM, ...args], {
    encoding: 'utf8',
  });
  deepEqual([status, stderr], [0, '']);
  return stdout;
}

test('capabilities and discovery are printed, whatever else is asked for', () => {
  const capabilities = { type: 'block', features: ['read-only', 'blk-file'] };
  deepEqual(JSON.parse(printed('--print-capabilities')), capabilities);
  const noise = ['--fd', 'x', '--queues', '999', '--what', 'ever', '--print-capabilities'];
  deepEqual(JSON.parse(printed(...noise)), capabilities);
  const found = JSON.parse(printed('--print-discovery')) as ReturnType<typeof discovery>;
  equal(found.binary, PROGRAM);
  const file = new URL('../../share/vhost-user/50-vring-disk.json', import.meta.url);
  deepEqual(JSON.parse(readFileSync(file, 'utf8')), discovery());
});

test('it listens, serves, and ends with SIGTERM', async () => {
  await using scratch = new Scratch();
  const [socket, file] = [scratch.path('s'), createDiskFile(scratch.path('a.img'), MIB)];
  const args = [`--socket-path=${socket}`, `--blk-file=${file}`];
  const program = scratch.own(new Program(args));
  await program.ready();
  const guest = await connectBlkGuest({ socket });
  const disk = new BlkDisk(guest);
  await disk.write(4096, new Uint8Array(4096).fill(7));
  await disk.flush();
  equal(readFileSync(file)[4096], 7);
  program.child.kill('SIGTERM');
  equal(await program.ended(), 0);
  equal(existsSync(socket), false, 'its socket is gone');
  await guest.close().catch(() => undefined);

  const readOnly = scratch.own(new Program([...args, '--read-only']));
  await readOnly.ready();
  const reader = scratch.own(await connectBlkGuest({ socket }));
  equal(reader.config.readOnly, true);
});

test('a socket that is handed down: a listener, and a connection', async () => {
  await using scratch = new Scratch();
  const file = createDiskFile(scratch.path('a.img'), MIB);
  const listener = listenUnix(scratch.path('s'));
  const listening = scratch.own(new Program(['--fd=3', `--blk-file=${file}`], listener));
  await listening.ready();
  for (let session = 0; session < 2; session++) {
    const guest = await connectBlkGuest({ socket: scratch.path('s') });
    equal((await new BlkDisk(guest).read(0, 512)).length, 512);
    await guest.close();
  }
  listening.child.kill('SIGTERM');
  equal(await listening.ended(), 0);
  ok(existsSync(scratch.path('s')), 'the path is of whoever made it');
  listener.close();

  const [ours, theirs] = socketPair();
  const connected = scratch.own(new Program(['--fd', '3', `--blk-file=${file}`], theirs));
  theirs.close();
  await connected.ready();
  ours.close();
  equal(await connected.ended(), 0, 'it ends with its front-end');
});

test('what cannot be is said before anything is served', async () => {
  await using scratch = new Scratch();
  const file = createDiskFile(scratch.path('a.img'), MIB);
  const socket = `--socket-path=${scratch.path('s')}`;
  const cases: [string[], number, RegExp][] = [
    [[socket, '--blk-file=/no/such/image'], 1, /ENOENT: \/no\/such\/image/],
    [['--fd=77', `--blk-file=${file}`], 1, /EBADF: fd 77/],
    [[socket], 2, /either --blk-file PATH or --layer/],
    [[`--blk-file=${file}`], 2, /either --socket-path PATH or --fd/],
    [[socket, '--layer', 'limit:iops=5'], 2, /limit stands on something/],
  ];
  for (const [args, status, said] of cases) {
    const program = scratch.own(new Program(args));
    equal(await program.ended(), status, args.join(' '));
    match(program.err, said);
    equal(existsSync(scratch.path('s')), false);
  }
});
