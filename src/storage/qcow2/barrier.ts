/**
 * Flushes of what is below, shared by all who wait for one: a flush serves who came before it
 * began. So a batch of writes that each need an order costs one.
 */
import type { Layer } from '../layer/layer.ts';

export class Barrier {
  readonly #below: Layer;
  /** Called before a flush begins; what it returns is called once that is durable. */
  readonly #onFlush: () => () => void;
  #running: Promise<void> | null = null;
  #next: Promise<void> | null = null;
  flushes = 0;

  constructor(below: Layer, onFlush: () => () => void) {
    this.#below = below;
    this.#onFlush = onFlush;
  }

  /** What had been written before this was called is durable when it resolves. */
  sync(): Promise<void> {
    if (this.#running === null) return this.#start();
    const again = (): Promise<void> => {
      this.#next = null;
      return this.sync(); // somebody may have begun one meanwhile
    };
    this.#next ??= this.#running.then(again, again);
    return this.#next;
  }

  #start(): Promise<void> {
    this.#running = this.#flush();
    return this.#running;
  }

  async #flush(): Promise<void> {
    const onDurable = this.#onFlush();
    this.flushes++;
    try {
      await this.#below.flush();
      onDurable();
    } finally {
      // Before anybody who waits goes on: `sync` after this begins another one.
      this.#running = null;
    }
  }
}
