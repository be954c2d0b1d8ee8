/**
 * Substitutes for recorded fds: files of the same size with zeros in them, eventfds, socket pairs.
 * What was one thing in the recording is one thing here, by its identity.
 */
import { createEventfd, createMemfd, type Fd, socketPair } from '../sys/index.ts';
import { MAX_REPLAYED_FILE_BYTES } from './limits.ts';
import type { FdDescription } from './recorded-event.ts';

export class ReplayFds {
  readonly #byIdentity = new Map<string, Fd>();
  /** Other ends of socket pairs: kept open, unread. */
  readonly #otherEnds: Fd[] = [];

  /** The substitute; it stays ours. */
  take(description: FdDescription): Fd {
    const { kind, identity } = description;
    const known = this.#byIdentity.get(identity);
    if (known !== undefined) return known;
    const made = this.#make(description, `replayed ${kind} ${identity}`);
    this.#byIdentity.set(identity, made);
    return made;
  }

  /** Keeps an fd until the end of the session. Returns it. */
  adopt(identity: string, fd: Fd): Fd {
    this.#byIdentity.set(identity, fd);
    return fd;
  }

  /** Idempotent. */
  close(): void {
    for (const fd of [...this.#byIdentity.values(), ...this.#otherEnds.splice(0)]) fd.close();
    this.#byIdentity.clear();
  }

  #make({ kind, sizeBytes = 0 }: FdDescription, what: string): Fd {
    switch (kind) {
      case 'memfd':
      case 'hugetlbfs':
      case 'file':
        return createMemfd('replayed', Math.min(sizeBytes, MAX_REPLAYED_FILE_BYTES));
      case 'socket':
      case 'pipe': {
        const [ours, theirs] = socketPair();
        this.#otherEnds.push(ours);
        return theirs;
      }
      default:
        return createEventfd(what);
    }
  }
}
