/** What workers of disks and of SCSI adapters have in common. */
import { DataPlaneWorker } from '../../runtime/index.ts';
import { BACKEND_PROTOCOL_FEATURES } from '../../vhost-user/index.ts';
import {
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_PAGEFAULT,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
} from '../../wire/vhost-user.ts';
import { featureSet } from '../../wire/virtio.ts';

/** The device's number in its worker, which has no other. */
export const DEVICE = 0;

/** All that a disk has a use for; postcopy would let a front-end hold the worker up. */
export const DISK_PROTOCOL_FEATURES =
  (BACKEND_PROTOCOL_FEATURES | featureSet(VHOST_USER_PROTOCOL_F_RESET_DEVICE)) &
  ~featureSet(VHOST_USER_PROTOCOL_F_MTU, VHOST_USER_PROTOCOL_F_PAGEFAULT);

/** A worker whose device may be away; a session that ends meanwhile has nothing to reset there. */
export class DeviceWorker extends DataPlaneWorker {
  hasDevice = false;

  override async resetDevice(device: number): Promise<void> {
    if (this.hasDevice) await super.resetDevice(device);
  }
}
