/** Readiness of a descriptor as a callback in this thread's event loop. */
import { check, sysError } from './errors.ts';
import { native } from './native.ts';

const READABLE = 1;
const WRITABLE = 2;

export type PollEvents = { read?: boolean; write?: boolean };

export type Poll = {
  /** Changes what is waited for; neither of both pauses, and then the loop is not kept alive. */
  update(events: PollEvents): void;
  /** Idempotent. To be called before the fd is closed. */
  close(): void;
};

/**
 * Calls `onReady` whenever the fd can be read or written (level-triggered), and keeps the event
 * loop alive until `close()`. An error or hang-up counts as both: the next call on the fd says
 * which; after an error nothing more is reported until `update`. One poll per fd and thread.
 * @throws SysError EEXIST, EPERM (a regular file), EBADF.
 * @syscalls epoll_ctl epoll_wait
 */
export function pollFd(
  fd: number,
  events: PollEvents,
  onReady: (readable: boolean, writable: boolean) => void,
): Poll {
  const started = native.pollStart(fd, maskOf(events) || READABLE, (ready) => {
    onReady((ready & READABLE) !== 0, (ready & WRITABLE) !== 0);
  });
  if (typeof started === 'number') throw sysError('uv_poll_start', started, `fd ${fd}`);
  let poll: object | null = started;
  const update = (wanted: PollEvents): void => {
    if (poll === null) return;
    check('uv_poll_start', native.pollUpdate(poll, maskOf(wanted)), () => `fd ${fd}`);
  };
  if (maskOf(events) === 0) update(events);
  return {
    update,
    close() {
      if (poll !== null) native.pollStop(poll);
      poll = null;
    },
  };
}

function maskOf(events: PollEvents): number {
  return (events.read === true ? READABLE : 0) | (events.write === true ? WRITABLE : 0);
}
