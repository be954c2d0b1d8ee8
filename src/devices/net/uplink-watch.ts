import type { PlaneContext } from '../../runtime/data-plane.ts';
import type { UplinkPlane } from '../../uplinks/index.ts';

/**
 * Frames of one waking after which an uplink is not watched until it goes to sleep. Ending and
 * beginning to watch are two system calls, half a microsecond each.
 */
export const UNWATCHED_FRAMES = 64;

/**
 * The descriptors of an uplink in the worker's epoll instance: there while the uplink may sleep.
 *
 * A socket that epoll watches calls it with every frame that arrives and with every one that was
 * sent (sock_def_readable and sock_wfree in net/core/sock.c, ep_poll_callback in fs/eventpoll.c),
 * also while nobody waits: a quarter of a processor on either side of a veth, with AF_XDP. So an
 * uplink that has frames all the time is polled unwatched. Nothing is missed: epoll looks at a
 * descriptor that is added to it, and reports one that is readable already.
 */
export class UplinkWatch {
  readonly #context: PlaneContext;
  readonly #plane: UplinkPlane;
  readonly #token: number;
  #fds: readonly number[] = [];
  #frames = 0;

  constructor(context: PlaneContext, plane: UplinkPlane, token: number) {
    this.#context = context;
    this.#plane = plane;
    this.#token = token;
    this.begin();
  }

  /** Its descriptors wake the worker, or none of them does. Idempotent. @throws SysError */
  begin(): void {
    this.#frames = 0;
    if (this.#fds.length > 0) return;
    const { fds } = this.#plane;
    let watched = 0;
    try {
      for (; watched < fds.length; watched++) this.#context.watch(fds[watched], this.#token);
    } catch (error) {
      for (const fd of fds.slice(0, watched)) this.#context.unwatch(fd);
      throw error;
    }
    this.#fds = fds;
  }

  /** It had so many frames in a round, which are returned. */
  worked(frames: number): number {
    this.#frames += frames;
    if (this.#frames >= UNWATCHED_FRAMES && this.#fds.length > 0 && this.#plane.spins) this.end();
    return frames;
  }

  /** Before the descriptors are closed, too. Idempotent. */
  end(): void {
    for (const fd of this.#fds) this.#context.unwatch(fd);
    this.#fds = [];
  }
}
