/**
 * A hand-over of a port that nobody needs, from this process to itself.
 *
 * What JavaScript runs for the first time it compiles first, and a hand-over runs once, on both
 * sides, while guests wait. Measured on 2 busy vCPUs with 4 ports: a pause of 42 to 57 ms without a
 * rehearsal, 10 ms (median; 8 to 22) with one on both sides. It takes its time before the pause.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { GuestMemory } from '../memory/index.ts';
import { createEventfd, dupFd } from '../sys/index.ts';
import { startVring, VhostUserFrontend } from '../vhost-user/index.ts';
import {
  featureSet,
  PACKED_BASE_FRESH,
  ringLayout,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
} from '../wire/virtio.ts';
import { ReceivedFds, SentFds } from './hand-over-channel.ts';
import { HandOverStateSchema, parseBody } from './hand-over-format.ts';
import type { SwitchPort } from './switch-port.ts';
import type { VhostUserPortConfig } from './switch-types.ts';

const RING_SIZE = 64;
const RING_BYTES = 16 * 1024;
/** Split and packed in turn, about 8 ms each: what runs often is compiled better. */
const ROUNDS = Array.from({ length: 12 }, (_, i) => i % 2 === 1);

/** Makes a port under one of two numbers that no other port has, and takes it away again. */
export type Stage = {
  make(config: VhostUserPortConfig, which: 0 | 1): SwitchPort;
  /** Ends and frees the port. */
  strike(port: SwitchPort, which: 0 | 1): Promise<void>;
};

export async function rehearse(stage: Stage): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'vring-rehearsal-'));
  try {
    for (const packed of ROUNDS) await perform(stage, join(folder, 'socket'), packed);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function perform(stage: Stage, path: string, packed: boolean): Promise<void> {
  const config = configOf(path);
  const over = new AbortController();
  const front = VhostUserFrontend.listen(path, { signal: over.signal });
  front.catch(() => undefined); // whoever waits for it below is told
  const giver = stage.make(config, 0);
  const taker = stage.make(config, 1);
  try {
    await giver.open();
    await using guest = await Guest.start(await front, packed);
    void guest;
    const planned = new SentFds();
    const plan = copyOf(giver.plan(planned));
    await within(planned, (fds) => taker.adopt(plan, fds));
    const last = new SentFds();
    const ports = [await giver.suspend(last)];
    const state = parseBody(HandOverStateSchema, 'switch', copyOf({ stoppedAtMs: 0, ports }));
    await within(last, (fds) => taker.restore(state.ports[0]!, fds));
    await taker.resume();
    await giver.surrender();
  } finally {
    over.abort();
    await stage.strike(giver, 0);
    await stage.strike(taker, 1);
  }
}

/** As if it had been sent. */
function copyOf<T>(value: T): T {
  return JSON.parse(JSON.stringify(value)) as T;
}

async function within(sent: SentFds, work: (fds: ReceivedFds) => Promise<void>): Promise<void> {
  const fds = new ReceivedFds(sent.numbers.map((number) => dupFd(number, 'rehearsal')));
  try {
    await work(fds);
  } finally {
    fds.close();
  }
}

/** As much of a guest as a session needs: memory, and two rings in which nothing happens. */
class Guest {
  readonly #front: VhostUserFrontend;
  readonly #memory = GuestMemory.create(2 * RING_BYTES);
  readonly #eventfds = Array.from({ length: 4 }, () => createEventfd('rehearsal'));

  private constructor(front: VhostUserFrontend) {
    this.#front = front;
  }

  static async start(front: VhostUserFrontend, packed: boolean): Promise<Guest> {
    const self = new Guest(front);
    try {
      const bits = packed ? [VIRTIO_F_VERSION_1, VIRTIO_F_RING_PACKED] : [VIRTIO_F_VERSION_1];
      await front.setFeatures((await front.getFeatures()) & featureSet(...bits));
      await front.setMemTable([self.#memory.backendRegion()]);
      for (const index of [0, 1]) await self.#startRing(index, packed);
      return self;
    } catch (error) {
      await self[Symbol.asyncDispose]();
      throw error;
    }
  }

  async #startRing(index: number, packed: boolean): Promise<void> {
    const layout = ringLayout(RING_SIZE, packed);
    const at = this.#memory.baseUva + index * RING_BYTES;
    await startVring(this.#front, index, {
      size: RING_SIZE,
      base: packed ? PACKED_BASE_FRESH : 0,
      descUva: BigInt(at),
      availUva: BigInt(at + layout.availAt),
      usedUva: BigInt(at + layout.usedAt),
      kick: this.#eventfds[2 * index]!.number,
      call: this.#eventfds[2 * index + 1]!.number,
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#front.close();
    this.#memory.close();
    for (const fd of this.#eventfds) fd.close();
  }
}

function configOf(path: string): VhostUserPortConfig {
  return {
    kind: 'vhost-user',
    name: 'rehearsal',
    path,
    mode: 'client',
    socketOwner: null,
    socketMode: null,
    queuePairs: 1,
    mac: null,
    packed: true,
    mrgRxbuf: true,
    iommu: false,
    vlan: { mode: 'access', vid: 1 },
    offload: { csum: true, tso: true, uso: true },
    mtu: 1500,
    reflect: false,
    macLimit: 1,
  };
}
