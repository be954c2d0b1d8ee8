/**
 * Postcopy (protocol feature PAGEFAULT): the guest runs here while its memory is still elsewhere.
 *
 * POSTCOPY_ADVISE makes a userfaultfd, which the front-end gets. After POSTCOPY_LISTEN every
 * region that arrives is registered with it and told back with its address in this process, so
 * that the front-end knows a fault when it sees one; rings are held until it says that it is
 * ready, with a u64 of zero (the specification's "ack" of SET_MEM_TABLE). A worker that touches a
 * page which is not there sleeps in the kernel until the front-end brings it; the main thread
 * touches no guest memory. POSTCOPY_END makes all of it ordinary memory again.
 */
import { ProtocolError, SysError } from '../base/errors.ts';
import type { SharedRegion } from '../memory/index.ts';
import {
  arenaHostAddress,
  createUserfaultfd,
  type Fd,
  fdStat,
  registerUserfault,
  unregisterUserfault,
} from '../sys/index.ts';

export type PostcopyState = 'none' | 'advised' | 'listening';

type Range = {
  readonly region: SharedRegion;
  readonly offset: number;
  readonly sizeBytes: number;
};

export class PostcopyControl {
  state: PostcopyState = 'none';
  #uffd: Fd | null = null;
  #ranges: Range[] = [];

  /** POSTCOPY_ADVISE: what the front-end gets; it stays ours. @throws ProtocolError, refused. */
  advise(request: string): Fd {
    this.#release();
    try {
      this.#uffd = createUserfaultfd();
    } catch (cause) {
      if (!(cause instanceof SysError)) throw cause;
      throw new ProtocolError('ERR_VRING_POSTCOPY', request, 'userfaultfd', cause.message, {
        cause,
      });
    }
    this.state = 'advised';
    return this.#uffd;
  }

  listen(): void {
    this.state = 'listening';
  }

  /** A region that arrived while listening. @throws ProtocolError ERR_VRING_POSTCOPY. */
  register(request: string, region: SharedRegion, fd: Fd): void {
    const page = fdStat(fd.number).pageSizeBytes;
    const start = Math.floor(region.offset / page) * page;
    const end = Math.ceil((region.offset + region.sizeBytes) / page) * page;
    const range = { region, offset: start, sizeBytes: end - start };
    this.#ranges = this.#ranges.filter((each) => !each.region.closed);
    try {
      registerUserfault(this.#uffd!.number, range.offset, range.sizeBytes);
    } catch (cause) {
      if (!(cause instanceof SysError)) throw cause;
      throw new ProtocolError('ERR_VRING_POSTCOPY', request, 'region', cause.message, { cause });
    }
    this.#ranges.push(range);
  }

  /** POSTCOPY_END, and the end of the session. Idempotent. */
  end(): void {
    this.#release();
    this.state = 'none';
  }

  #release(): void {
    const uffd = this.#uffd;
    this.#uffd = null;
    for (const { region, offset, sizeBytes } of this.#ranges.splice(0)) {
      // Its addresses may be another session's by now, and before Linux 6.17 any userfaultfd ends
      // the registration of any other.
      if (region.closed) continue;
      try {
        unregisterUserfault(uffd!.number, offset, sizeBytes);
      } catch {
        // Truncated since; closing the userfaultfd wakes whoever waits, in any case.
      }
    }
    uffd?.close();
  }
}

/** Where the front-end finds a region in this process, as it sees it in its userfaultfd. */
export function hostAddress(region: SharedRegion): bigint {
  return arenaHostAddress() + BigInt(region.offset);
}

let available: boolean | null = null;

/** Whether this process may make a userfaultfd: asked once. */
export function postcopyAvailable(): boolean {
  if (available === null) {
    try {
      createUserfaultfd().close();
      available = true;
    } catch {
      available = false;
    }
  }
  return available;
}
