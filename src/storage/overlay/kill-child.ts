/**
 * For tests: works on an overlay until it is killed, and notes in a log what it asks for and what
 * was answered. `node kill-child.ts FOLDER BASE LOG SEED`. Blocks carry their number and a stamp.
 */
import { openSync, writeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileLayer, randomOf } from '../qcow2/testing.ts';
import { BLOCK_BYTES, BLOCKS } from './kill-log.ts';
import { OverlayLayer } from './overlay-layer.ts';

const [folder = '', basePath = '', logPath = '', seed = '1'] = process.argv.slice(2);
const log = openSync(logPath, 'a');
// One write, into the page cache: it is there when the process no longer is.
const note = (line: string): void => void writeSync(log, `${line}\n`);
const random = randomOf(Number(seed));
const layer = await OverlayLayer.open({
  folder,
  base: fileLayer(basePath, true),
  basePath,
  readOnly: false,
});
let stamp = Number(seed) * 100_000;
let isQuiet = false;
let busy = 0;

async function lane(index: number): Promise<void> {
  for (;;) {
    if (isQuiet) {
      await sleep(1);
      continue;
    }
    const block = index + 4 * random(BLOCKS / 4);
    const bytes = Buffer.alloc(BLOCK_BYTES);
    stamp++;
    for (let at = 0; at < BLOCK_BYTES; at += 512) {
      bytes.writeUInt32LE(block, at);
      bytes.writeUInt32LE(stamp, at + 4);
    }
    const mine = stamp;
    busy++;
    note(`begin ${block} ${mine}`);
    await layer.write(block * BLOCK_BYTES, bytes, false);
    note(`end ${block} ${mine}`);
    busy--;
  }
}

async function quiet<T>(work: () => Promise<T>): Promise<T> {
  isQuiet = true;
  while (busy > 0) await sleep(1);
  try {
    return await work();
  } finally {
    isQuiet = false;
  }
}

async function control(name: string, payload?: unknown): Promise<void> {
  await layer.control(name, payload);
  note(`did ${name}`);
}

async function operate(count: number): Promise<void> {
  const name = `s${seed}-${count}`;
  const names = (await layer.control('snapshots', null)) as { name: string }[];
  const { state } = (await layer.control('commit-status', null)) as { state: string };
  const kind = random(5);
  if (kind <= 1 && names.length < 8) {
    await control('snapshot', { name }); // while the lanes write
  } else if (kind === 2 && state === 'none' && layer.counters()['overlay_files']! > 1) {
    await control('commit', random(3) === 0 ? { to: 'base' } : undefined);
  } else if (kind === 3 && names.length > 0 && state === 'none') {
    await control('delete', { name: names[random(names.length)]!.name });
  } else if (kind === 4 && names.length < 8) {
    await quiet(() => layer.control('snapshot', { name }));
    note(`save ${name}`);
    await sleep(random(20));
    const { state: now } = (await layer.control('commit-status', null)) as { state: string };
    if (now === 'running') return;
    await quiet(async () => {
      note(`rollback ${name}`);
      await control('rollback', { name });
      note(`rolled ${name}`);
    });
  }
}

note('open');
process.stdout.write('open\n');
for (let index = 0; index < 4; index++) void lane(index);
for (let count = 0; ; count++) {
  await operate(count);
  await sleep(random(15));
}
