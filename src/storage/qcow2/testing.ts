/** For tests: images in files, a disk's model, random requests on both, and QEMU's opinion. */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { openFd } from '../../sys/index.ts';
import { O_CREAT, O_RDONLY, O_RDWR } from '../../wire/linux.ts';
import { FileLayer } from '../layer/file-layer.ts';
import type { Layer } from '../layer/layer.ts';
import { Qcow2Layer } from './qcow2-layer.ts';

export function temporaryFolder(t: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), 'vring-qcow2-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

export function fileLayer(path: string, readOnly = false): FileLayer {
  const file = openFd(path, readOnly ? O_RDONLY : O_RDWR | O_CREAT);
  return new FileLayer({ file, path, readOnly });
}

export function openImage(path: string, readOnly = false, backing: Layer | null = null) {
  return Qcow2Layer.open({ below: fileLayer(path, readOnly), backing, readOnly });
}

export function qemuImg(...words: string[]): string {
  return execFileSync('qemu-img', words, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
}

export type Checked = {
  readonly corruptions: number;
  readonly leaks: number;
  readonly text: string;
};

/** `qemu-img check`. */
export function qemuCheck(path: string, ...words: string[]): Checked {
  const run = spawnSync('qemu-img', ['check', '--output=json', ...words, path], {
    encoding: 'utf8',
  });
  const text = run.stdout + run.stderr;
  if (run.status !== 0 && run.status !== 2 && run.status !== 3) {
    throw new Error(`qemu-img check ${path}: ${text}`);
  }
  const found = JSON.parse(run.stdout) as Record<string, number | undefined>;
  return { corruptions: found['corruptions'] ?? 0, leaks: found['leaks'] ?? 0, text };
}

/** Throws what differs between an image and a model of its disk. */
export function qemuCompare(path: string, model: Uint8Array): void {
  const raw = `${path}.model`;
  writeFileSync(raw, model);
  qemuImg('compare', '-f', 'qcow2', '-F', 'raw', path, raw);
}

/** mulberry32: small, and good enough to choose requests. */
export function randomOf(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

export async function readAll(layer: Layer): Promise<Buffer> {
  const bytes = Buffer.alloc(layer.sizeBytes);
  const step = 2 ** 20;
  for (let at = 0; at < bytes.length; at += step) {
    await layer.read(at, bytes.subarray(at, Math.min(bytes.length, at + step)));
  }
  return bytes;
}

export type RandomRequest = {
  readonly op: 'write' | 'zero' | 'discard';
  readonly at: number;
  readonly sizeBytes: number;
  readonly unmap: boolean;
  readonly fill: number;
};

export function randomRequest(
  random: (below: number) => number,
  sizeBytes: number,
  maxBytes: number,
): RandomRequest {
  const sectors = sizeBytes / 512;
  const at = random(sectors);
  const count = 1 + random(Math.min(maxBytes / 512, sectors - at));
  const op = (['write', 'write', 'write', 'zero', 'discard'] as const)[random(5)]!;
  const unmap = random(2) === 0;
  return { op, at: at * 512, sizeBytes: count * 512, unmap, fill: 1 + random(255) };
}

/** On the layer and on the model. A discarded range is read: what it holds is not promised. */
export async function carryOut(layer: Layer, model: Buffer, request: RandomRequest): Promise<void> {
  const { op, at, sizeBytes, unmap, fill } = request;
  if (op === 'write') {
    await layer.write(at, Buffer.alloc(sizeBytes, fill), false);
    model.fill(fill, at, at + sizeBytes);
  } else if (op === 'zero') {
    await layer.zero(at, sizeBytes, { unmap, fua: false });
    model.fill(0, at, at + sizeBytes);
  } else {
    await layer.discard(at, sizeBytes);
    await layer.read(at, model.subarray(at, at + sizeBytes));
  }
}
