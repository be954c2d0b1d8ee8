/**
 * For tests: the folder of an overlay as it may be after a power cut, at every step of what is done
 * in it. Steps are calls of node:fs that write, sync, rename or remove; what a medium has after a
 * cut is between what was synced and what was written.
 */
import { hash } from 'node:crypto';
import fs from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { dirname, join, relative } from 'node:path';

/** Files by name; `../base` is the base. */
export type FolderState = { readonly how: string; readonly files: ReadonlyMap<string, Buffer> };

type Inode = string;
type Wrapped = (...args: never[]) => unknown;

export class FolderCuts {
  /** All that a cut may have left so far, each once. */
  readonly states: FolderState[] = [];
  steps = 0;
  readonly #folder: string;
  readonly #base: string;
  /** Content of each file as it was synced last; names as the folder was synced last. */
  readonly #synced = new Map<Inode, Buffer>();
  #names = new Map<string, Inode>();
  readonly #seen = new Set<string>();
  readonly #undo: (() => void)[] = [];

  /** What is in the folder is durable. */
  constructor(folder: string, base: string) {
    this.#folder = folder;
    this.#base = base;
    for (const [name, inode] of this.#liveNames()) {
      this.#synced.set(inode, fs.readFileSync(join(folder, name)));
    }
    this.#names = this.#liveNames();
  }

  async begin(): Promise<void> {
    const handle = await fs.promises.open(this.#folder);
    const prototype = Object.getPrototypeOf(handle) as Record<'sync' | 'writeFile', Wrapped>;
    await handle.close();
    for (const name of ['rename', 'rm'] as const) {
      this.#wrap(fs.promises, name, () => undefined);
    }
    this.#wrap(prototype, 'writeFile', () => undefined);
    this.#wrap(prototype, 'sync', (self) => this.#sync((self as { fd: number }).fd));
    this.#wrapCallback('write', () => undefined);
    this.#wrapCallback('fdatasync', (fd) => this.#sync(fd as number));
    syncBuiltinESMExports();
    this.#step();
  }

  end(): void {
    for (const undo of this.#undo.splice(0)) undo();
    syncBuiltinESMExports();
  }

  #wrap<K extends string>(
    of: Record<K, Wrapped>,
    name: K,
    then: (self: unknown, ...args: unknown[]) => void,
  ): void {
    const original = of[name];
    const step = (): void => this.#step();
    this.#undo.push(() => (of[name] = original));
    of[name] = async function (this: unknown, ...args: never[]) {
      const result = await (original as (...args: never[]) => Promise<unknown>).apply(this, args);
      then(this, ...args);
      step();
      return result;
    };
  }

  #wrapCallback(name: 'write' | 'fdatasync', then: (...args: unknown[]) => void): void {
    const all = fs as unknown as Record<string, (...args: unknown[]) => void>;
    const original = all[name]!;
    this.#undo.push(() => (all[name] = original));
    all[name] = (...args) => {
      const callback = args.pop() as (...results: unknown[]) => void;
      original(...args, (...results: unknown[]) => {
        then(...args);
        this.#step();
        callback(...results);
      });
    };
  }

  #sync(fd: number): void {
    const path = fs.readlinkSync(`/proc/self/fd/${fd}`);
    if (path === this.#folder) this.#names = this.#liveNames();
    else if (dirname(path) === this.#folder || path === this.#base) {
      const inode = this.#liveNames().get(relative(this.#folder, path));
      if (inode !== undefined) this.#synced.set(inode, fs.readFileSync(path));
    }
  }

  #liveNames(): Map<string, Inode> {
    const names = new Map<string, Inode>();
    const base = relative(this.#folder, this.#base);
    for (const name of [...fs.readdirSync(this.#folder), base]) {
      const { ino, birthtimeNs } = fs.statSync(join(this.#folder, name), { bigint: true });
      names.set(name, `${ino}:${birthtimeNs}`);
    }
    return names;
  }

  /** Names and content, each as it is or as it was synced; and a rename ahead of other names. */
  #step(): void {
    this.steps++;
    const live = this.#liveNames();
    const content = new Map<Inode, Buffer>();
    for (const [name, inode] of live) {
      content.set(inode, fs.readFileSync(join(this.#folder, name)));
    }
    const synced = (inode: Inode): Buffer => this.#synced.get(inode) ?? Buffer.alloc(0);
    const written = (inode: Inode): Buffer => content.get(inode) ?? synced(inode);
    const chain = live.get('chain.json');
    const ahead = new Map(this.#names);
    if (chain !== undefined) ahead.set('chain.json', chain);
    this.#add('killed', live, written);
    this.#add('nothing that was not synced', this.#names, synced);
    this.#add('names that were not synced', live, synced);
    this.#add('content that was not synced', this.#names, written);
    this.#add('the chain, and no other name', ahead, written);
  }

  #add(how: string, names: ReadonlyMap<string, Inode>, read: (inode: Inode) => Buffer): void {
    const files = new Map([...names].map(([name, inode]) => [name, read(inode)] as const));
    const each = [...files].map(([name, bytes]) => `${name}: ${hash('sha1', bytes)}`);
    const whole = each.toSorted().join('\n');
    if (this.#seen.has(whole)) return;
    this.#seen.add(whole);
    this.states.push({ how: `step ${this.steps}: ${how}`, files });
  }
}
