/**
 * Copy on write over a base that is not changed: qcow2 files in a folder, each over the one before
 * it, the last one written to. README.md says what the operations do, and what a crash may find.
 */
import { constants } from 'node:os';
import type { Extent, Layer, ZeroOptions } from '../layer/layer.ts';
import { LayerError } from '../layer/layer.ts';
import type { Qcow2Layer } from '../qcow2/qcow2-layer.ts';
import {
  type Chain,
  checkSnapshotName,
  fileName,
  MAX_FILES,
  OverlayError,
  writeChain,
} from './chain.ts';
import { OverlayFiles } from './overlay-files.ts';
import { mergeDown, type MergeProgress } from './merge.ts';
import { RequestGate } from './request-gate.ts';

export type OverlayOptions = {
  readonly folder: string;
  /** The layer's from now on. */
  readonly base: Layer;
  /** Where the base is, when it is a file: others find it by this, and `commit` writes to it. */
  readonly basePath: string | null;
  /** A descriptor of the open file that holds the base's lock; left out: nothing is locked. */
  readonly baseLockFd?: number;
  readonly readOnly: boolean;
};

export type SnapshotFacts = {
  readonly name: string;
  readonly createdAtMs: number;
  /** Of the disk, then. */
  readonly sizeBytes: number;
  /** What its file takes of the folder. */
  readonly fileBytes: number;
};

export type CommitFacts = {
  readonly state: 'none' | 'running' | 'failed';
  readonly doneBytes: number;
  readonly totalBytes: number;
  readonly problem: string | null;
};

export class OverlayLayer implements Layer {
  readonly readOnly: boolean;
  readonly #files: OverlayFiles;
  readonly #gate = new RequestGate();
  #chain: Chain;
  /** Of the chain's files. */
  #images: Qcow2Layer[];
  /** Operations, one after the other. */
  #operations: Promise<unknown> = Promise.resolve();
  #merge: Promise<void> | null = null;
  #isStopping = false;
  #progress: MergeProgress = { doneBytes: 0, totalBytes: 0 };
  #problem: Error | null = null;

  private constructor(files: OverlayFiles, chain: Chain, images: Qcow2Layer[], readOnly: boolean) {
    this.#files = files;
    this.#chain = chain;
    this.#images = images;
    this.readOnly = readOnly;
    if (chain.merging !== null && !readOnly) this.#startMerge();
  }

  /**
   * Makes the folder when there is none. The caller still owns the base when this fails.
   * @throws OverlayError, Qcow2Error, SysError.
   */
  static async open(options: OverlayOptions): Promise<OverlayLayer> {
    const files = new OverlayFiles(options);
    const { chain, images } = await files.openAll();
    return new OverlayLayer(files, chain, images, options.readOnly);
  }

  get description(): string {
    return `overlay:${this.#files.folder} over ${this.#files.base.description}`;
  }

  get sizeBytes(): number {
    return this.#top.sizeBytes;
  }

  read(at: number, into: Uint8Array): Promise<void> {
    return this.#gate.pass(() => this.#top.read(at, into));
  }

  write(at: number, from: Uint8Array, fua: boolean): Promise<void> {
    return this.#gate.pass(() => this.#top.write(at, from, fua));
  }

  flush(): Promise<void> {
    return this.#gate.pass(() => this.#top.flush());
  }

  discard(at: number, sizeBytes: number): Promise<void> {
    return this.#gate.pass(() => this.#top.discard(at, sizeBytes));
  }

  zero(at: number, sizeBytes: number, options: ZeroOptions): Promise<void> {
    return this.#gate.pass(() => this.#top.zero(at, sizeBytes, options));
  }

  extents(at: number, sizeBytes: number): Promise<Extent[]> {
    return this.#gate.pass(() => this.#top.extents(at, sizeBytes));
  }

  async measure(): Promise<number> {
    return this.sizeBytes;
  }

  resize(sizeBytes: number): Promise<void> {
    return this.#operation(() => this.#gate.pass(() => this.#top.resize(sizeBytes)));
  }

  async control(name: string, payload: unknown): Promise<unknown> {
    const wanted = (payload ?? {}) as { name?: unknown };
    switch (name) {
      case 'snapshot':
        return this.#change(() => this.#snapshot(wanted.name));
      case 'snapshots':
        return this.#listSnapshots();
      case 'rollback':
        return this.#change(() => this.#rollback(wanted.name));
      case 'commit':
        return this.#change(() => this.#commit((payload as { to?: unknown } | null)?.to));
      case 'commit-status':
        return this.#commitFacts();
      case 'delete':
        return this.#change(() => this.#delete(wanted.name));
      default:
        return this.#files.base.control(name, payload);
    }
  }

  hurry(isHurried: boolean): void {
    this.#top.hurry(isHurried);
  }

  counters(): Record<string, number> {
    return {
      ...this.#top.counters(),
      overlay_files: this.#images.length,
      overlay_commit_done_bytes: this.#progress.doneBytes,
      overlay_commit_total_bytes: this.#progress.totalBytes,
    };
  }

  async close(): Promise<void> {
    this.#isStopping = true;
    await this.#merge;
    await this.#operations.catch(() => undefined);
    await this.#files.closeAll(this.#images);
  }

  /** Resolves when no merge is under way; for who waits for a commit. */
  async settled(): Promise<void> {
    await this.#merge;
  }

  get #top(): Qcow2Layer {
    return this.#images.at(-1)!;
  }

  #operation<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#operations.then(work, work);
    this.#operations = done.catch(() => undefined);
    return done;
  }

  #change<T>(work: () => Promise<T>): Promise<T> {
    if (this.readOnly) {
      const text = `${this.description} is opened read-only`;
      throw new LayerError(constants.errno.EROFS, text);
    }
    return this.#operation(async () => {
      try {
        return await work();
      } finally {
        if (this.#merge === null) this.#files.releaseBase(); // a merge does so at its end
      }
    });
  }

  #error(problem: string): OverlayError {
    return new OverlayError(this.#files.folder, problem);
  }

  async #snapshot(wanted: unknown): Promise<void> {
    const name = checkSnapshotName(this.#files.folder, wanted, this.#chain);
    await this.#pushTop(name, this.#chain.merging);
  }

  /** What is the top becomes read-only, by this name; a new one is put over it. */
  async #pushTop(snapshot: string | null, merging: string | null): Promise<void> {
    const { next, files } = this.#chain;
    if (files.length >= MAX_FILES) {
      throw this.#error(`has ${MAX_FILES} files already: commit, or delete snapshots`);
    }
    const old = this.#top;
    await old.flush(); // so that little is left to do while requests wait
    const file = fileName(next);
    const top = await this.#files.createTop(file, old, files.at(-1)!.file, old.sizeBytes);
    const nowMs = Date.now();
    const frozen = { ...files.at(-1)!, snapshot, createdAtMs: nowMs };
    const fresh = { file, snapshot: null, createdAtMs: nowMs };
    const chain: Chain = {
      ...this.#chain,
      next: next + 1,
      files: [...files.slice(0, -1), frozen, fresh],
      merging,
    };
    await this.#gate.hold(async () => {
      try {
        await old.freeze();
        await this.#adopt(chain, [...this.#images, top]);
      } catch (error) {
        if (this.#chain !== chain) {
          await old.thaw();
          await this.#files.remove(file, top);
        }
        throw error;
      }
    });
  }

  /** The chain of the folder, and ours, whatever it throws once the file has been replaced. */
  async #adopt(chain: Chain, images: Qcow2Layer[]): Promise<void> {
    const problem = await writeChain(this.#files.folder, chain);
    this.#chain = chain;
    this.#images = images;
    if (problem !== null) throw problem;
  }

  async #rollback(wanted: unknown): Promise<void> {
    const { files, next, merging } = this.#chain;
    const kept = wanted === undefined ? files.length - 1 : this.#indexOf(wanted) + 1;
    if (merging !== null && files.findIndex(({ file }) => file === merging) >= kept) {
      throw this.#error('a commit is under way in what this would drop: wait for its end');
    }
    const below = kept === 0 ? this.#files.base : this.#images[kept - 1]!;
    const belowFile = kept === 0 ? null : files[kept - 1]!.file;
    const file = fileName(next);
    const top = await this.#files.createTop(file, below, belowFile, this.sizeBytes);
    const fresh = { file, snapshot: null, createdAtMs: Date.now() };
    const chain: Chain = {
      ...this.#chain,
      next: next + 1,
      files: [...files.slice(0, kept), fresh],
    };
    const dropped = this.#images.slice(kept);
    await this.#gate.hold(async () => {
      try {
        await this.#adopt(chain, [...this.#images.slice(0, kept), top]);
      } catch (error) {
        if (this.#chain !== chain) await this.#files.remove(file, top);
        throw error;
      }
    });
    for (const [i, image] of dropped.entries()) {
      await this.#files.remove(files[kept + i]!.file, image);
    }
  }

  /**
   * What was written since the last snapshot becomes part of what is below it; `to` the base: and
   * that of what is below it, until the base has all.
   */
  async #commit(to: unknown): Promise<CommitFacts> {
    if (to !== undefined && to !== 'base') {
      throw this.#error(`commits to ${JSON.stringify(to)}: expected is 'base', or nothing`);
    }
    if (to === 'base') await this.#files.openBase();
    if (this.#chain.merging !== null) this.#startMerge(); // it has failed, and is tried again
    else await this.#beginMerge(this.#images.length - 1, to === 'base');
    return this.#commitFacts();
  }

  /** A snapshot is forgotten: what came after it is merged into its file. */
  async #delete(wanted: unknown): Promise<CommitFacts> {
    const index = this.#indexOf(wanted);
    if (this.#chain.merging !== null) throw this.#error('a commit is under way: wait for its end');
    await this.#beginMerge(index + 1, false);
    return this.#commitFacts();
  }

  /** Merges the file at this place into the one below it; the snapshot of that one is gone. */
  async #beginMerge(index: number, isToBase: boolean): Promise<void> {
    if (index === 0) await this.#files.openBase(); // before anything depends on it
    const from = this.#chain.files[index]!.file;
    const isTop = index === this.#images.length - 1;
    if (isTop) await this.#pushTop(null, from);
    const files = this.#chain.files.map((entry, i) =>
      i === index - 1 ? { ...entry, snapshot: null } : entry,
    );
    await this.#adopt({ ...this.#chain, files, merging: from, isToBase }, this.#images);
    this.#startMerge();
  }

  #startMerge(): void {
    if (this.#merge !== null) return;
    this.#problem = null;
    this.#merge = this.#runMerge()
      .catch((error: unknown) => {
        this.#problem = error instanceof Error ? error : new Error(String(error));
      })
      .finally(() => {
        this.#merge = null;
        this.#files.releaseBase();
      });
  }

  async #runMerge(): Promise<void> {
    while (this.#chain.merging !== null) {
      const from = this.#images[this.#mergedIndex()]!;
      const into = await this.#openInto();
      this.#progress = { doneBytes: 0, totalBytes: from.sizeBytes };
      if (!(await mergeDown(from, into, this.#progress, () => this.#isStopping))) return;
      await this.#operation(() => this.#endMerge(from, into));
    }
  }

  #mergedIndex(): number {
    return this.#chain.files.findIndex(({ file }) => file === this.#chain.merging);
  }

  /** What is merged into, writable. */
  async #openInto(): Promise<Layer> {
    const index = this.#mergedIndex();
    if (index === 0) return this.#files.openBase();
    const into = this.#images[index - 1]!;
    await into.thaw();
    return into;
  }

  async #endMerge(from: Qcow2Layer, into: Layer): Promise<void> {
    const index = this.#mergedIndex();
    const { files } = this.#chain;
    const { file, snapshot, createdAtMs } = files[index]!;
    const intoFile = index === 0 ? null : files[index - 1]!.file;
    const merged = intoFile === null ? [] : [{ file: intoFile, snapshot, createdAtMs }];
    const goesOn = this.#chain.isToBase && intoFile !== null;
    const lower = files
      .slice(0, Math.max(0, index - 1))
      .map((entry, i) => (goesOn && i === index - 2 ? { ...entry, snapshot: null } : entry));
    const chain: Chain = {
      ...this.#chain,
      files: [...lower, ...merged, ...files.slice(index + 1)],
      merging: goesOn ? intoFile : null,
      isToBase: goesOn,
    };
    const above = this.#images[index + 1]!;
    const images = this.#images.filter((image) => image !== from);
    await this.#gate.hold(async () => {
      if (index > 0) await this.#images[index - 1]!.freeze();
      await this.#adopt(chain, images);
      above.backing = into;
      // Only for others: whoever opens the folder anew sets it right.
      await this.#files.nameBacking(above, intoFile);
    });
    await this.#files.remove(file, from);
  }

  #indexOf(name: unknown): number {
    const index = this.#chain.files.findIndex(({ snapshot }) => snapshot === name);
    if (typeof name === 'string' && index >= 0) return index;
    const names = this.#chain.files.flatMap(({ snapshot }) => snapshot ?? []);
    const there = names.length === 0 ? 'there are none' : `there are ${names.join(', ')}`;
    throw this.#error(`has no snapshot ${JSON.stringify(name)}; ${there}`);
  }

  #listSnapshots(): Promise<SnapshotFacts[]> {
    return Promise.all(
      this.#chain.files.flatMap(({ file, snapshot, createdAtMs }, i) => {
        if (snapshot === null) return [];
        const { sizeBytes } = this.#images[i]!;
        const facts = async (): Promise<SnapshotFacts> => {
          const fileBytes = await this.#files.allocatedBytes(file);
          return { name: snapshot, createdAtMs, sizeBytes, fileBytes };
        };
        return [facts()];
      }),
    );
  }

  #commitFacts(): CommitFacts {
    const problem = this.#problem?.message ?? null;
    const isRunning = this.#chain.merging !== null;
    const state = !isRunning ? 'none' : problem === null ? 'running' : 'failed';
    return { state, ...this.#progress, problem };
  }
}
