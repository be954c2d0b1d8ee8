/** A qcow2 image with the files that it stands on, where its stack says that they may be opened. */
import { fstatSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { openFd } from '../../sys/index.ts';
import { O_NONBLOCK, O_RDONLY } from '../../wire/linux.ts';
import { lockImage } from '../file/image-lock.ts';
import { FileLayer } from '../layer/file-layer.ts';
import type { Layer } from '../layer/layer.ts';
import { Qcow2Image } from './image.ts';
import { Qcow2Error } from './qcow2-error.ts';
import { Qcow2Layer } from './qcow2-layer.ts';

/** Files below one image. QEMU's own limit is its stack. */
export const MAX_BACKING_FILES = 32;

export type OpenQcow2Options = {
  /** `follow`: files that the image names are opened; whoever made it chose them. */
  readonly backing?: 'refuse' | 'follow';
  readonly readOnly: boolean;
  /** Of the image, when it is a file: names in it are relative to this. */
  readonly path: string | null;
};

/**
 * Whoever calls still owns `below` when this fails.
 * @throws Qcow2Error, SysError of a backing file.
 */
export async function openQcow2Layer(below: Layer, options: OpenQcow2Options): Promise<Qcow2Layer> {
  const { readOnly, path } = options;
  const name = await backingNameOf(below, options);
  if (name === null) return Qcow2Layer.open({ below, backing: null, readOnly });
  const seen = new Set<string>();
  if (path !== null) seen.add(identityOf(path));
  const backing = await openBacking(below.description, name, path, seen);
  try {
    return await Qcow2Layer.open({ below, backing, readOnly });
  } catch (error) {
    await backing.close();
    throw error;
  }
}

type Named = { readonly name: string; readonly format: string | null };

async function backingNameOf(below: Layer, options: OpenQcow2Options): Promise<Named | null> {
  const { header } = await Qcow2Image.open(below);
  if (header.backingName === null) return null;
  const named = { name: header.backingName, format: header.backingFormat };
  if (options.backing === 'follow') return named;
  const how = 'which is not opened: name the layers one by one, or say backing=follow';
  throw new Qcow2Error(below.description, 'backing_file', `is ${shown(named.name)}, ${how}`);
}

async function openBacking(
  image: string,
  { name, format }: Named,
  imagePath: string | null,
  seen: Set<string>,
): Promise<Layer> {
  const wrong = (problem: string): Qcow2Error =>
    new Qcow2Error(image, 'backing_file', `is ${shown(name)}, ${problem}`);
  // `json:`, `nbd:`, `http:`: what QEMU would open is more than a file.
  if (/^[A-Za-z][\w.+-]*:/.test(name) || name.includes('\0')) throw wrong('expected a path');
  if (format !== 'raw' && format !== 'qcow2') {
    const found = format === null ? 'no format is given' : `its format is ${shown(format)}`;
    // Guessing lets a guest that writes a raw disk choose what is opened.
    throw wrong(`and ${found}, expected raw or qcow2: qemu-img rebase -u -F FORMAT`);
  }
  if (seen.size >= MAX_BACKING_FILES) throw wrong(`the file number ${seen.size + 1} of its chain`);
  if (imagePath === null) throw wrong('relative to an image that is no file');
  const path = resolve(dirname(imagePath), name);
  // A pipe would be waited for.
  const file = openFd(path, O_RDONLY | O_NONBLOCK);
  let layer: Layer;
  try {
    const { dev, ino } = fstatSync(file.number);
    if (seen.has(`${dev}:${ino}`)) throw wrong('which is above it in its own chain');
    seen.add(`${dev}:${ino}`);
    layer = new FileLayer({ file, path, readOnly: true });
    await lockImage(file, true);
  } catch (error) {
    file.close();
    throw error;
  }
  return format === 'raw' ? layer : wrapBacking(layer, path, seen);
}

/** Closes `below` when it fails. */
async function wrapBacking(below: Layer, path: string, seen: Set<string>): Promise<Layer> {
  let backing: Layer | null = null;
  try {
    const named = await backingNameOf(below, { backing: 'follow', readOnly: true, path });
    if (named !== null) backing = await openBacking(below.description, named, path, seen);
    return await Qcow2Layer.open({ below, backing, readOnly: true });
  } catch (error) {
    await below.close();
    await backing?.close();
    throw error;
  }
}

function identityOf(path: string): string {
  const file = openFd(path, O_RDONLY | O_NONBLOCK);
  try {
    const { dev, ino } = fstatSync(file.number);
    return `${dev}:${ino}`;
  } finally {
    file.close();
  }
}

/** The image's own text: short, and nothing that a terminal obeys. */
function shown(text: string): string {
  return JSON.stringify(text.slice(0, 200));
}
