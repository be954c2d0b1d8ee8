/**
 * Device state (specification, "Migrating back-end state"): the front-end brings one end of a
 * pipe, the state of the device is written to it or read from it beside the messages, and
 * CHECK_DEVICE_STATE asks how that went. What the bytes mean is the target's business.
 */
import { messageOf, ProtocolError } from '../base/errors.ts';
import { type Fd, fdTarget, pollFd, readNow, writeNow } from '../sys/index.ts';
import { DEVICE_STATE_SAVE } from '../wire/vhost-user-parse.ts';
import { DEVICE_STATE_TIMEOUT_MS, MAX_DEVICE_STATE_BYTES } from './limits.ts';
import { Gathered } from './state-pipe.ts';
import type { BackendTarget } from './target.ts';

const CHUNK_BYTES = 64 * 1024;
const REQUEST = 'VHOST_USER_SET_DEVICE_STATE_FD';
const CHECK = 'VHOST_USER_CHECK_DEVICE_STATE';

type Transfer = {
  /** Resolves when the fd is closed. Null: every byte went. */
  readonly over: Promise<ProtocolError | null>;
  readonly abort: (reason: string) => void;
  /** Of a load: what came. */
  readonly received: Gathered | null;
};

export class DeviceState {
  readonly #target: BackendTarget;
  #transfer: Transfer | null = null;

  constructor(target: BackendTarget) {
    this.#target = target;
  }

  /** SET_DEVICE_STATE_FD came, CHECK_DEVICE_STATE did not. */
  get begun(): boolean {
    return this.#transfer !== null;
  }

  /**
   * Takes the fd over. A transfer that is under way is given up. The device saves its state
   * before this resolves, and is given one by `check`: both between two messages.
   * @throws ProtocolError ERR_VRING_MESSAGE_FDS: neither pipe nor socket;
   *   ERR_VRING_DEVICE_STATE: the device cannot, or it is too large.
   */
  async begin(direction: number, fds: Fd[]): Promise<void> {
    this.#transfer?.abort('another transfer was begun');
    this.#transfer = null;
    const what = fdTarget(fds[0]!.number);
    if (!/^(pipe|socket):/.test(what)) {
      const problem = `the fd is ${what}, expected one end of a pipe`;
      throw new ProtocolError('ERR_VRING_MESSAGE_FDS', REQUEST, 'fds', problem);
    }
    const state = direction === DEVICE_STATE_SAVE ? await this.#save() : null;
    const fd = fds.shift()!;
    this.#transfer = state === null ? receive(fd) : send(fd, state);
  }

  async #save(): Promise<Uint8Array> {
    let state: Uint8Array;
    try {
      state = await this.#target.saveState!();
    } catch (cause) {
      throw failed(REQUEST, `the device did not save its state: ${messageOf(cause)}`, cause);
    }
    if (state.length <= MAX_DEVICE_STATE_BYTES) return state;
    throw failed(REQUEST, `${state.length} bytes, at most ${MAX_DEVICE_STATE_BYTES} are moved`);
  }

  /** Waits for the end of the transfer, which is over then. Null: it worked. */
  async check(): Promise<ProtocolError | null> {
    const transfer = this.#transfer!;
    const timer = setTimeout(() => {
      transfer.abort(`the transfer did not end in ${DEVICE_STATE_TIMEOUT_MS} ms`);
    }, DEVICE_STATE_TIMEOUT_MS);
    const error = await transfer.over;
    clearTimeout(timer);
    this.#transfer = null;
    if (error !== null || transfer.received === null) return error;
    try {
      await this.#target.loadState!(transfer.received.bytes);
      return null;
    } catch (cause) {
      return failed(CHECK, `the device does not take the state over: ${messageOf(cause)}`, cause);
    }
  }

  /** The session is over. Idempotent. */
  close(): void {
    this.#transfer?.abort('the session ended');
    this.#transfer = null;
  }
}

function failed(request: string, problem: string, cause?: unknown): ProtocolError {
  return new ProtocolError('ERR_VRING_DEVICE_STATE', request, 'state', problem, { cause });
}

/**
 * Runs `step` whenever the fd is ready until it says that it is done; closes the fd then.
 * `step` returns false while there is more to do. It never waits: the front-end has the other end,
 * and often this one, too.
 */
function pump(
  fd: Fd,
  events: { read?: boolean; write?: boolean },
  step: () => boolean,
): { readonly over: Promise<ProtocolError | null>; readonly abort: (reason: string) => void } {
  let finish: (error: ProtocolError | null) => void = () => undefined;
  const over = new Promise<ProtocolError | null>((resolve) => {
    finish = (error) => {
      poll.close();
      fd.close();
      finish = () => undefined;
      resolve(error);
    };
  });
  const poll = pollFd(fd.number, events, () => {
    try {
      if (step()) finish(null);
    } catch (error) {
      finish(error instanceof ProtocolError ? error : failed(CHECK, messageOf(error), error));
    }
  });
  return { over, abort: (reason) => finish(failed(CHECK, reason)) };
}

/** The state is written as the other side reads, then the fd is closed: that is its end. */
function send(fd: Fd, state: Uint8Array): Transfer {
  let at = 0;
  const pumping = pump(fd, { write: true }, () => {
    if (at < state.length) {
      at += writeNow(fd.number, state.subarray(at, at + CHUNK_BYTES)) ?? 0;
    }
    return at === state.length;
  });
  return { ...pumping, received: null };
}

/** Everything up to the end of the stream. */
function receive(fd: Fd): Transfer {
  const received = new Gathered();
  const pumping = pump(fd, { read: true }, () => {
    const got = readNow(fd.number, received.room());
    if (got === 0) return true;
    if (got === null) return false;
    received.took(got);
    if (received.length > MAX_DEVICE_STATE_BYTES) {
      throw failed(CHECK, `more than ${MAX_DEVICE_STATE_BYTES} bytes came, more are not taken`);
    }
    return false;
  });
  return { ...pumping, received };
}
