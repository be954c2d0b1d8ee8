/** The front-end's end of the backend channel, which answers as it likes, or not at all. */
import { type Fd, sendWithFds } from '../../sys/index.ts';
import { VHOST_USER_NEED_REPLY_MASK } from '../../wire/vhost-user.ts';
import { closeFds, type Message, MessageConnection } from '../connection.ts';
import { BACK_END_MESSAGES, backEndRequestName } from '../message-table.ts';
import type { FuzzFds } from './fuzz-fds.ts';
import { mutate } from './mutate.ts';
import { INTERESTING, type Random } from './random.ts';
import { encodeMessage, u64 } from './raw-peer.ts';

/** How a channel answers, for as long as it is open. */
const MANNERS = ['grant', 'grant', 'refuse', 'wrong', 'silent', 'unasked', 'close'] as const;

const REPLY = 5;

export class HostileChannel {
  readonly #socket: Fd;
  readonly #connection: MessageConnection;
  readonly #random: Random;
  readonly #zoo: FuzzFds;
  readonly #manner: (typeof MANNERS)[number];
  readonly #done: Promise<void>;

  /** Takes the socket over. */
  constructor(socket: Fd, random: Random, zoo: FuzzFds) {
    this.#socket = socket;
    this.#random = random;
    this.#zoo = zoo;
    this.#manner = random.pick(MANNERS);
    const nameOf = backEndRequestName;
    this.#connection = new MessageConnection(socket, { expectReplies: false, nameOf });
    if (this.#manner === 'unasked') this.#send(random.next(12), u64(0));
    this.#done = this.#run();
  }

  async close(): Promise<void> {
    this.#connection.close();
    await this.#done;
  }

  async #run(): Promise<void> {
    for (;;) {
      const message = await this.#connection.receive();
      if (message === null) return;
      closeFds(message.fds);
      if (this.#manner === 'close') this.#connection.close();
      else if (this.#manner !== 'silent') this.#answer(message);
    }
  }

  #answer({ request, flags }: Message): void {
    const isOwn = BACK_END_MESSAGES.get(request)?.reply === 'payload';
    const isAsked = isOwn || (flags & VHOST_USER_NEED_REPLY_MASK) !== 0;
    const isWrong = this.#manner === 'wrong' && this.#random.once(2);
    if (!isAsked && !isWrong) return;
    const refusal = this.#random.pick(INTERESTING.slice(1));
    this.#send(request, u64(this.#manner === 'refuse' ? refusal : 0n), isWrong);
  }

  #send(request: number, payload: Uint8Array, isWrong = false): void {
    const plain = { bytes: encodeMessage(request, payload, REPLY), fds: [] };
    const { bytes, fds } = isWrong ? mutate(this.#random, plain, this.#zoo) : plain;
    try {
      sendWithFds(this.#socket.number, bytes, fds);
    } catch {
      this.#connection.close(); // the session did first
    }
  }
}
