import { GuestMemory } from '../memory/index.ts';
import { createEventfd } from '../sys/index.ts';
import { startVring, type VhostUserFrontend } from '../vhost-user/index.ts';
import {
  featureSet,
  PACKED_BASE_FRESH,
  ringLayout,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
} from '../wire/virtio.ts';

const RING_SIZE = 64;
const RING_BYTES = 16 * 1024;

/** As much of a guest as a session needs: memory, and two rings in which nothing happens. */
export class RestingGuest {
  readonly #front: VhostUserFrontend;
  readonly #memory = GuestMemory.create(2 * RING_BYTES);
  readonly #eventfds = Array.from({ length: 4 }, () => createEventfd('rehearsal'));

  private constructor(front: VhostUserFrontend) {
    this.#front = front;
  }

  static async start(front: VhostUserFrontend, packed: boolean): Promise<RestingGuest> {
    const self = new RestingGuest(front);
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
