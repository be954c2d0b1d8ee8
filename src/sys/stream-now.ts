/** Reads and writes that never wait, for pipes and sockets that a stranger has, too. */
import { EAGAIN, EINTR, sysError } from './errors.ts';
import { native } from './native.ts';

/**
 * Reads what is there: how many bytes, 0 at the end of the stream, null when there is nothing now.
 * Does not wait, also where whoever shares the open file has cleared its O_NONBLOCK.
 * @throws SysError.
 * @syscalls recvfrom splice pipe2
 */
export function readNow(fd: number, into: Uint8Array): number | null {
  return countOf('read', fd, native.readNow(fd, into));
}

/**
 * Writes as much as there is room for: how many bytes, null for none. As `readNow`.
 * @throws SysError EPIPE: nobody will read it.
 * @syscalls sendto splice pipe2
 */
export function writeNow(fd: number, from: Uint8Array): number | null {
  return countOf('write', fd, native.writeNow(fd, from));
}

function countOf(call: string, fd: number, result: number): number | null {
  if (result >= 0) return result;
  if (result === -EAGAIN || result === -EINTR) return null;
  throw sysError(call, result, `fd ${fd}`);
}
