/** fds of every kind that a peer might send. What a session gets is duplicated by the kernel. */
import {
  createEventfd,
  createMemfd,
  type Fd,
  openFd,
  setNonblocking,
  socketPair,
  truncate,
} from '../../sys/index.ts';
import { REGION_BYTES } from './conversation.ts';
import type { Random } from './random.ts';

export class FuzzFds {
  readonly memory: readonly Fd[];
  readonly events: readonly Fd[];
  readonly #odd: readonly Fd[];

  constructor() {
    this.memory = Array.from({ length: 4 }, (_, i) => createMemfd(`fuzz ${i}`, REGION_BYTES));
    this.events = Array.from({ length: 8 }, (_, i) => createEventfd(`fuzz ${i}`));
    const shrunk = createMemfd('shrunk', REGION_BYTES);
    truncate(shrunk.number, 4096);
    const blocking = createEventfd('blocking');
    setNonblocking(blocking.number, false);
    const empty = createMemfd('empty', 0);
    const large = createMemfd('large', 2 ** 40);
    const files = [openFd('/dev/null', 2), openFd('/proc/self/status', 0), openFd('/tmp', 0)];
    this.#odd = [shrunk, blocking, empty, large, ...files, ...socketPair()];
  }

  event(random: Random): number {
    return random.pick(this.events).number;
  }

  any(random: Random): number {
    return random.pick([...this.memory, ...this.events, ...this.#odd]).number;
  }

  [Symbol.dispose](): void {
    for (const fd of [...this.memory, ...this.events, ...this.#odd]) fd.close();
  }
}
