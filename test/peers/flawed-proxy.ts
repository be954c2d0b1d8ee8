/**
 * Stands between a front-end and a back-end and makes the back-end look flawed in one way: a
 * request is swallowed, an answer changed. For showing that a conformance check can fail.
 */
import { rmSync } from 'node:fs';
import { acceptUnix, connectUnix, type Fd, listenUnix } from '../../src/sys/index.ts';
import {
  closeAll,
  encodeMessage,
  type RawMessage,
  RawSocket,
} from '../../src/conformance/raw-socket.ts';

export type Flaw = {
  /** Answers a request in place of the back-end; `true`: it never sees it, and an ack is 0. */
  readonly request?: (message: RawMessage) => Uint8Array | true | null;
  /** What becomes of an answer; null: nothing is changed. */
  readonly reply?: (message: RawMessage) => readonly Sent[] | null;
  /** After this request the back-end never accepts again. */
  readonly diesOf?: number;
};

type Sent = { readonly request: number; readonly flags: number; readonly payload: Uint8Array };

const NEED_REPLY = 8;
const REPLY = 5;

export class FlawedProxy {
  readonly path: string;
  flaw: Flaw = {};
  readonly #upstream: string;
  readonly #listener: Fd;
  #closed = false;
  #dead = false;
  readonly #done: Promise<void>;

  constructor(path: string, upstream: string) {
    this.path = path;
    this.#upstream = upstream;
    this.#listener = listenUnix(path);
    this.#done = this.#accept();
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#done;
    this.#listener.close();
    rmSync(this.path, { force: true });
  }

  async #accept(): Promise<void> {
    const sessions = new Set<Promise<void>>();
    while (!this.#closed) {
      const socket = this.#dead ? null : acceptUnix(this.#listener.number);
      if (socket === null) await new Promise((resolve) => setTimeout(resolve, 2));
      else
        sessions.add(
          this.#serve(new RawSocket(socket), new RawSocket(connectUnix(this.#upstream))),
        );
    }
    await Promise.all(sessions);
  }

  async #serve(front: RawSocket, back: RawSocket): Promise<void> {
    const answers = this.#answers(front, back);
    for (;;) {
      const got = await front.receive(20);
      if (got === 'timeout' && !this.#closed) continue;
      if (typeof got === 'string') break;
      await this.#request(front, back, got);
      if (got.request === this.flaw.diesOf) {
        this.#dead = true;
        break;
      }
    }
    back.close();
    front.close();
    await answers;
  }

  async #request(front: RawSocket, back: RawSocket, message: RawMessage): Promise<void> {
    const { request, flags, payload, fds } = message;
    const own = this.flaw.request?.(message) ?? null;
    if (own === null) {
      const numbers = fds.map((fd) => fd.number);
      await back.send(encodeMessage(request, flags, payload), numbers);
    } else {
      const answer = own === true ? new Uint8Array(8) : own;
      if (own !== true || flags & NEED_REPLY) {
        await front.send(encodeMessage(request, REPLY, answer));
      }
    }
    closeAll(fds);
  }

  async #answers(front: RawSocket, back: RawSocket): Promise<void> {
    for (;;) {
      const got = await back.receive(20);
      if (got === 'timeout' && !back.closed) continue;
      if (typeof got === 'string') break;
      const sent = this.flaw.reply?.(got) ?? [got];
      for (const { request, flags, payload } of sent) {
        const numbers = got.fds.map((fd) => fd.number);
        await front.send(encodeMessage(request, flags, payload), numbers);
      }
      closeAll(got.fds);
    }
    front.close();
  }
}
