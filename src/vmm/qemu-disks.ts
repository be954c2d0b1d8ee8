/** QEMU's words for disks that a back-end serves over vhost-user. */
import { quoteOption } from './qemu.ts';

export type VhostUserDisk = {
  /** Where the back-end listens. */
  readonly socket: string;
  /** Virtqueues; Linux uses at most one per processor. */
  readonly queues?: number;
  /** Offer the packed ring to the guest's driver. */
  readonly packed?: boolean;
  /** Position in the order in which the firmware tries to boot. */
  readonly bootIndex?: number;
};

/**
 * Disks in order: `/dev/vda` on. The machine's memory must be shared (`qemuCommand` does that).
 * QEMU looks once a second for a back-end that went away.
 */
export function vhostUserDisks(disks: readonly VhostUserDisk[]): string[] {
  return disks.flatMap(({ socket, queues = 1, packed = false, bootIndex }, i) => {
    const device = ['vhost-user-blk-pci', `chardev=disk${i}`, `id=blk${i}`, `num-queues=${queues}`];
    if (packed) device.push('packed=on');
    if (bootIndex !== undefined) device.push(`bootindex=${bootIndex}`);
    const chardev = `socket,id=disk${i},path=${quoteOption(socket)},reconnect=1`;
    return ['-chardev', chardev, '-device', device.join(',')];
  });
}
