/**
 * What a driver of a VDUSE device has mapped, in our arena: the translations that the kernel
 * knows, and the files behind them. linux/vduse.h, VDUSE_IOTLB_GET_FD.
 *
 * A kernel driver's memory is in one file, the device's IOVA domain; that of another process
 * (vhost-vdpa) in what it shared. Each file is one region, however many mappings lead into it, so
 * that the data plane holds and watches few of them. New mappings of a file that is there already
 * are learned one by one; a new file needs the rings to start over, which the kernel's
 * UPDATE_IOTLB brings about.
 */
import { fstatSync } from 'node:fs';
import { messageOf } from '../base/errors.ts';
import { MAX_IOTLB_ENTRIES } from '../base/limits.ts';
import {
  Iotlb,
  isVduseDomain,
  mapVduseDomain,
  MemoryTable,
  PrivateMemory,
  SharedRegion,
} from '../memory/index.ts';
import { arenaHostAddress, type Fd } from '../sys/index.ts';
import { LAST_IOVA, type VduseChannel, type VduseMapping } from '../vhost-kernel/index.ts';
import type { IotlbUpdate } from '../vhost-user/index.ts';

/** All of a domain: 128 MiB in Linux 6.1, at most 1 GiB of bounce buffer and some in newer ones. */
const DOMAIN_BYTES = 2 ** 31;
/** Translations end below it: they are plain numbers. */
const ADDRESS_END = 2n ** 53n;

export type VduseMemoryOptions = {
  /** Put our memory in the place of the bounce buffer, where the kernel lets us. */
  readonly ownBounce: boolean;
  /** Something cannot be used; the rings that need it wait. */
  readonly onProblem: (text: string) => void;
};

/** A file, and the part of it that mappings lead to. */
type Wanted = { readonly fd: Fd; from: bigint; to: bigint; readonly isDomain: boolean };

export class VduseMemory {
  readonly iotlb = new Iotlb();
  readonly #device: VduseChannel;
  readonly #options: VduseMemoryOptions;
  #table = new MemoryTable();
  /** By `identityOf`. */
  readonly #files = new Map<string, SharedRegion>();
  #bounce: PrivateMemory | null = null;
  #bounceRefused = false;

  constructor(device: VduseChannel, options: VduseMemoryOptions) {
    this.#device = device;
    this.#options = options;
  }

  /** The regions; another object after `learnAll`. */
  get table(): MemoryTable {
    return this.#table;
  }

  /** Our memory is the bounce buffer. */
  get ownsBounce(): boolean {
    return this.#bounce !== null;
  }

  /** All that is mapped now. Nothing uses what was known before. */
  learnAll(): void {
    this.forget();
    this.#takeBounce();
    const { mappings, files } = this.#survey();
    try {
      let address = DOMAIN_BYTES;
      for (const [identity, file] of files) {
        const region = this.#map(file, address);
        if (region === null) continue;
        address += file.isDomain ? 0 : Math.ceil(region.sizeBytes / 4096) * 4096;
        this.#table.add(region);
        this.#files.set(identity, region);
      }
    } finally {
      for (const { fd } of files.values()) fd.close();
    }
    for (const [mapping, identity] of mappings) {
      const entry = this.#translate(mapping, identity);
      if (entry !== null) this.iotlb.update(entry);
    }
  }

  /**
   * What leads to `iova` by now. Null: nothing does; `new-file`: something in a file that is not
   * mapped, `learnAll` maps it.
   */
  learn(iova: bigint): IotlbUpdate | 'new-file' | null {
    this.#takeBounce();
    const mapping = this.#device.mapping(iova, iova);
    if (mapping === null) return null;
    const identity = identityOf(mapping.fd);
    mapping.fd.close();
    const region = this.#files.get(identity);
    if (region === undefined || !covers(region, mapping)) return 'new-file';
    const entry = this.#translate(mapping, identity);
    if (entry !== null) this.iotlb.update(entry);
    return entry;
  }

  /** Nothing uses the regions any more. Our bounce buffer stays what it is. */
  forget(): void {
    this.iotlb.clear();
    this.#files.clear();
    this.#table.close();
    this.#table = new MemoryTable();
  }

  /** Idempotent. */
  close(): void {
    this.forget();
    const bounce = this.#bounce;
    this.#bounce = null;
    if (bounce === null) return;
    try {
      // What the driver has there goes back to the kernel's pages, for a successor.
      this.#device.unregisterMemory(bounce.sizeBytes);
    } catch (error) {
      this.#options.onProblem(`the bounce buffer: ${messageOf(error)}`);
    }
    bounce.close();
  }

  /** Every mapping, and each file once; the caller closes the fds. */
  #survey(): { mappings: [VduseMapping, string][]; files: Map<string, Wanted> } {
    const mappings: [VduseMapping, string][] = [];
    const files = new Map<string, Wanted>();
    for (let at = 0n; at <= LAST_IOVA;) {
      const mapping = this.#device.mapping(at, LAST_IOVA);
      if (mapping === null) break;
      if (mappings.length >= MAX_IOTLB_ENTRIES) {
        mapping.fd.close();
        this.#options.onProblem(`more than ${MAX_IOTLB_ENTRIES} mappings; the rest is not used`);
        break;
      }
      at = mapping.last + 1n;
      const identity = identityOf(mapping.fd);
      mappings.push([mapping, identity]);
      const known = files.get(identity);
      const end = mapping.fdOffset + (mapping.last - mapping.start) + 1n;
      if (known === undefined) {
        const isDomain = isVduseDomain(mapping.fd.number);
        files.set(identity, { fd: mapping.fd, from: mapping.fdOffset, to: end, isDomain });
        continue;
      }
      mapping.fd.close();
      if (mapping.fdOffset < known.from) known.from = mapping.fdOffset;
      if (end > known.to) known.to = end;
    }
    return { mappings, files };
  }

  /** `address` is only to be unlike that of other regions: translations are the IOTLB's. */
  #map(file: Wanted, address: number): SharedRegion | null {
    const name = `memory of VDUSE device ${this.#device.name}`;
    try {
      if (file.isDomain) return mapVduseDomain(file.fd.number, DOMAIN_BYTES, name);
      const description = {
        guestPhysAddr: BigInt(address),
        userAddr: BigInt(address),
        sizeBytes: file.to - file.from,
        fdOffset: file.from,
      };
      return SharedRegion.map(file.fd.number, description, name);
    } catch (error) {
      this.#options.onProblem(messageOf(error));
      return null;
    }
  }

  #translate(mapping: VduseMapping, identity: string): IotlbUpdate | null {
    const region = this.#files.get(identity);
    if (region === undefined || mapping.last >= ADDRESS_END) return null;
    const { start, last, fdOffset, permissions } = mapping;
    const [iova, sizeBytes] = [Number(start), Number(last - start) + 1];
    if (!covers(region, mapping)) return null;
    // Ours is the memory of IOVA 0 .. size: the domain's file has no pages there any more.
    const bounce = this.#bounce;
    if (bounce !== null && iova === 0 && sizeBytes === bounce.sizeBytes) {
      return { iova, sizeBytes, offset: bounce.offset, permissions };
    }
    const offset = region.offset + (Number(fdOffset) - region.fdOffset);
    return { iova, sizeBytes, offset, permissions };
  }

  /** Before anything of the kernel's own bounce buffer is in use: see `#translate`. */
  #takeBounce(): void {
    if (!this.#options.ownBounce || this.#bounceRefused || this.#bounce !== null) return;
    const sizeBytes = this.#device.bounceBytes();
    if (sizeBytes === 0) return;
    const memory = PrivateMemory.allocate(sizeBytes);
    try {
      this.#device.registerMemory(arenaHostAddress() + BigInt(memory.offset), sizeBytes);
      this.#bounce = memory;
    } catch (error) {
      memory.close();
      this.#bounceRefused = true;
      const why =
        `our memory cannot be its bounce buffer, the kernel's is used: ${messageOf(error)} ` +
        `(ENOMEM: raise the limit of locked memory, ulimit -l, over ${sizeBytes / 1024} KiB)`;
      this.#options.onProblem(why);
    }
  }
}

function covers(region: SharedRegion, { fdOffset, start, last }: VduseMapping): boolean {
  const from = fdOffset - BigInt(region.fdOffset);
  return from >= 0n && from + (last - start) < BigInt(region.sizeBytes);
}

/** Of all anonymous inodes only the domain comes here, and a device has one. */
function identityOf(fd: Fd): string {
  if (isVduseDomain(fd.number)) return 'domain';
  const { dev, ino } = fstatSync(fd.number, { bigint: true });
  return `${dev}:${ino}`;
}
