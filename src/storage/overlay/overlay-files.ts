/** The files of an overlay's folder: made, opened, named and removed. */
import { existsSync, fstatSync, statSync } from 'node:fs';
import { mkdir, rm, stat } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { dupFd, type Fd, openFd } from '../../sys/index.ts';
import { O_CREAT, O_RDONLY, O_RDWR } from '../../wire/linux.ts';
import { lockChanges, lockImage, unlockChanges } from '../file/image-lock.ts';
import { FileLayer } from '../layer/file-layer.ts';
import type { Layer } from '../layer/layer.ts';
import { type Backing, createQcow2 } from '../qcow2/create.ts';
import { Qcow2Layer } from '../qcow2/qcow2-layer.ts';
import {
  type Chain,
  fileName,
  LOCK,
  OverlayError,
  readChain,
  removeStrays,
  syncFolder,
  writeChain,
} from './chain.ts';
import type { OverlayOptions } from './overlay-layer.ts';

export class OverlayFiles {
  readonly folder: string;
  readonly #readOnly: boolean;
  readonly #basePath: string | null;
  /** Device and inode: the path may come to name another file. */
  readonly #baseIdentity: string | null;
  readonly #base: Layer;
  readonly #baseLockFd: number;
  /** The open file that has the base's lock, while it is written. */
  #claim: Fd | null = null;
  /** The base once more, for what is committed to it. */
  #writableBase: Layer | null = null;
  #lock: Fd | null = null;

  constructor({ folder, base, basePath, baseLockFd = -1, readOnly }: OverlayOptions) {
    this.folder = folder;
    this.#baseLockFd = baseLockFd;
    this.#base = base;
    this.#basePath = basePath === null ? null : resolve(basePath);
    this.#baseIdentity = this.#basePath === null ? null : identityOf(statSync(this.#basePath));
    this.#readOnly = readOnly;
  }

  get base(): Layer {
    return this.#writableBase ?? this.#base;
  }

  /** The folder is ours from now on, until `closeAll`. */
  async openAll(): Promise<{ chain: Chain; images: Qcow2Layer[] }> {
    if (!this.#readOnly) await mkdir(this.folder, { recursive: true });
    const path = join(this.folder, LOCK);
    // Who only reads leaves no trace: a folder without this file was never opened.
    if (!this.#readOnly || existsSync(path))
      this.#lock = await this.#openLocked(path, O_RDWR | O_CREAT);
    try {
      return await this.#openLockedFolder();
    } catch (error) {
      this.#lock?.close();
      throw error;
    }
  }

  async #openLockedFolder(): Promise<{ chain: Chain; images: Qcow2Layer[] }> {
    let chain = await readChain(this.folder);
    if (chain === null) {
      if (this.#readOnly) {
        throw new OverlayError(this.folder, 'is empty, and cannot be filled when read-only');
      }
      await this.#refuseData();
      chain = await this.#createFirst();
    } else if (!this.#readOnly) await removeStrays(this.folder, chain);
    const images: Qcow2Layer[] = [];
    try {
      for (const [i, { file }] of chain.files.entries()) {
        const isTop = i === chain.files.length - 1;
        const below = images.at(-1) ?? this.base;
        const image = await this.#open(file, below, this.#readOnly || !isTop);
        images.push(image);
        // A crash may have come between the chain and the name in a file.
        const belowFile = i === 0 ? null : chain.files[i - 1]!.file;
        if (!this.#readOnly) await this.nameBacking(image, belowFile);
      }
      return { chain, images };
    } catch (error) {
      await Promise.allSettled(images.map((image) => image.close()));
      throw error;
    }
  }

  /** An empty image over `below`, durable. The chain is to name it, or `remove` removes it. */
  async createTop(
    file: string,
    below: Layer,
    belowFile: string | null,
    sizeBytes: number,
  ): Promise<Qcow2Layer> {
    const path = join(this.folder, file);
    const layer = await this.#fileLayer(path, O_RDWR | O_CREAT);
    try {
      const backing = this.#backingOf(belowFile);
      await createQcow2(layer, { sizeBytes, ...(backing === null ? {} : { backing }) });
      await syncFolder(this.folder);
      return await this.#wrap(layer, below, false);
    } catch (error) {
      await layer.close();
      await rm(path, { force: true });
      throw error;
    }
  }

  /** Closes an image that no chain names any more, and removes its file. */
  async remove(file: string, image: Qcow2Layer): Promise<void> {
    await image.abandon();
    await rm(join(this.folder, file), { force: true });
  }

  /**
   * The base, writable, until `releaseBase`.
   * @throws OverlayError: it is no file, or not the same one; VringError ERR_VRING_DISK_LOCKED:
   *   others read it.
   */
  async openBase(): Promise<Layer> {
    if (!this.#base.readOnly) return this.#base;
    this.#claimBase();
    try {
      return (this.#writableBase ??= this.#openWritable());
    } catch (error) {
      this.releaseBase();
      throw error;
    }
  }

  /** Idempotent: the base is not written any more, and others may read it. */
  releaseBase(): void {
    const claim = this.#claim;
    this.#claim = null;
    if (claim === null) return;
    unlockChanges(claim);
    claim.close();
  }

  /** What others find below an image, if it is not what they do find. */
  async nameBacking(image: Qcow2Layer, belowFile: string | null): Promise<void> {
    const backing = this.#backingOf(belowFile);
    if (image.backingName === (backing?.name ?? null)) return;
    await image.setBackingName(backing);
  }

  async allocatedBytes(file: string): Promise<number> {
    return (await stat(join(this.folder, file))).blocks * 512;
  }

  /** Top first. All are tried; the first that fails is told. */
  async closeAll(images: readonly Qcow2Layer[]): Promise<void> {
    const owners: Layer[] = [...images.toReversed(), this.#base];
    if (this.#writableBase !== null) owners.push(this.#writableBase);
    let problem: unknown = null;
    this.releaseBase();
    for (const layer of owners) {
      await layer.close().catch((error: unknown) => (problem ??= error));
    }
    this.#lock?.close();
    if (problem !== null) throw problem;
  }

  #claimBase(): void {
    if (this.#baseLockFd < 0 || this.#claim !== null) return;
    const claim = dupFd(this.#baseLockFd, this.#basePath ?? this.#base.description);
    try {
      lockChanges(claim);
    } catch (error) {
      claim.close();
      throw error;
    }
    this.#claim = claim;
  }

  #openWritable(): Layer {
    const path = this.#basePath;
    if (path === null) {
      const problem = `cannot commit to ${this.#base.description}: only a base that is a file is`;
      throw new OverlayError(this.folder, `${problem} written to`);
    }
    const file = openFd(path, O_RDWR);
    if (identityOf(fstatSync(file.number)) !== this.#baseIdentity) {
      file.close();
      throw new OverlayError(this.folder, `${path} is another file than when this was opened`);
    }
    return new FileLayer({ file, path, readOnly: false });
  }

  async #createFirst(): Promise<Chain> {
    const file = fileName(1);
    const top = await this.createTop(file, this.base, null, this.base.sizeBytes);
    await top.close();
    const files = [{ file, snapshot: null, createdAtMs: Date.now() }];
    const chain: Chain = { version: 1, next: 2, files, merging: null, isToBase: false };
    const problem = await writeChain(this.folder, chain);
    if (problem !== null) throw problem;
    return chain;
  }

  /** A folder without a chain: what was made in it and not finished is empty. */
  async #refuseData(): Promise<void> {
    const path = join(this.folder, fileName(1));
    const there = await stat(path).catch(() => null);
    if (there === null || there.size === 0) return;
    let isEmpty = true;
    const layer = await this.#fileLayer(path, O_RDWR);
    try {
      const image = await Qcow2Layer.open({ below: layer, backing: null, readOnly: true });
      const pieces = await image.ownPieces(0, image.sizeBytes);
      isEmpty = pieces.every(({ kind }) => kind === 'none');
    } catch {
      // The header is written last: without it nothing was ever written.
    } finally {
      await layer.close();
    }
    if (isEmpty) return;
    const problem = `holds ${fileName(1)} with data in it, and chain.json is missing`;
    throw new OverlayError(this.folder, problem);
  }

  async #open(file: string, below: Layer, readOnly: boolean): Promise<Qcow2Layer> {
    const path = join(this.folder, file);
    const layer = await this.#fileLayer(path, O_RDWR);
    try {
      return await this.#wrap(layer, below, readOnly);
    } catch (error) {
      await layer.close();
      throw error;
    }
  }

  #wrap(below: Layer, backing: Layer, readOnly: boolean): Promise<Qcow2Layer> {
    return Qcow2Layer.open({ below, backing, readOnly, keepBacking: true });
  }

  async #fileLayer(path: string, flags: number): Promise<FileLayer> {
    const file = await this.#openLocked(path, flags);
    return new FileLayer({ file, path, readOnly: this.#readOnly });
  }

  /** Who reads an overlay does so beside others that read. */
  async #openLocked(path: string, flags: number): Promise<Fd> {
    const file = openFd(path, this.#readOnly ? O_RDONLY : flags);
    try {
      await lockImage(file, this.#readOnly);
      return file;
    } catch (error) {
      file.close();
      throw error;
    }
  }

  #backingOf(belowFile: string | null): Backing | null {
    if (belowFile !== null) return { name: belowFile, format: 'qcow2' };
    return this.#basePath === null ? null : { name: this.#basePath, format: 'raw' };
  }
}

function identityOf({ dev, ino }: { readonly dev: number; readonly ino: number }): string {
  return `${dev}:${ino}`;
}
