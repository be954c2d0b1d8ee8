/**
 * Cuts a stream into messages, for as long as it is one: a header of another version or with an
 * impossible size ends the framing, and from there on bytes are handed out as they come.
 */
import { type Fd, ReceivedFd } from '../sys/index.ts';
import {
  VHOST_USER_VERSION,
  VHOST_USER_VERSION_MASK,
  VhostUserHeader,
} from '../wire/vhost-user.ts';
import { MAX_RELAYED_FDS, MAX_RELAYED_PAYLOAD_BYTES, RAW_CHUNK_BYTES } from './limits.ts';
import type { RelaySocket } from './relay-socket.ts';

/** An fd and the byte that it came with. Replaceable: whoever replaces it owns the old one. */
export type PlacedFd = { readonly at: number; fd: Fd };

export type Piece = {
  readonly kind: 'message' | 'raw';
  readonly bytes: Uint8Array;
  readonly fds: PlacedFd[];
  /** Why it is raw, or what is odd about it; empty for a message like others. */
  readonly problem: string;
};

export class MessageReader {
  readonly #socket: RelaySocket;
  #raw = ''; // why there is no framing any more

  constructor(socket: RelaySocket) {
    this.#socket = socket;
  }

  /** The next piece, its fds the caller's; null at the end. */
  async next(): Promise<Piece | null> {
    if (this.#raw !== '') return this.#chunk();
    const header = new Uint8Array(VhostUserHeader.size);
    const fds: PlacedFd[] = [];
    const problems: string[] = [];
    let filled = await this.#fill(header, 0, fds, problems);
    if (filled === 0) return null;
    if (filled < header.length) return this.#endInside(header.subarray(0, filled), fds);
    const { flags, size } = VhostUserHeader.decode(header);
    const version = flags & VHOST_USER_VERSION_MASK;
    if (version !== VHOST_USER_VERSION) {
      return this.#endFraming(header, fds, `version ${version}, expected ${VHOST_USER_VERSION}`);
    }
    if (size > MAX_RELAYED_PAYLOAD_BYTES) {
      const most = `expected at most ${MAX_RELAYED_PAYLOAD_BYTES}`;
      return this.#endFraming(header, fds, `${size} bytes of payload, ${most}`);
    }
    const bytes = new Uint8Array(header.length + size);
    bytes.set(header);
    filled = await this.#fill(bytes, header.length, fds, problems);
    if (filled < bytes.length) return this.#endInside(bytes.subarray(0, filled), fds);
    return { kind: 'message', bytes, fds, problem: problems.join('; ') };
  }

  /** Returns how much of `bytes` is filled: less than all at the end of the stream only. */
  async #fill(
    bytes: Uint8Array,
    from: number,
    fds: PlacedFd[],
    problems: string[],
  ): Promise<number> {
    let filled = from;
    while (filled < bytes.length) {
      const got = await this.#socket.receive(bytes.subarray(filled), MAX_RELAYED_FDS);
      for (const number of got.fds) fds.push(place(filled, number));
      if (got.fdsTruncated) problems.push('fds were lost: this process has too many open');
      if (got.fds.length > 0 && filled > 0) {
        problems.push(`${got.fds.length} fds came with byte ${filled}, expected with the first`);
      }
      if (got.bytes === 0) break;
      filled += got.bytes;
    }
    return filled;
  }

  async #chunk(): Promise<Piece | null> {
    const bytes = new Uint8Array(RAW_CHUNK_BYTES);
    const got = await this.#socket.receive(bytes, MAX_RELAYED_FDS);
    const fds = got.fds.map((number) => place(0, number));
    if (got.bytes === 0) return null;
    return { kind: 'raw', bytes: bytes.subarray(0, got.bytes), fds, problem: this.#raw };
  }

  #endFraming(bytes: Uint8Array, fds: PlacedFd[], reason: string): Piece {
    this.#raw = reason;
    return { kind: 'raw', bytes, fds, problem: reason };
  }

  #endInside(bytes: Uint8Array, fds: PlacedFd[]): Piece {
    return this.#endFraming(bytes, fds, 'the stream ended inside a message');
  }
}

function place(at: number, number: number): PlacedFd {
  return { at, fd: new ReceivedFd(number, 'relayed fd') };
}

/** Sends a piece as it came, each fd with its byte. */
export async function sendPiece(socket: RelaySocket, piece: Piece): Promise<boolean> {
  const starts = [...new Set([0, ...piece.fds.map(({ at }) => at)])].toSorted((a, b) => a - b);
  for (const [i, start] of starts.entries()) {
    const end = starts[i + 1] ?? piece.bytes.length;
    const fds = piece.fds.filter(({ at }) => at === start).map(({ fd }) => fd.number);
    if (!(await socket.send(piece.bytes.subarray(start, end), fds))) return false;
  }
  return true;
}

export function closePiece(piece: Piece): void {
  for (const { fd } of piece.fds.splice(0)) fd.close();
}
