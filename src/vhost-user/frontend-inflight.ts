/**
 * The inflight region: the back-end makes it, the front-end keeps it and hands it to the next
 * back-end, which finds in it what its predecessor had begun. Section "Inflight I/O tracking".
 */
import type { Fd } from '../sys/index.ts';
import { InflightDescription } from '../wire/vhost-user.ts';
import type { FrontendCalls } from './frontend-calls.ts';
import { REQUEST } from './message-table.ts';

/** Owned by whoever asked for it; to be closed. */
export type InflightRegion = {
  readonly fd: Fd;
  readonly mapBytes: bigint;
  readonly fdOffset: bigint;
  readonly queueCount: number;
  readonly queueSize: number;
};

export class FrontendInflight {
  readonly #calls: FrontendCalls;

  constructor(calls: FrontendCalls) {
    this.#calls = calls;
  }

  /**
   * GET_INFLIGHT_FD: a fresh region for `queueCount` vrings of up to `queueSize` descriptors.
   * After SET_FEATURES, because its layout is that of the acked ring format.
   * @throws VringError ERR_VRING_NOT_NEGOTIATED (INFLIGHT_SHMFD); ProtocolError ERR_VRING_REPLY.
   */
  async create(queueCount: number, queueSize: number): Promise<InflightRegion> {
    const payload = encode({ mapBytes: 0n, fdOffset: 0n, queueCount, queueSize });
    const { value, fd } = await this.#calls.ask(REQUEST.GET_INFLIGHT_FD, payload);
    if (fd !== null && value.mapBytes > 0n) {
      return { fd, mapBytes: value.mapBytes, fdOffset: value.fdOffset, queueCount, queueSize };
    }
    fd?.close();
    const problem = 'an empty region';
    throw this.#calls.channel.failReply(REQUEST.GET_INFLIGHT_FD.id, 'mmap size', problem);
  }

  /** SET_INFLIGHT_FD, before the vrings start. The fd stays the caller's. */
  async set(region: InflightRegion): Promise<void> {
    await this.#calls.tell(REQUEST.SET_INFLIGHT_FD, encode(region), [region.fd.number]);
  }
}

function encode(region: Omit<InflightRegion, 'fd'>): Uint8Array {
  const { mapBytes, fdOffset, queueCount, queueSize } = region;
  return InflightDescription.encode({ mapBytes, fdOffset, queueCount, queueSize, padding: 0 });
}
