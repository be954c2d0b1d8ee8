/**
 * One socket between the two sides: two pumps, one for each direction, that take a piece, write
 * it down, let somebody replace its fds, and hand it on before they take the next. So at most one
 * message of each direction is in this process, and a side that does not read stops the other.
 *
 * When either side ends, what came from it before has been handed on; then both sockets close.
 */
import { messageOf } from '../base/errors.ts';
import type { RelaySocket } from './relay-socket.ts';
import { decodeMessage, type DecodedMessage, hexOf } from './decode.ts';
import { describeFd } from './fd-description.ts';
import { MAX_UNANSWERED } from './limits.ts';
import {
  closePiece,
  MessageReader,
  type Piece,
  type PlacedFd,
  sendPiece,
} from './message-reader.ts';
import type { ChannelName, Side } from './recorded-event.ts';
import type { Recording } from './recording.ts';

export type ChannelOptions = {
  readonly channel: ChannelName;
  readonly session: number;
  readonly recording: Recording;
  readonly sides: Readonly<Record<Side, RelaySocket>>;
  /** Sees each message before it is handed on, and may replace its fds. */
  readonly intercept?: (from: Side, message: DecodedMessage, piece: Piece, seq: number) => void;
};

export type ChannelEnd = { readonly by: Side | 'recorder'; readonly reason: string };

type Unanswered = { readonly id: number; readonly seq: number };

export class ChannelRecorder {
  /** Resolves when both sockets are closed. */
  readonly closed: Promise<ChannelEnd>;
  readonly #options: ChannelOptions;
  /** Requests of either side that a reply may belong to, oldest first. */
  readonly #unanswered: Record<Side, Unanswered[]> = { 'front-end': [], 'back-end': [] };
  readonly #latest: Record<Side, Map<number, number>> = {
    'front-end': new Map(),
    'back-end': new Map(),
  };
  #end: ChannelEnd | null = null;

  /** Takes the sockets over. */
  constructor(options: ChannelOptions) {
    this.#options = options;
    const pumps = [this.#pump('front-end', 'back-end'), this.#pump('back-end', 'front-end')];
    this.closed = Promise.all(pumps).then(() => this.#end!);
  }

  /** Idempotent. */
  close(): void {
    this.#finish({ by: 'recorder', reason: 'the recorder was ended' });
  }

  #finish(end: ChannelEnd): void {
    this.#end ??= end;
    const { sides } = this.#options;
    sides['front-end'].close();
    sides['back-end'].close();
  }

  async #pump(from: Side, to: Side): Promise<void> {
    const { sides, recording } = this.#options;
    const reader = new MessageReader(sides[from]);
    let end: ChannelEnd = { by: from, reason: `the ${from} closed` };
    try {
      for (;;) {
        const piece = await reader.next();
        if (piece === null) break;
        try {
          this.#record(from, piece);
          await recording.drained();
          if (!(await sendPiece(sides[to], piece))) {
            end = { by: to, reason: `the ${to} closed` };
            break;
          }
        } finally {
          closePiece(piece);
        }
      }
    } catch (error) {
      end = { by: 'recorder', reason: messageOf(error) };
    }
    this.#finish(end);
  }

  #record(from: Side, piece: Piece): void {
    const { channel, recording, session, intercept } = this.#options;
    const fds = piece.fds.map(({ fd }) => describeFd(fd.number));
    const hex = hexOf(piece.bytes);
    if (piece.kind === 'raw') {
      recording.put(session, { event: 'raw', channel, from, reason: piece.problem, hex, fds });
      return;
    }
    const message = decodeMessage(channel, piece.bytes);
    const { id, name, kind, flags, payload } = message;
    const problem = [message.problem, fdProblem(message, piece.fds), piece.problem]
      .filter(Boolean)
      .join('; ');
    const seq = recording.put(session, {
      event: 'message',
      channel,
      from,
      kind,
      id,
      name,
      flags,
      size: piece.bytes.length - 12,
      payload,
      ...(problem === '' ? {} : { problem }),
      hex,
      fds,
      ...(kind === 'reply' ? { replyTo: this.#matchReply(from, id) } : {}),
    });
    if (kind === 'request') this.#remember(from, message, seq);
    intercept?.(from, message, piece, seq);
  }

  #remember(from: Side, message: DecodedMessage, seq: number): void {
    const { id, entry, flags } = message;
    const latest = this.#latest[from];
    if (latest.has(id) || latest.size < MAX_UNANSWERED) latest.set(id, seq);
    const isAnswered = entry !== null && entry.reply !== 'ack';
    if (!isAnswered && !flags.needReply) return;
    const list = this.#unanswered[from];
    list.push({ id, seq });
    if (list.length > MAX_UNANSWERED) list.shift();
  }

  /** The oldest request of that id which waits, else the latest: postcopy answers unasked. */
  #matchReply(from: Side, id: number): number | null {
    const asker: Side = from === 'front-end' ? 'back-end' : 'front-end';
    const list = this.#unanswered[asker];
    const at = list.findIndex((each) => each.id === id);
    if (at >= 0) return list.splice(at, 1)[0]!.seq;
    return this.#latest[asker].get(id) ?? null;
  }
}

/** How many fds came against the table's range. */
function fdProblem({ entry, kind }: DecodedMessage, fds: readonly PlacedFd[]): string | null {
  if (entry === null) return null;
  const [min, max] = kind === 'request' ? entry.fds : entry.replyFds;
  if (fds.length >= min && fds.length <= max) return null;
  return `${fds.length} fds, expected ${min === max ? min : `${min} to ${max}`}`;
}
