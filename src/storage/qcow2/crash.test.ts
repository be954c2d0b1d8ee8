/** Cuts and kills at random moments of random work, over and over on what the last one left. */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { requirePeer } from '../../../test/peers/require-peer.ts';
import type { Layer } from '../layer/layer.ts';
import { CutFile } from './cut-file.ts';
import { DiskHistory } from './disk-history.ts';
import { Qcow2Layer } from './qcow2-layer.ts';
import {
  qemuCheck,
  qemuImg,
  randomOf,
  randomRequest,
  readAll,
  temporaryFolder,
} from './testing.ts';

const SIZE = 2 ** 19;
const ROUNDS = Number(process.env['VRING_CRASH_ROUNDS'] ?? 3);
const SEED = Number(process.env['VRING_SEED'] ?? Date.now() % 2 ** 31);

type Random = (below: number) => number;

/** The base of an overlay: sectors of 1, and zeros. */
function backingFile(random: Random): CutFile {
  const bytes = Buffer.alloc(SIZE - 512 * 5, 1);
  bytes.fill(0, 100 * 512, 300 * 512);
  return new CutFile(bytes, random);
}

/** Work on a disk until its file is cut. */
async function workUntilCut(
  layer: Layer,
  file: CutFile,
  history: DiskHistory,
  random: Random,
): Promise<void> {
  const work = { isOver: false };
  const lane = async (): Promise<void> => {
    while (!work.isOver) {
      const { op, at, sizeBytes, unmap, fill } = randomRequest(random, SIZE, 24 * 1024);
      if (random(6) === 0) {
        const done = history.beginFlush();
        await layer.flush();
        done();
      }
      if (random(8) === 0) await layer.read(at, Buffer.alloc(sizeBytes));
      const done = history.begin(at, sizeBytes, op === 'write' ? fill : 0, op === 'discard');
      if (op === 'write') await layer.write(at, Buffer.alloc(sizeBytes, fill), false);
      else if (op === 'zero') await layer.zero(at, sizeBytes, { unmap, fua: false });
      else await layer.discard(at, sizeBytes);
      done();
    }
  };
  const results = await Promise.allSettled(
    [lane(), lane(), lane(), lane()].map((each) => each.finally(() => (work.isOver = true))),
  );
  for (const result of results) {
    if (result.status === 'rejected' && !/power is cut/.test(String(result.reason))) {
      throw result.reason;
    }
  }
  assert.ok(file.isCut);
}

type Case = {
  readonly name: string;
  readonly create: readonly string[];
  readonly hasBacking: boolean;
  readonly prepare?: (path: string) => void;
  /** Another snapshot now and then: tables are shared again. */
  readonly snapshots?: boolean;
};

const CASES: readonly Case[] = [
  { name: 'clusters of 512', create: ['-o', 'cluster_size=512'], hasBacking: false },
  { name: 'clusters of 4K', create: ['-o', 'cluster_size=4k'], hasBacking: false },
  { name: 'over a base', create: ['-o', 'cluster_size=4k'], hasBacking: true },
  {
    name: 'over a base, extended L2 entries',
    create: ['-o', 'cluster_size=16k,extended_l2=on'],
    hasBacking: true,
  },
  {
    name: 'with a snapshot and compressed clusters',
    create: ['-o', 'cluster_size=4k'],
    hasBacking: false,
    snapshots: true,
    prepare(path) {
      const raw = Buffer.alloc(SIZE);
      for (let s = 0; s < SIZE / 512; s++) raw.fill(s % 7, s * 512, s * 512 + 512);
      writeFileSync(`${path}.raw`, raw);
      const options = ['-c', '-o', 'cluster_size=4k'];
      qemuImg('convert', '-f', 'raw', '-O', 'qcow2', ...options, `${path}.raw`, path);
      qemuImg('snapshot', '-c', 'one', path);
    },
  },
];

for (const { name, create, hasBacking, prepare, snapshots } of CASES) {
  test(`nothing that was flushed is lost by a cut, nothing answered by a kill: ${name}`, async (t) => {
    if (!requirePeer(t, 'qemu-img')) return;
    console.log(`VRING_SEED=${SEED} VRING_CRASH_ROUNDS=${ROUNDS}`);
    const random = randomOf(SEED);
    const path = join(temporaryFolder(t), 'image');
    qemuImg('create', '-f', 'qcow2', ...create, path, String(SIZE));
    prepare?.(path);
    let bytes: Buffer = readFileSync(path);
    for (let round = 0; round < ROUNDS; round++) {
      if (snapshots === true && round % 3 === 0) {
        writeFileSync(path, bytes);
        qemuImg('snapshot', '-c', `round ${round}`, path);
        bytes = readFileSync(path);
      }
      const backing = hasBacking ? backingFile(random) : null;
      const file = new CutFile(bytes, random);
      const layer = await Qcow2Layer.open({ below: file, backing, readOnly: false });
      const history = new DiskHistory(await readAll(layer));
      let steps = 1 + random(round % 3 === 0 ? 60 : 2500);
      let crashed: Buffer | null = null;
      const how = random(4) === 0 ? 'kill' : 'cut';
      file.onStep = () => {
        if (--steps === 0) crashed = how === 'kill' ? file.kill() : file.cut();
      };
      await workUntilCut(layer, file, history, random);
      assert.ok(crashed !== null);
      // What follows may crash while it repairs: only then is the disk looked at.
      bytes = crashed;
      const repaired = await repair(bytes, hasBacking, random);
      history.check(repaired.disk, how);
      bytes = repaired.bytes;
      if (round % 4 !== 0) continue;
      writeFileSync(path, bytes);
      const { corruptions, leaks, text } = qemuCheck(path);
      assert.equal(corruptions + leaks, 0, text);
      // QEMU repairs what we leave as well.
      writeFileSync(path, crashed);
      qemuCheck(path, '-r', 'all');
      const after = qemuCheck(path);
      assert.equal(after.corruptions + after.leaks, 0, after.text);
      const backingAgain = hasBacking ? backingFile(random) : null;
      const theirs = new CutFile(readFileSync(path), random);
      const opened = await Qcow2Layer.open({
        below: theirs,
        backing: backingAgain,
        readOnly: true,
      });
      history.check(await readAll(opened), how);
    }
  });
}

/** Opens what a crash left, cut now and then while that is done, and closes it. */
async function repair(
  crashed: Buffer,
  hasBacking: boolean,
  random: Random,
): Promise<{ bytes: Buffer; disk: Buffer }> {
  let bytes = crashed;
  for (;;) {
    const file = new CutFile(bytes, random);
    const backing = hasBacking ? backingFile(random) : null;
    let steps = random(3) === 0 ? 1 + random(80) : Infinity;
    let cut: Buffer | null = null;
    file.onStep = () => {
      if (--steps === 0) cut = file.cut();
    };
    try {
      const layer = await Qcow2Layer.open({ below: file, backing, readOnly: false });
      const disk = await readAll(layer);
      await layer.close();
      return { bytes: file.kill(), disk };
    } catch (error) {
      if (cut === null) throw error;
      bytes = cut;
    }
  }
}
