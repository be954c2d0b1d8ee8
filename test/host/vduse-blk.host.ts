/**
 * @test-host memory=1536 time-limit=600 long
 *
 * A disk of the kernel that this process's neighbour serves: `vring serve blk --vduse`, bound to
 * virtio_vdpa, is /dev/vdX. What a file system, a partition table and random I/O make of it; what
 * becomes of writes under way when the server is killed; that its size can change, that it can be
 * read-only.
 */
import { deepEqual, equal, match, ok, rejects } from 'node:assert/strict';
import { createHash, randomBytes, randomInt } from 'node:crypto';
import {
  closeSync,
  fdatasyncSync,
  fsyncSync,
  openSync,
  readFileSync,
  readSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { open } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { before, test } from 'node:test';
import { BlkServer, createDiskFile } from '../peers/blk-server.ts';
import { Scratch, sleep, waitFor } from '../peers/scratch.ts';
import { loadModules, run, sh, waitForPath } from './inside.ts';

const MIB = 2 ** 20;
const SOURCES = join(import.meta.dirname, '..', '..', 'src', 'wire');

/** The last errors that the kernel may say of a disk. */
const COMPLAINT = /I\/O error|EXT4-fs error|Buffer I\/O|hung|BUG:|blocked for more/;

before(() => loadModules('vduse', 'virtio_vdpa', 'virtio_blk', 'ext4'));

/** One disk: its file, who serves it, and what the kernel made of it. */
class KernelDisk {
  readonly name: string;
  readonly file: string;
  readonly words: readonly string[];
  server!: BlkServer;
  /** `vda` */
  disk = '';

  private constructor(name: string, file: string, words: readonly string[]) {
    this.name = name;
    this.file = file;
    this.words = words;
  }

  static async make(name: string, file: string, ...words: string[]): Promise<KernelDisk> {
    const made = new KernelDisk(name, file, words);
    await made.serve();
    return made;
  }

  /** A server for it: the first, or the next after a kill. */
  async serve(): Promise<void> {
    this.server = await BlkServer.start('--vduse', this.name, '--file', this.file, ...this.words);
    const { node } = await this.server.waitEvent('ready');
    match(String(node), /^\/dev\/vd[a-z]$/);
    this.disk = basename(String(node));
  }

  get path(): string {
    return `/dev/${this.disk}`;
  }

  sysfs(name: string): string {
    return readFileSync(`/sys/block/${this.disk}/${name}`, 'utf8').trim();
  }

  async close(): Promise<Record<string, number>> {
    const { counters } = await this.server.end();
    return (counters ?? {}) as Record<string, number>;
  }
}

/** What the page cache holds is forgotten: reads come from the disk. */
const dropCaches = (disk: KernelDisk): Promise<string> =>
  sh(`sync; blockdev --flushbufs ${disk.path}; echo 3 > /proc/sys/vm/drop_caches`);

async function complaints(): Promise<string[]> {
  return (await run('dmesg')).split('\n').filter((line) => COMPLAINT.test(line));
}

test('a file system on it lives its whole life', async () => {
  await using scratch = new Scratch();
  const file = createDiskFile(scratch.path('fs.img'), 96 * MIB);
  const disk = scratch.own(
    await KernelDisk.make('vring-fs', file, '--queues', '2', '--serial', 'vring-host'),
  );
  equal(disk.sysfs('size'), String((96 * MIB) / 512));
  equal(disk.sysfs('serial'), 'vring-host');
  equal(disk.sysfs('queue/write_cache'), 'write back');
  ok(Number(disk.sysfs('queue/discard_max_bytes')) > 0, 'no discard');
  await sh(`mkfs.ext4 -q ${disk.path}; mkdir -p /mnt/vring; mount ${disk.path} /mnt/vring`);
  writeFileSync('/mnt/vring/random', randomBytes(12 * MIB));
  await run('cp', ['-r', SOURCES, '/mnt/vring/src']);
  await sh('cd /mnt/vring; find . -type f | sort | xargs sha256sum > /tmp/sums; sync');
  await sh('umount /mnt/vring');
  await dropCaches(disk);
  await sh(`mount ${disk.path} /mnt/vring; cd /mnt/vring; sha256sum --quiet -c /tmp/sums`);
  const before = readAllocated(file);
  await sh('rm /mnt/vring/random; sync; fstrim /mnt/vring; umount /mnt/vring');
  ok(before - readAllocated(file) > 8 * MIB, 'fstrim gave nothing back');
  match(await run('fsck.ext4', ['-f', '-n', disk.path]), /files/);
  deepEqual(await complaints(), []);
  const counters = await disk.close();
  equal(counters['errors'], 0);
  equal(counters['faults'], 0);
  // The file alone, without us.
  match(await run('fsck.ext4', ['-f', '-n', file]), /files/);
});

function readAllocated(path: string): number {
  const fd = openSync(path, 'r');
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
  return statSync(path).blocks * 512;
}

test('a partition table is read, and a partition is a disk', async () => {
  await using scratch = new Scratch();
  const file = createDiskFile(scratch.path('parts.img'), 32 * MIB);
  const disk = scratch.own(await KernelDisk.make('vring-parts', file));
  const table = partitionTable([1 * MIB, 8 * MIB], [9 * MIB, 16 * MIB]);
  writeFileSync(disk.path, table, { flag: 'r+', flush: true });
  await run('blockdev', ['--rereadpt', disk.path]);
  await waitForPath(`${disk.path}2`);
  equal(disk.sysfs(`${disk.disk}1/size`), String((8 * MIB) / 512));
  const content = randomBytes(16 * MIB);
  const fd = openSync(`${disk.path}2`, 'r+');
  writeSync(fd, content, 0, content.length, 0);
  fsyncSync(fd);
  closeSync(fd);
  await dropCaches(disk);
  ok(readFileSync(`${disk.path}2`).equals(content));
  const at = Number(disk.sysfs(`${disk.disk}2/start`)) * 512;
  ok(
    readFileSync(file)
      .subarray(at, at + content.length)
      .equals(content),
  );
  const second = openSync(`${disk.path}2`, 'r');
  equal(readSync(second, Buffer.alloc(512), 0, 512, content.length), 0); // the end is the end
  closeSync(second);
});

/** A master boot record: where each partition begins, and its size, bytes. */
function partitionTable(...partitions: readonly (readonly [at: number, size: number])[]): Buffer {
  const table = Buffer.alloc(512);
  for (const [i, [at, sizeBytes]] of partitions.entries()) {
    const entry = 446 + 16 * i;
    table.writeUInt8(0x83, entry + 4); // Linux
    table.writeUInt32LE(at / 512, entry + 8);
    table.writeUInt32LE(sizeBytes / 512, entry + 12);
  }
  table.writeUInt16LE(0xaa55, 510);
  return table;
}

for (const [ring, ...words] of [['packed'], ['split', '--no-packed']] as const) {
  test(`random reads and writes agree with a model: ${ring} rings`, async (t) => {
    await using scratch = new Scratch();
    const file = createDiskFile(scratch.path('random.img'), 8 * MIB);
    const disk = scratch.own(
      await KernelDisk.make(`vring-${ring}`, file, '--queues', '2', ...words),
    );
    const model = Buffer.alloc(8 * MIB);
    const fd = openSync(disk.path, 'r+');
    try {
      for (let i = 0; i < 400; i++) {
        const size = 512 * randomInt(1, 257);
        const at = 512 * randomInt(0, (model.length - size) / 512);
        if (i % 3 === 2) {
          const into = Buffer.alloc(size);
          equal(readSync(fd, into, 0, size, at), size);
          ok(into.equals(model.subarray(at, at + size)), `${size} bytes at ${at} differ`);
          continue;
        }
        const bytes = randomBytes(size);
        bytes.copy(model, at);
        equal(writeSync(fd, bytes, 0, size, at), size);
        if (i % 50 === 49) fdatasyncSync(fd);
        if (i % 100 === 99) await dropCaches(disk);
      }
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    await dropCaches(disk);
    ok(readFileSync(disk.path).equals(model), 'the disk differs from the model');
    ok(readFileSync(file).equals(model), 'the file differs from the model');
    deepEqual(await complaints(), []);
    t.diagnostic(JSON.stringify(await disk.close()));
  });

  test(`no acknowledged write is lost when the server is killed: ${ring} rings`, async (t) => {
    await using scratch = new Scratch();
    const blocks = 512;
    const file = createDiskFile(scratch.path('killed.img'), blocks * 4096);
    const disk = scratch.own(await KernelDisk.make(`vring-kill-${ring}`, file, ...words));
    const writer = new BlockWriter(disk.path, blocks);
    const done = writer.run();
    for (let kill = 0; kill < 3; kill++) {
      const from = writer.acked;
      await waitFor('more writes', 30_000, () => writer.acked > from + 40);
      await disk.server.kill();
      await sleep(300); // writes wait meanwhile
      const stood = writer.acked;
      await disk.serve();
      match(JSON.stringify(await disk.server.waitEvent('ready')), /"resumed":true/);
      await waitFor('the writes to go on', 30_000, () => writer.acked > stood);
    }
    writer.stop();
    await done;
    await dropCaches(disk);
    deepEqual(writer.wrongBlocks(readFileSync(disk.path)), []);
    deepEqual(writer.wrongBlocks(readFileSync(file)), []);
    deepEqual(await complaints(), []);
    t.diagnostic(`${writer.acked} writes, three kills`);
    equal((await disk.close())['faults'], 0);
  });
}

/**
 * Writes blocks that say what they are, several at a time, each followed by a flush; a block
 * counts as acknowledged when its flush has returned.
 */
class BlockWriter {
  acked = 0;
  readonly #path: string;
  readonly #blocks: number;
  /** By block: the last generation that was acknowledged, and the last that was begun. */
  readonly #ackedOf: number[];
  readonly #begunOf: number[];
  #stopped = false;

  constructor(path: string, blocks: number) {
    this.#path = path;
    this.#blocks = blocks;
    this.#ackedOf = Array.from({ length: blocks }, () => 0);
    this.#begunOf = [...this.#ackedOf];
  }

  stop(): void {
    this.#stopped = true;
  }

  async run(): Promise<void> {
    const writers = 3; // libuv has four threads, and writes hold them while nobody serves
    await Promise.all(Array.from({ length: writers }, (_, i) => this.#write(i, writers)));
  }

  async #write(first: number, step: number): Promise<void> {
    const handle = await open(this.#path, 'r+');
    try {
      for (let block = first, generation = 1; !this.#stopped; block += step) {
        if (block >= this.#blocks) {
          block = first;
          generation++;
        }
        this.#begunOf[block] = generation;
        await handle.write(blockContent(block, generation), 0, 4096, block * 4096);
        await handle.datasync();
        this.#ackedOf[block] = generation;
        this.acked++;
      }
    } finally {
      await handle.close();
    }
  }

  /** Blocks that are neither what was acknowledged nor what was begun after it, whole. */
  wrongBlocks(disk: Buffer): string[] {
    const wrong: string[] = [];
    for (let block = 0; block < this.#blocks; block++) {
      const found = disk.subarray(block * 4096, (block + 1) * 4096);
      const [acked, begun] = [this.#ackedOf[block]!, this.#begunOf[block]!];
      const legal = [acked, begun].map((generation) => blockContent(block, generation));
      if (!legal.some((bytes) => bytes.equals(found))) {
        wrong.push(`block ${block}: generation ${acked} was acknowledged`);
      }
    }
    return wrong;
  }
}

/** Generation 0 is a block that was never written. */
function blockContent(block: number, generation: number): Buffer {
  if (generation === 0) return Buffer.alloc(4096);
  const seed = createHash('sha256').update(`${block} ${generation}`).digest();
  return Buffer.alloc(4096, seed);
}

test('another size is seen by the kernel', async () => {
  await using scratch = new Scratch();
  const file = createDiskFile(scratch.path('grows.img'), 16 * MIB);
  const disk = scratch.own(await KernelDisk.make('vring-grows', file));
  equal(disk.sysfs('size'), String((16 * MIB) / 512));
  truncateSync(file, 48 * MIB);
  disk.server.signal('SIGUSR2');
  await waitFor('the new size', 10_000, () => disk.sysfs('size') === String((48 * MIB) / 512));
  const fd = openSync(disk.path, 'r+');
  const bytes = randomBytes(4096);
  writeSync(fd, bytes, 0, 4096, 48 * MIB - 4096);
  fsyncSync(fd);
  closeSync(fd);
  ok(readFileSync(file).subarray(-4096).equals(bytes));
});

test('a read-only disk is one for the kernel, too', async () => {
  await using scratch = new Scratch();
  const file = scratch.path('fixed.img');
  const content = randomBytes(4 * MIB);
  writeFileSync(file, content);
  const disk = scratch.own(await KernelDisk.make('vring-fixed', file, '--read-only'));
  equal(disk.sysfs('ro'), '1');
  ok(readFileSync(disk.path).equals(content));
  await rejects(sh(`dd if=/dev/zero of=${disk.path} bs=4096 count=1`), /Read-only|not permitted/);
  ok(readFileSync(file).equals(content));
});

test("memory of ours is the kernel's bounce buffer", async () => {
  await using scratch = new Scratch();
  const file = createDiskFile(scratch.path('bounce.img'), 16 * MIB);
  const isRefused = (disk: KernelDisk): boolean => / ulimit -l/.test(disk.server.log);
  // 64 MiB are pinned; whoever may not is told, and served all the same.
  await run('prlimit', ['--pid', String(process.pid), '--memlock=8388608']);
  const without = await KernelDisk.make('vring-limit', file, '--own-bounce');
  ok(isRefused(without), without.server.log);
  await without.close();
  await run('prlimit', ['--pid', String(process.pid), '--memlock=unlimited']);
  const disk = scratch.own(await KernelDisk.make('vring-bounce', file, '--own-bounce'));
  ok(!isRefused(disk), disk.server.log);
  const bytes = randomBytes(8 * MIB);
  const fd = openSync(disk.path, 'r+');
  writeSync(fd, bytes, 0, bytes.length, MIB);
  fsyncSync(fd);
  closeSync(fd);
  await dropCaches(disk);
  ok(
    readFileSync(disk.path)
      .subarray(MIB, 9 * MIB)
      .equals(bytes),
    'read by the kernel',
  );
  ok(
    readFileSync(file)
      .subarray(MIB, 9 * MIB)
      .equals(bytes),
    'and in the file',
  );
  const pinned = /^VmPin:\s+(\d+) kB/m.exec(
    readFileSync(`/proc/${disk.server.pid}/status`, 'utf8'),
  );
  ok(Number(pinned?.[1]) >= 64 * 1024, `${pinned?.[0]}: the kernel has pinned our memory`);
});
