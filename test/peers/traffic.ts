/** Traffic between Linux guests and the host, with its checks. */
import { deepEqual, equal, match } from 'node:assert/strict';
import type { LinuxGuest } from '../../src/vmm/index.ts';
import type { NetNamespace } from './netns.ts';

/** All `count` echo requests are answered. */
export async function checkPing(from: LinuxGuest, address: string, count = 3): Promise<void> {
  const output = await from.check(`ping -c ${count} -i 0.2 -W 10 ${address}`);
  match(output, new RegExp(`${count} packets received, 0% packet loss`));
}

export type EndlessPing = {
  /** `now`: where the guest runs, if it has moved. */
  end(now?: LinuxGuest): Promise<{ readonly sent: number; readonly lost: number }>;
};

/** Ten echo requests a second until told to end; commands of the guest run meanwhile. */
export async function endlessPing(from: LinuxGuest, address: string): Promise<EndlessPing> {
  await from.check(`ping -i 0.1 ${address} > /tmp/endless.log 2>&1 & echo $! > /tmp/endless.pid`);
  const end: EndlessPing['end'] = async (now = from) => {
    // The last request may be on its way: it is not sent to be lost.
    const wait = 'while kill -0 $pid 2> /dev/null; do usleep 50000; done';
    await now.check(`sleep 0.05; pid=$(cat /tmp/endless.pid); kill -INT $pid; ${wait}`);
    const log = await now.check('tail -n 2 /tmp/endless.log');
    const found = /(\d+) packets transmitted, (\d+) packets received/.exec(log);
    if (found === null) throw new Error(`ping said: ${log}`);
    const [sent, received] = [Number(found[1]), Number(found[2])];
    const last = Number(
      await now.check("sed -n 's/.*seq=\\([0-9]*\\) .*/\\1/p' /tmp/endless.log | tail -n 1"),
    );
    const onItsWay = last < sent - 1 ? 1 : 0;
    return { sent, lost: sent - received - onItsWay };
  };
  return { end };
}

/**
 * One TCP stream that lasts until told to end, 256 KiB each 100 ms. Both ends make a checksum of it
 * as it passes, whatever happens to the network, or to the machine under a guest, meanwhile.
 */
export class LongStream {
  readonly #name: string;

  private constructor(name: string) {
    this.#name = name;
  }

  static async start(from: LinuxGuest, to: LinuxGuest, address: string): Promise<LongStream> {
    const port = nextPort++;
    const name = `/tmp/stream-${port}`;
    await to.check(
      `mkfifo ${name}-never; (nc -l -p ${port} 0<>${name}-never | tee ${name}-copy | ` +
        `sha256sum > ${name}-sum; touch ${name}-done) > /dev/null 2>&1 & sleep 0.3`,
    );
    await from.check(
      `dd if=/dev/urandom of=${name}-block bs=64k count=4 2>/dev/null; mkfifo ${name}-twin; ` +
        `(sha256sum < ${name}-twin > ${name}-sum; touch ${name}-done) & ` +
        `(while [ ! -e ${name}-stop ]; do cat ${name}-block; usleep 100000; done) ` +
        `| tee ${name}-twin | nc ${address} ${port} > /dev/null 2>&1 &`,
    );
    return new LongStream(name);
  }

  /** The guests as they are now; returns how many bytes arrived as they were sent. */
  async end(from: LinuxGuest, to: LinuxGuest): Promise<number> {
    const name = this.#name;
    await from.check(`touch ${name}-stop`);
    const wait = `for i in $(seq 300); do [ -e ${name}-done ] && break; sleep 0.1; done`;
    const [sent, received] = await Promise.all(
      [from, to].map((guest) => guest.check(`${wait}; cat ${name}-sum`)),
    );
    match(sent!, /^[0-9a-f]{64}/);
    equal(received, sent, 'the stream arrived as it was sent');
    return Number(await to.check(`stat -c %s ${name}-copy`));
  }
}

/** Makes a file of random bytes in the guest. */
export async function makeFile(guest: LinuxGuest, mebibytes: number): Promise<string> {
  const path = `/tmp/random-${mebibytes}`;
  const make = `dd if=/dev/urandom of=${path} bs=64k count=${mebibytes * 16} 2>/dev/null`;
  await guest.check(`[ -e ${path} ] || ${make}`);
  return path;
}

let nextPort = 5001;

/** One TCP stream from guest to guest; the checksums of both ends are the same. */
export async function checkBulk(
  from: LinuxGuest,
  to: LinuxGuest,
  address: string,
  mebibytes: number,
): Promise<void> {
  const path = await makeFile(from, mebibytes);
  const port = nextPort++;
  const receiving = to.check(receiver('nc', port));
  const sending = from.check(`${RETRY} nc ${address} ${port} < ${path}`);
  const [received] = await Promise.all([receiving, sending]);
  equal(received, await from.check(`sha256sum < ${path}`));
}

/** One TCP stream from the guest to the host's end of the TAP. */
export async function checkBulkToHost(
  guest: LinuxGuest,
  host: NetNamespace,
  address: string,
  mebibytes: number,
): Promise<void> {
  const path = await makeFile(guest, mebibytes);
  const port = nextPort++;
  const receiving = host.shell(receiver('busybox nc', port));
  const sending = guest.check(`${RETRY} nc ${address} ${port} < ${path}`);
  const [received] = await Promise.all([receiving, sending]);
  equal(received, await guest.check(`sha256sum < ${path}`));
}

/** One TCP stream from the host to the guest. */
export async function checkBulkFromHost(
  host: NetNamespace,
  guest: LinuxGuest,
  address: string,
  mebibytes: number,
): Promise<void> {
  const port = nextPort++;
  const receiving = guest.check(receiver('nc', port));
  const make = `head -c ${mebibytes * 2 ** 20} /dev/urandom > "$f"`;
  const send = `${RETRY} busybox nc ${address} ${port} < "$f"`;
  const all = `f=$(mktemp); trap 'rm -f "$f"' EXIT; ${make}; ${send}; sha256sum < "$f"`;
  const [received, sent] = await Promise.all([receiving, host.shell(all)]);
  deepEqual(received.split(' ')[0], sent.split(' ')[0]);
}

/**
 * Accepts one connection and prints the checksum of what comes. The input is a pipe that never
 * ends: at the end of its input nc closes its half of the connection, and the sender leaves then.
 */
function receiver(nc: string, port: number): string {
  const pipe = `/tmp/never-${process.pid}-${port}`;
  return `mkfifo ${pipe}; ${nc} -l -p ${port} 0<>${pipe} | sha256sum; rm ${pipe}`;
}

/** Tries the command after it until the listener is there; a refused connection sends nothing. */
const RETRY =
  'retry() { for i in 1 2 3 4 5 6 7 8 9; do "$@" && return 0; sleep 0.3; done; false; }; retry';
