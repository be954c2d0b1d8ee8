/**
 * What a front-end says to a back-end around a migration: the dirty log, the state of the device,
 * postcopy, and the announcement of a guest that arrived. Sections "Migration", "Migrating
 * back-end state", "Post-copy".
 */
import { VringError } from '../base/errors.ts';
import { type Fd, setNonblocking, socketPair } from '../sys/index.ts';
import { DEVICE_STATE_LOAD, DEVICE_STATE_SAVE } from '../wire/vhost-user-parse.ts';
import { DeviceStateTransfer, LogDescription, U64Payload } from '../wire/vhost-user.ts';
import { closeFds } from './connection.ts';
import type { FrontendCalls } from './frontend-calls.ts';
import { CALL_TIMEOUT_MS, MAX_DEVICE_STATE_BYTES } from './limits.ts';
import { REQUEST } from './message-table.ts';
import { readToEnd, writeAll } from './state-pipe.ts';

/** Reply of SET_DEVICE_STATE_FD: bits 0-7 error, bit 8: the front-end's fd is used. */
const STATE_ERROR_MASK = 0xffn;
const STATE_NO_FD = 0x100n;

/** "VHOST_USER_TRANSFER_STATE_PHASE_STOPPED": the only phase that exists. */
const PHASE_STOPPED = 0;

export class FrontendMigration {
  readonly #calls: FrontendCalls;

  constructor(calls: FrontendCalls) {
    this.#calls = calls;
  }

  /**
   * SET_LOG_BASE: shares the bitmap of dirty pages; bit n is guest page n of 4096 bytes. Marks are
   * made while VHOST_F_LOG_ALL (bit 26) is among the acked features. The fd stays the caller's.
   * @throws VringError ERR_VRING_NOT_NEGOTIATED (LOG_SHMFD).
   */
  async setLogBase(fd: number, sizeBytes: number, fdOffset = 0): Promise<void> {
    const entry = REQUEST.SET_LOG_BASE;
    const log = { sizeBytes: BigInt(sizeBytes), fdOffset: BigInt(fdOffset) };
    const reply = await this.#calls.askRaw(entry, LogDescription.encode(log), [fd]);
    closeFds(reply.fds);
    const { length } = reply.payload;
    // The specification demands a reply and gives it no payload; libvhost-user and DPDK send a u64.
    if (length === 0) return;
    if (length !== U64Payload.size) {
      const problem = `${length} bytes of reply, expected 0 or 8`;
      throw this.#calls.channel.failReply(entry.id, 'size', problem);
    }
  }

  /** SET_LOG_FD: an eventfd that the back-end signals when it logged. The fd stays the caller's. */
  setLogFd(fd: number): Promise<void> {
    return this.#calls.tell(REQUEST.SET_LOG_FD, undefined, [fd]);
  }

  /** SEND_RARP: the back-end announces the guest's MAC address (six bytes) where it is now. */
  async sendRarp(mac: Uint8Array): Promise<void> {
    const payload = new Uint8Array(U64Payload.size);
    payload.set(mac.subarray(0, 6));
    await this.#calls.tell(REQUEST.SEND_RARP, payload);
  }

  /**
   * The state of the device, as the device defines it. All vrings must be stopped, and they stay
   * so until it is loaded somewhere, or they are started again here.
   * @throws VringError ERR_VRING_NOT_NEGOTIATED (DEVICE_STATE), ERR_VRING_DEVICE_STATE: the device
   *   failed, stalled, or has more than MAX_DEVICE_STATE_BYTES.
   */
  async saveState(): Promise<Uint8Array> {
    using end = await this.#beginTransfer(DEVICE_STATE_SAVE);
    const state = await readToEnd(end, MAX_DEVICE_STATE_BYTES, CALL_TIMEOUT_MS);
    await this.#checkState('save');
    return state;
  }

  /** Puts a saved state into this device, before its vrings start. @throws as `saveState`. */
  async loadState(state: Uint8Array): Promise<void> {
    using end = await this.#beginTransfer(DEVICE_STATE_LOAD);
    await writeAll(end, state, CALL_TIMEOUT_MS);
    end.close(); // the end of the file is the end of the state
    await this.#checkState('load');
  }

  /**
   * POSTCOPY_ADVISE: postcopy may follow. Returns the userfault descriptor of the back-end's
   * memory, which is the caller's: page faults are read from it and resolved through it.
   * @throws VringError ERR_VRING_NOT_NEGOTIATED (PAGEFAULT); ProtocolError ERR_VRING_REPLY.
   */
  async advisePostcopy(): Promise<Fd> {
    const { fd } = await this.#calls.ask(REQUEST.POSTCOPY_ADVISE);
    if (fd !== null) return fd;
    throw this.#calls.channel.failReply(REQUEST.POSTCOPY_ADVISE.id, 'fds', '0 came, expected 1');
  }

  /** POSTCOPY_LISTEN: from here on memory is shared by `memory.setTableForPostcopy`. */
  listenPostcopy(): Promise<void> {
    return this.#calls.tell(REQUEST.POSTCOPY_LISTEN);
  }

  /** POSTCOPY_END: every page is there. The caller closes the userfault descriptor afterwards. */
  async endPostcopy(): Promise<void> {
    const value = await this.#calls.askU64(REQUEST.POSTCOPY_END);
    this.#calls.channel.checkAck(REQUEST.POSTCOPY_END.id, U64Payload.encode({ value }));
  }

  /** Our end of the transfer; the back-end may have one of its own choice instead of ours. */
  async #beginTransfer(direction: number): Promise<Fd> {
    const [ours, theirs] = socketPair(); // used as a pipe: one direction, ended by close
    try {
      setNonblocking(theirs.number, false); // as a pipe would be; a back-end may just read it
      const payload = DeviceStateTransfer.encode({ direction, phase: PHASE_STOPPED });
      const request = REQUEST.SET_DEVICE_STATE_FD;
      const { value, fd } = await this.#calls.ask(request, payload, [theirs.number]);
      const error = value & STATE_ERROR_MASK;
      if (error !== 0n) {
        fd?.close();
        throw stateError(`${this.#calls.description} refused the transfer (${error})`);
      }
      if (fd === null) return ours;
      if ((value & STATE_NO_FD) === 0n) {
        ours.close();
        return fd;
      }
      fd.close();
      throw this.#calls.channel.failReply(request.id, 'fds', '1 came although bit 8 is set');
    } catch (error) {
      ours.close();
      throw error;
    } finally {
      theirs.close();
    }
  }

  async #checkState(what: string): Promise<void> {
    const result = await this.#calls.askU64(REQUEST.CHECK_DEVICE_STATE);
    if (result === 0n) return;
    const text = `${this.#calls.description} could not ${what} its state (${result})`;
    throw stateError(text);
  }
}

function stateError(text: string): VringError {
  return new VringError('ERR_VRING_DEVICE_STATE', text);
}
