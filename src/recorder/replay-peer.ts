/** The replayer's end of a session: sends recorded bytes as they are, and collects the answers. */
import { connectUnix } from '../sys/index.ts';
import { type DecodedMessage, decodeMessage, hexOf } from './decode.ts';
import { describeFd } from './fd-description.ts';
import { REPLY_TIMEOUT_MS } from './limits.ts';
import {
  closePiece,
  MessageReader,
  type Piece,
  type PlacedFd,
  sendPiece,
} from './message-reader.ts';
import type { ChannelName, FdDescription } from './recorded-event.ts';
import { RelaySocket } from './relay-socket.ts';

export type ReceivedMessage = DecodedMessage & {
  readonly bytes: Uint8Array;
  readonly hex: string;
  readonly fds: readonly FdDescription[];
};

type Waiting = { readonly id: number; readonly resolve: (got: ReceivedMessage | null) => void };

export type PeerOptions = {
  readonly channel: ChannelName;
  /** Every message; `isAwaited`: it is the answer of `answerTo`. May take fds of the piece. */
  readonly onMessage: (message: ReceivedMessage, fds: PlacedFd[], isAwaited: boolean) => void;
};

export class ReplayPeer {
  readonly #socket: RelaySocket;
  readonly #options: PeerOptions;
  readonly #done: Promise<void>;
  #waiting: Waiting | null = null;
  #ended: string | null = null;

  /** Takes the socket over. */
  constructor(socket: ReturnType<typeof connectUnix>, options: PeerOptions) {
    this.#socket = new RelaySocket(socket);
    this.#options = options;
    this.#done = this.#run();
  }

  /** Why the back-end is gone, or null. */
  get ended(): string | null {
    return this.#ended;
  }

  /** False: the back-end is gone. The fds stay the caller's. */
  async send(bytes: Uint8Array, fds: readonly PlacedFd[]): Promise<boolean> {
    const piece: Piece = { kind: 'message', bytes, fds: [...fds], problem: '' };
    if ((await sendPiece(this.#socket, piece)) && this.#ended === null) return true;
    this.#ended ??= 'it closed the connection';
    return false;
  }

  /** To be called before the request is sent. Null: no answer in time, or the end. */
  answerTo(id: number): Promise<ReceivedMessage | null> {
    return new Promise((resolve) => {
      if (this.#ended !== null) {
        resolve(null);
        return;
      }
      const timer = setTimeout(() => this.#settle(null), REPLY_TIMEOUT_MS);
      this.#waiting = {
        id,
        resolve(got) {
          clearTimeout(timer);
          resolve(got);
        },
      };
    });
  }

  async close(): Promise<void> {
    this.#socket.close();
    await this.#done;
  }

  #settle(got: ReceivedMessage | null): void {
    const waiting = this.#waiting;
    this.#waiting = null;
    waiting?.resolve(got);
  }

  async #run(): Promise<void> {
    const reader = new MessageReader(this.#socket);
    for (;;) {
      const piece = await reader.next();
      if (piece === null) break;
      try {
        if (piece.kind === 'raw') {
          this.#ended = `it sent bytes that are no message: ${piece.problem}`;
          this.#socket.close();
          break;
        }
        this.#take(piece);
      } finally {
        closePiece(piece);
      }
    }
    this.#ended ??= 'it closed the connection';
    this.#settle(null);
  }

  #take(piece: Piece): void {
    const decoded = decodeMessage(this.#options.channel, piece.bytes);
    const { bytes } = piece;
    const fds = piece.fds.map(({ fd }) => describeFd(fd.number));
    const message = { ...decoded, bytes, hex: hexOf(bytes), fds };
    const isAwaited = message.kind === 'reply' && this.#waiting?.id === message.id;
    this.#options.onMessage(message, piece.fds, isAwaited);
    if (isAwaited) this.#settle(message);
  }
}
