/**
 * Live migration of the software guest: from one back-end to another, into a copy of its memory,
 * without the applications on it noticing more than a pause. What a VMM does between two hosts
 * happens here between two sockets.
 *
 * Precopy. The old back-end marks the pages that it writes (dirty log) while memory is copied; what
 * it dirtied meanwhile is copied again, until little is left. Then the rings stop, the rest is
 * copied, the device's state goes over (DEVICE_STATE, where both have it), and the rings go on at
 * the new back-end with the bases of the old one. What the driver itself writes nobody logs here
 * (a VMM has the hypervisor's log for that): it is copied once more while everything stands still.
 *
 * Postcopy. The rings stop at once; only what the driver writes is copied. The new back-end starts
 * with the rest missing: who touches a page waits for it (userfaultfd), and it is brought, while
 * all others follow in the background.
 */
import { VringError } from '../base/errors.ts';
import type { BackendDirtyLog, VhostBackend } from '../base/vhost-backend.ts';
import { GuestMemory } from '../memory/index.ts';
import { arena } from '../sys/index.ts';
import {
  VHOST_F_LOG_ALL,
  VHOST_USER_PROTOCOL_F_DEVICE_STATE,
  VHOST_USER_PROTOCOL_F_RARP,
} from '../wire/vhost-user.ts';
import { hasFeature } from '../wire/virtio.ts';
import { asVhostUser, introduceDriver, type DriverSetup } from './attach.ts';
import { DirtyPages, PAGE_BYTES } from './dirty-pages.ts';
import type { NetGuest } from './net-driver.ts';
import { macToBytes } from './net-frame.ts';
import type { MemoryCopy } from './net-queues.ts';
import { PostcopySource } from './postcopy.ts';

export type MigrateOptions = {
  /** Reaches the back-end that the guest moves to; see NetConnector. */
  readonly connect: (signal?: AbortSignal) => Promise<VhostBackend>;
  readonly postcopy?: boolean;
  /** Rounds of precopy at most, and how few dirty pages are worth no further round. */
  readonly maxRounds?: number;
  readonly restPages?: number;
  /** Postcopy: milliseconds between bundles of 32 pages that nobody waits for. Default 0. */
  readonly bundlePauseMs?: number;
  /** Compare both memories at the end; `unlogged` counts what the back-end wrote without a mark. */
  readonly verify?: boolean;
};

export type MigrationReport = {
  /** Pages copied in each round; the last one was copied while the rings stood still. */
  readonly rounds: readonly number[];
  readonly pauseMs: number;
  readonly totalMs: number;
  /** Null: one of both back-ends has no DEVICE_STATE. */
  readonly stateBytes: number | null;
  readonly announcedBy: 'back-end' | 'guest';
  /** Pages that were missing in the log; null without `verify`. */
  readonly unlogged: number | null;
  /** Postcopy: pages that somebody waited for. */
  readonly faults: number;
};

/** Between two rounds of precopy, so that there is something to log. */
const ROUND_PAUSE_MS = 10;

/**
 * Moves the guest. When this throws the guest is where it was, unless its `failure` says that it is
 * nowhere.
 * @throws VringError ERR_VRING_MIGRATION: what one of both back-ends lacks; what they answer.
 */
export async function migrateGuest(
  guest: NetGuest,
  options: MigrateOptions,
): Promise<MigrationReport> {
  const source = sourceOf(guest);
  const migration = new Migration(guest, source, options);
  guest.moving = true;
  try {
    return await migration.run();
  } catch (error) {
    await migration.goBack();
    throw error;
  } finally {
    guest.moving = false;
    migration.close();
  }
}

class Migration {
  readonly #guest: NetGuest;
  readonly #source: VhostBackend;
  readonly #options: MigrateOptions;
  readonly #copy: GuestMemory;
  readonly #moves: readonly (() => void)[];
  readonly #rounds: number[] = [];
  #log: DirtyPages | null = null;
  #target: VhostBackend | null = null;
  #postcopy: PostcopySource | null = null;
  /** The memory that is not the guest's any more, or not yet. */
  #spare: GuestMemory;
  #moved = false;

  constructor(guest: NetGuest, source: VhostBackend, options: MigrateOptions) {
    this.#guest = guest;
    this.#source = source;
    this.#options = options;
    const { sizeBytes, baseGpa } = guest.memory;
    this.#copy = GuestMemory.create(sizeBytes, { baseGpa });
    this.#spare = this.#copy;
    this.#moves = guest.queues.map((queue) => queue.prepareMove(this.#copy));
  }

  async run(): Promise<MigrationReport> {
    const { postcopy = false, verify = false, connect } = this.#options;
    const guest = this.#guest;
    const begin = performance.now();
    if (!postcopy) await this.#precopy();
    const target = await connect();
    this.#target = target;
    await introduceDriver(target, this.#setup(postcopy));

    const stopped = performance.now();
    await guest.stop();
    if (postcopy) guest.reapAll();
    else this.#copyPages(this.#log!.take());
    this.#copyDriverBytes();
    const unlogged = verify && !postcopy ? this.#countDifferences() : null;
    const stateBytes = await this.#moveState(target);
    const copy: MemoryCopy = { memory: this.#copy, moves: this.#moves };
    this.#spare = guest.moveTo(target, connect, copy);
    this.#moved = true;
    await guest.resume();
    const pauseMs = performance.now() - stopped;
    const announcedBy = await this.#announce(target);
    await this.#postcopy?.bringAll(this.#options.bundlePauseMs ?? 0);
    await this.#source.close();
    return {
      rounds: this.#rounds,
      pauseMs,
      totalMs: performance.now() - begin,
      stateBytes,
      announcedBy,
      unlogged,
      faults: this.#postcopy?.faults ?? 0,
    };
  }

  /** After an error: to the old back-end, if the guest still belongs to it. */
  async goBack(): Promise<void> {
    if (this.#moved) return;
    await this.#target?.close();
    try {
      if (this.#log !== null) await this.#setLogging(false);
      await this.#guest.resume();
    } catch {
      // The old back-end is gone, too: the guest knows that by itself.
    }
  }

  close(): void {
    this.#postcopy?.close();
    this.#log?.close();
    this.#spare.close();
  }

  async #precopy(): Promise<void> {
    const { maxRounds = 8, restPages = 16 } = this.#options;
    const dirtyLog = await this.#dirtyLog();
    this.#log = new DirtyPages(this.#guest.memory);
    await dirtyLog.setLogBase(this.#log.fd.number, this.#log.sizeBytes);
    await this.#setLogging(true);
    const pages = this.#guest.memory.sizeBytes / PAGE_BYTES;
    this.#copyPages(Array.from({ length: pages }, (_, page) => page));
    for (let round = 1; round < maxRounds; round++) {
      await new Promise((resolve) => setTimeout(resolve, ROUND_PAUSE_MS));
      const dirty = this.#log.take();
      this.#copyPages(dirty);
      if (dirty.length <= restPages) return;
    }
  }

  async #dirtyLog(): Promise<BackendDirtyLog> {
    const features = await this.#source.getFeatures();
    if (!hasFeature(features, VHOST_F_LOG_ALL)) throw this.#lacks('VHOST_F_LOG_ALL');
    const { dirtyLog } = this.#source;
    if (dirtyLog !== null) return dirtyLog;
    const isVhostUser = asVhostUser(this.#source) !== null;
    throw this.#lacks(isVhostUser ? 'VHOST_USER_PROTOCOL_F_LOG_SHMFD' : 'a dirty log');
  }

  /** LOG_ALL for buffers, and the flag of each ring for what is written into the rings. */
  async #setLogging(on: boolean): Promise<void> {
    const log = on ? 1n << BigInt(VHOST_F_LOG_ALL) : 0n;
    if (on) await this.#source.setFeatures(this.#guest.features | log);
    for (const queue of this.#guest.queues) {
      const { descUva, availUva, usedUva } = queue.vring(0, this.#guest.gpaAddresses);
      const logGpa = on ? BigInt(queue.usedGpa) : null;
      await this.#source.setVringAddr(queue.index, { descUva, availUva, usedUva }, logGpa);
    }
    if (!on) await this.#source.setFeatures(this.#guest.features);
  }

  #setup(postcopy: boolean): DriverSetup {
    const region = this.#copy.backendRegion();
    const setup = { ...this.#guest.setup, regions: () => [region], inflight: null };
    if (!postcopy) return setup;
    return {
      ...setup,
      share: async (backend) => {
        const target = asVhostUser(backend);
        if (target === null) {
          throw migrationError(`${backend.description} has no postcopy; only vhost-user has it`);
        }
        const uffd = await target.migration.advisePostcopy();
        this.#postcopy = new PostcopySource(target, uffd, this.#guest.memory);
        await this.#postcopy.share(region);
      },
    };
  }

  async #moveState(target: VhostBackend): Promise<number | null> {
    const feature = VHOST_USER_PROTOCOL_F_DEVICE_STATE;
    const [from, to] = [asVhostUser(this.#source), asVhostUser(target)];
    if (!from?.has(feature) || !to?.has(feature)) return null;
    const state = await from.migration.saveState();
    await to.migration.loadState(state);
    return state.length;
  }

  /** The network learns where the guest is now. */
  async #announce(target: VhostBackend): Promise<'back-end' | 'guest'> {
    const frontend = asVhostUser(target);
    if (frontend?.has(VHOST_USER_PROTOCOL_F_RARP)) {
      await frontend.migration.sendRarp(macToBytes(this.#guest.mac));
      return 'back-end';
    }
    this.#guest.announce();
    return 'guest';
  }

  #copyPages(pages: readonly number[]): void {
    for (const page of pages) this.#copyRange(page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
    this.#rounds.push(pages.length);
  }

  /** Rings, tables and what waits to be sent. */
  #copyDriverBytes(): void {
    for (const queue of this.#guest.queues) this.#copyRange(...queue.driverBytes);
    const control = this.#guest.control?.queue;
    if (control !== undefined) this.#copyRange(...control.allBytes);
  }

  #copyRange(from: number, to: number): void {
    const { offset } = this.#guest.memory;
    arena().bytes.copyWithin(this.#copy.offset + from, offset + from, offset + to);
  }

  /** Pages whose copy is wrong: the back-end wrote them and did not say so. */
  #countDifferences(): number {
    const { bytes } = arena();
    const { offset, sizeBytes } = this.#guest.memory;
    let count = 0;
    for (let at = 0; at < sizeBytes; at += PAGE_BYTES) {
      const ours = bytes.subarray(offset + at, offset + at + PAGE_BYTES);
      const theirs = bytes.subarray(this.#copy.offset + at, this.#copy.offset + at + PAGE_BYTES);
      if (Buffer.compare(ours, theirs) !== 0) count++;
    }
    return count;
  }

  #lacks(what: string): VringError {
    return migrationError(`${this.#source.description} does not offer ${what}`);
  }
}

function sourceOf(guest: NetGuest): VhostBackend {
  const { backend } = guest;
  if (guest.addressSpace.platform) throw migrationError('a guest behind an IOMMU does not move');
  if (guest.setup.inflight !== null) throw migrationError('an inflight region does not move');
  return backend;
}

function migrationError(text: string): VringError {
  return new VringError('ERR_VRING_MIGRATION', text);
}
