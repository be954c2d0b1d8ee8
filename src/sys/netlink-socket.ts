/**
 * A netlink socket whose calls run in Node's thread pool: what a request makes the kernel do may
 * take long, and may wait for an answer of this very process.
 */
import { read, write } from 'node:fs';
import { promisify } from 'node:util';
import { NETLINK_CAP_ACK, NETLINK_EXT_ACK, SOL_NETLINK, AF_NETLINK } from '../wire/netlink.ts';
import { check } from './errors.ts';
import { Fd, setNonblocking } from './fd.ts';
import { native } from './native.ts';

const SOCK_RAW = 3;
/** The kernel's largest datagram of a dump: NLMSG_GOODSIZE, at most 32 KiB. */
const DATAGRAM_BYTES = 65536;

const writeAside = promisify(write);
const readAside = promisify(read);

export class NetlinkSocket {
  readonly #fd: Fd;
  readonly #datagram = new Uint8Array(DATAGRAM_BYTES);

  /**
   * @throws SysError EPROTONOSUPPORT: the kernel has no such netlink.
   * @syscalls socket setsockopt fcntl
   */
  static open(protocol: number): NetlinkSocket {
    const what = 'a netlink socket';
    const number = check('socket', native.socket(AF_NETLINK, SOCK_RAW, protocol), () => what);
    const fd = new Fd(number, what);
    try {
      for (const option of [NETLINK_EXT_ACK, NETLINK_CAP_ACK]) {
        const done = native.setSocketOption(number, SOL_NETLINK, option, 1);
        check('setsockopt', done, () => `${what}, option ${option}`);
      }
      setNonblocking(number, false); // a thread of the pool waits
      return new NetlinkSocket(fd);
    } catch (error) {
      fd.close();
      throw error;
    }
  }

  /** Takes the descriptor over. */
  constructor(fd: Fd) {
    this.#fd = fd;
  }

  /**
   * One message to the kernel; it has carried it out when this resolves.
   * @syscalls write
   */
  async send(message: Uint8Array): Promise<void> {
    await writeAside(this.#fd.number, message, 0, message.length, null);
  }

  /**
   * The next datagram; the bytes are good until the next call.
   * @syscalls read
   */
  async receive(): Promise<Uint8Array> {
    const { bytesRead } = await readAside(
      this.#fd.number,
      this.#datagram,
      0,
      this.#datagram.length,
      null,
    );
    return this.#datagram.subarray(0, bytesRead);
  }

  /** Idempotent. Not while a call is under way. */
  close(): void {
    this.#fd.close();
  }
}
