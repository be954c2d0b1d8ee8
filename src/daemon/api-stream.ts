/** Answers that go on: events as they happen, and captures. */
import type { Capture, SwitchControl } from './switch-control.ts';
import type { SwitchEvent } from './switch-types.ts';

/** Events that wait for a slow reader; more are counted and dropped. */
const MAX_WAITING_EVENTS = 1000;

/** Streams that are open: a daemon that ends can end them, and they have a limit. */
export class OpenStreams {
  readonly #closers = new Set<() => void>();
  readonly #limit: number;

  constructor(limit: number) {
    this.#limit = limit;
  }

  get full(): boolean {
    return this.#closers.size >= this.#limit;
  }

  get count(): number {
    return this.#closers.size;
  }

  add(close: () => void): void {
    this.#closers.add(close);
  }

  delete(close: () => void): void {
    this.#closers.delete(close);
  }

  closeAll(): void {
    for (const close of this.#closers) close();
    this.#closers.clear();
  }
}

type EventListener = (event: SwitchEvent) => void;

/** One listener on the switch for any number of readers. */
export class EventRelay {
  readonly #listeners = new Set<EventListener>();

  constructor(control: SwitchControl) {
    control.on('event', (event) => {
      for (const listener of this.#listeners) listener(event);
    });
  }

  add(listener: EventListener): void {
    this.#listeners.add(listener);
  }

  delete(listener: EventListener): void {
    this.#listeners.delete(listener);
  }
}

export type EventFormat = 'sse' | 'lines';

/** Events from now on; `past` comes first. A reader that does not read loses events, not memory. */
export function eventStream(
  relay: EventRelay,
  past: readonly SwitchEvent[],
  format: EventFormat,
  open: OpenStreams,
): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder();
  const encode = (event: SwitchEvent) => {
    const json = JSON.stringify(event);
    return encoder.encode(
      format === 'sse' ? `event: ${event.kind}\ndata: ${json}\n\n` : `${json}\n`,
    );
  };
  let lost = 0;
  let listener: EventListener = () => {};
  let close = (): void => {};
  return new ReadableStream<Uint8Array>(
    {
      start(controller) {
        listener = (event) => {
          if ((controller.desiredSize ?? 0) <= 0) lost++;
          else controller.enqueue(encode(event));
        };
        close = () => {
          relay.delete(listener);
          open.delete(close);
          controller.close();
        };
        open.add(close);
        // An SSE comment: the headers go out at once, and the reader knows that it listens.
        if (format === 'sse') controller.enqueue(encoder.encode(': events of the switch\n\n'));
        for (const event of past) controller.enqueue(encode(event));
        relay.add(listener);
      },
      pull(controller) {
        if (lost === 0) return;
        const message = `${lost} events were lost: the reader is too slow`;
        lost = 0;
        const at = new Date().toISOString();
        controller.enqueue(encode({ at, kind: 'events-lost', port: null, message }));
      },
      cancel() {
        relay.delete(listener);
        open.delete(close);
      },
    },
    { highWaterMark: MAX_WAITING_EVENTS },
  );
}

/** A capture as a body: read as fast as the client reads, closed when it goes. */
export function captureStream(capture: Capture, open: OpenStreams): ReadableStream<Uint8Array> {
  const chunks = capture[Symbol.asyncIterator]();
  const close = (): void => {
    open.delete(close);
    capture.close();
  };
  open.add(close);
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        const next = await chunks.next();
        if (!next.done) return controller.enqueue(next.value);
        close();
        controller.close();
      },
      async cancel() {
        close();
        await chunks.return?.();
      },
    },
    { highWaterMark: 1 },
  );
}
