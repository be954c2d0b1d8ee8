/**
 * A Linux guest that moves between QEMUs, each on a port of a switch of ours, while it talks to
 * another machine and writes memory; and the proof that all of its memory arrived.
 */
import { equal, match, ok } from 'node:assert/strict';
import {
  LinuxGuest,
  migrateGuest,
  type GuestNic,
  type LinuxGuestConfig,
  type MigrationOptions,
  type MigrationResult,
  type MigrationStatus,
} from '../../src/vmm/index.ts';
import { differingPages } from './guest-memory.ts';
import { waitFor, type Scratch } from './scratch.ts';
import { endlessPing, makeFile, type EndlessPing } from './traffic.ts';

export type MovingGuestOptions = {
  readonly ip: string;
  readonly packed: boolean;
  readonly queuePairs: number;
  /** Memory of whole MiB, of which QEMU 7.2 under TCG loses pages by itself. */
  readonly evenMemory?: boolean;
};

/** Where a guest can be: the socket of a port that listens; null: in a machine without a card. */
export type Place = { readonly socket: string | null };

export type Move = MigrationResult & {
  /** Addresses of pages that were written and not copied again; null: not compared. */
  readonly lostPages: readonly number[] | null;
};

const MEMORY_KIB = 192 * 1024;
/**
 * Under TCG, QEMU before 9.0 fetches the dirty bits of memory whose size is a multiple of 64 pages
 * in a way that leaves processors on the fast path of a page that is clean now: what they write
 * is in no bitmap. Any other size is safe (docs/migration.md).
 */
const ODD_KIB = 8;

export class MovingGuest {
  readonly #scratch: Scratch;
  readonly #options: MovingGuestOptions;
  #here: LinuxGuest;

  private constructor(scratch: Scratch, options: MovingGuestOptions, here: LinuxGuest) {
    this.#scratch = scratch;
    this.#options = options;
    this.#here = here;
  }

  static async start(
    scratch: Scratch,
    place: Place,
    options: MovingGuestOptions,
  ): Promise<MovingGuest> {
    const here = scratch.own(await LinuxGuest.start(configOf(place, options)));
    return new MovingGuest(scratch, options, here);
  }

  /** The QEMU in which it runs now. */
  get guest(): LinuxGuest {
    return this.#here;
  }

  /**
   * Moves it; the QEMU that it leaves ends and gives its port back. Before the guest runs again all
   * of its memory is compared; with postcopy it never stands still with all of it there.
   */
  async move(place: Place, options: MigrationOptions = {}): Promise<Move> {
    const { extra = [], ...config } = configOf(place, this.#options);
    const waits = options.postcopy === true ? [] : ['-S'];
    const incoming = { ...config, incoming: true, extra: [...extra, ...waits] };
    const there = this.#scratch.own(LinuxGuest.launch(incoming));
    let lostPages: number[] | null = null;
    const beforeRunning = (): void => {
      const sizeBytes = 1024 * memoryKib(this.#options);
      lostPages = differingPages(this.#here.pid, there.pid, sizeBytes);
    };
    const withIt = options.postcopy === true ? options : { ...options, beforeRunning };
    const result = await migrateGuest(this.#here, there, withIt);
    await this.#here.close();
    this.#here = there;
    return { ...result, lostPages };
  }
}

/** Both sides of a migration are the same machine in everything that the guest can see. */
function configOf({ socket }: Place, options: MovingGuestOptions): LinuxGuestConfig {
  const common = { name: 'traveller', memoryMib: MEMORY_KIB / 1024, extra: memoryWords(options) };
  if (socket === null) {
    return { ...common, ip: null, nics: [], kernelWords: ['vring.nonet=1'] };
  }
  const nic: GuestNic = {
    path: socket,
    mode: 'client',
    queuePairs: options.queuePairs,
    packed: options.packed,
    mrgRxbuf: true,
    mac: '52:54:00:00:11:01',
    mtu: null,
  };
  return { ...common, ip: options.ip, nics: [nic] };
}

/** In place of the machine's memory of whole MiB. */
function memoryWords(options: MovingGuestOptions): string[] {
  if (options.evenMemory === true) return [];
  const size = `${memoryKib(options)}K`;
  const backend = `memory-backend-memfd,id=moved,size=${size},share=on`;
  return ['-m', size, '-object', backend, '-machine', 'memory-backend=moved'];
}

function memoryKib({ evenMemory = false }: MovingGuestOptions): number {
  return evenMemory ? MEMORY_KIB : MEMORY_KIB + ODD_KIB;
}

/** What the guest does all the time, and what must be true of it in the end. */
export class Luggage {
  readonly #ping: EndlessPing | null;
  readonly #still: string;

  private constructor(ping: EndlessPing | null, still: string) {
    this.#ping = ping;
    this.#still = still;
  }

  /**
   * A file that lies still, a program that writes memory and notes what it wrote, and a ping;
   * without a peer none.
   */
  static async pack(guest: LinuxGuest, peer: string | null): Promise<Luggage> {
    await guest.check('dd if=/dev/urandom of=/tmp/still bs=64k count=256 2>/dev/null');
    const still = await guest.check('sha256sum < /tmp/still');
    // A complete pair of data and checksum gets its name in one step; a pair that was changed on
    // its way does not match itself.
    await guest.check(
      'mkdir /tmp/w; (n=0; while [ ! -e /tmp/stop ]; do n=$((n+1)); ' +
        'dd if=/dev/urandom of=/tmp/w/new bs=64k count=16 2>/dev/null; ' +
        'sha256sum < /tmp/w/new > /tmp/w/sum; echo $n >> /tmp/w/count; ' +
        'mv /tmp/w/new /tmp/w/data; mv /tmp/w/sum /tmp/w/datasum; done; touch /tmp/stopped) &',
    );
    return new Luggage(peer === null ? null : await endlessPing(guest, peer), still);
  }

  /** How many pairs the program has written: it goes on where the guest is. */
  async writes(guest: LinuxGuest): Promise<number> {
    return Number(await guest.check('tail -n 1 /tmp/w/count'));
  }

  async unpack(guest: LinuxGuest): Promise<{ readonly sent: number; readonly lost: number }> {
    equal(await guest.check('sha256sum < /tmp/still'), this.#still, 'the file that lay still');
    await guest.check('touch /tmp/stop; while [ ! -e /tmp/stopped ]; do usleep 50000; done');
    const sum = await guest.check('sha256sum < /tmp/w/data');
    equal(sum, await guest.check('cat /tmp/w/datasum'), 'the file that was written meanwhile');
    const log = await guest.check('dmesg');
    ok(!/BUG:|Oops|not a head|bad gso|hw csum failure/.test(log), `the guest complains: ${log}`);
    return this.#ping?.end(guest) ?? { sent: 0, lost: 0 };
  }
}

export const MAIL_BYTES = 2 ** 20;

/**
 * Data that a guest receives while it moves and nobody reads until it is there. It lies in pages
 * that only our back-end wrote: without the dirty log they would arrive as they were before.
 */
export class UnreadMail {
  readonly #file: string;
  readonly #address: string;
  #sent = false;

  private constructor(file: string, address: string) {
    this.#file = file;
    this.#address = address;
  }

  static async expect(from: LinuxGuest, to: LinuxGuest, address: string): Promise<UnreadMail> {
    // Room for all of it in the socket.
    await to.check('echo 4096 4000000 6000000 > /proc/sys/net/ipv4/tcp_rmem');
    await to.check(
      'rm -f /tmp/mail-*; mkfifo /tmp/mail-never; (nc -l -p 4999 0<>/tmp/mail-never | ' +
        '(while [ ! -e /tmp/mail-read ]; do usleep 20000; done; sha256sum > /tmp/mail-sum; ' +
        'touch /tmp/mail-done)) > /dev/null 2>&1 & sleep 0.3',
    );
    return new UnreadMail(await makeFile(from, MAIL_BYTES / 2 ** 20), address);
  }

  /**
   * For `onCopying` of a migration that cannot end yet: once all memory was copied the first time,
   * sends, waits until it `arrived`, and lets the migration end.
   */
  async send(
    from: LinuxGuest,
    to: LinuxGuest,
    { ram }: MigrationStatus,
    arrived: () => Promise<boolean>,
  ): Promise<void> {
    if (this.#sent || (ram?.['dirty-sync-count'] ?? 0) < 2) return;
    this.#sent = true;
    await from.check(`nc ${this.#address} 4999 < ${this.#file} > /dev/null 2>&1 &`);
    await waitFor('the mail', 30_000, arrived);
    await to.qmp('migrate-set-parameters', { 'downtime-limit': 500 });
  }

  async read(from: LinuxGuest, to: LinuxGuest): Promise<void> {
    ok(this.#sent, 'it was sent while memory was copied');
    const wait = 'for i in $(seq 300); do [ -e /tmp/mail-done ] && break; sleep 0.1; done';
    const sum = await to.check(`touch /tmp/mail-read; ${wait}; cat /tmp/mail-sum`);
    match(sum, /^[0-9a-f]{64}/);
    equal(sum, await from.check(`sha256sum < ${this.#file}`), 'what it received on its way');
  }
}
