/** One front-end and its back-end: the control socket, the backend channels, the rings. */
import { messageOf } from '../base/errors.ts';
import { type Fd, fdTarget, socketPair } from '../sys/index.ts';
import { REQUEST } from '../vhost-user/index.ts';
import { type ChannelEnd, ChannelRecorder } from './channel-recorder.ts';
import type { DecodedMessage } from './decode.ts';
import { MAX_BACKEND_CHANNELS } from './limits.ts';
import type { Piece } from './message-reader.ts';
import type { Side } from './recorded-event.ts';
import type { Recording } from './recording.ts';
import { RelaySocket } from './relay-socket.ts';
import { RingRecorder } from './ring-recorder.ts';

export type SessionRecorderOptions = {
  readonly number: number;
  readonly recording: Recording;
  readonly rings: boolean;
  readonly sockets: Readonly<Record<Side, Fd>>;
};

export class SessionRecorder {
  /** Resolves when nothing of the session is open any more. */
  readonly closed: Promise<ChannelEnd>;
  readonly #options: SessionRecorderOptions;
  readonly #control: ChannelRecorder;
  readonly #rings: RingRecorder | null;
  readonly #backendChannels = new Set<ChannelRecorder>();

  /** Takes the sockets over and starts at once. */
  constructor(options: SessionRecorderOptions) {
    this.#options = options;
    const { recording, number, sockets } = options;
    recording.put(number, { event: 'connected' });
    this.#rings = !options.rings
      ? null
      : new RingRecorder({
          put: (event) => recording.putRingEvent(number, event),
          note: (text) => recording.put(number, { event: 'note', text }),
        });
    this.#control = new ChannelRecorder({
      channel: 'control',
      session: number,
      recording,
      sides: {
        'front-end': new RelaySocket(sockets['front-end']),
        'back-end': new RelaySocket(sockets['back-end']),
      },
      intercept: (from, message, piece) => this.#intercept(from, message, piece),
    });
    this.closed = this.#run();
  }

  /** Idempotent. Closes both sides. */
  close(): Promise<ChannelEnd> {
    this.#control.close();
    return this.closed;
  }

  async #run(): Promise<ChannelEnd> {
    const end = await this.#control.closed;
    for (const channel of this.#backendChannels) channel.close();
    await Promise.all([...this.#backendChannels].map(({ closed }) => closed));
    this.#rings?.close();
    const { recording, number } = this.#options;
    const { lostRingEvents } = recording;
    recording.put(number, { event: 'closed', ...end, lostRingEvents });
    return end;
  }

  #intercept(from: Side, { id, kind }: DecodedMessage, piece: Piece): void {
    if (from !== 'front-end' || kind !== 'request') return;
    if (id === REQUEST.SET_BACKEND_REQ_FD.id) this.#openBackendChannel(piece);
    else this.#rings?.request(id, piece);
  }

  /** Hands one end of a socket pair on, and stands between its other end and the front-end's. */
  #openBackendChannel(piece: Piece): void {
    const placed = piece.fds[0];
    if (placed === undefined || piece.fds.length > 1) return;
    const { recording, number } = this.#options;
    const note = (text: string): void => void recording.put(number, { event: 'note', text });
    if (!fdTarget(placed.fd.number).startsWith('socket:')) {
      note('the fd of SET_BACKEND_REQ_FD is no socket: the backend channel is not recorded');
      return;
    }
    if (this.#backendChannels.size >= MAX_BACKEND_CHANNELS) {
      note(`${MAX_BACKEND_CHANNELS} backend channels are open: this one is not recorded`);
      return;
    }
    const [ours, handedOn] = socketPair();
    const theirs = placed.fd;
    placed.fd = handedOn;
    let channel: ChannelRecorder;
    const backEnd = new RelaySocket(ours);
    try {
      channel = new ChannelRecorder({
        channel: 'backend',
        session: number,
        recording,
        sides: { 'front-end': new RelaySocket(theirs), 'back-end': backEnd },
      });
    } catch (error) {
      backEnd.close();
      note(`the backend channel is closed: ${messageOf(error)}`);
      return;
    }
    this.#backendChannels.add(channel);
    void channel.closed.then((end) => {
      this.#backendChannels.delete(channel);
      recording.put(number, { event: 'channel-closed', channel: 'backend', ...end });
    });
  }
}
