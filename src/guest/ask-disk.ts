/** One request to a disk, whose answer is an error unless it is OK. */
import { VringError } from '../base/errors.ts';
import {
  VIRTIO_BLK_S_IOERR,
  VIRTIO_BLK_S_OK,
  VIRTIO_BLK_S_UNSUPP,
  VIRTIO_BLK_S_ZONE_ACTIVE_RESOURCE,
  VIRTIO_BLK_S_ZONE_INVALID_CMD,
  VIRTIO_BLK_S_ZONE_OPEN_RESOURCE,
  VIRTIO_BLK_S_ZONE_UNALIGNED_WP,
  VIRTIO_BLK_T_FLUSH,
  blkRequestName,
} from '../wire/virtio-blk.ts';
import type { BlkGuest } from './blk-driver.ts';
import type { BlkCompletion, BlkRequest } from './blk-requests.ts';

const STATUS: Readonly<Record<number, readonly [code: string, what: string]>> = {
  [VIRTIO_BLK_S_IOERR]: ['ERR_VRING_BLK_IOERR', 'an I/O error'],
  [VIRTIO_BLK_S_UNSUPP]: ['ERR_VRING_BLK_UNSUPP', 'that it does not support this'],
  [VIRTIO_BLK_S_ZONE_INVALID_CMD]: ['ERR_VRING_BLK_ZONE_INVALID', 'that no zone allows it'],
  [VIRTIO_BLK_S_ZONE_UNALIGNED_WP]: [
    'ERR_VRING_BLK_ZONE_UNALIGNED',
    'that this is not at the write pointer of the zone',
  ],
  [VIRTIO_BLK_S_ZONE_OPEN_RESOURCE]: [
    'ERR_VRING_BLK_ZONE_OPEN_LIMIT',
    'that as many zones are open as may be',
  ],
  [VIRTIO_BLK_S_ZONE_ACTIVE_RESOURCE]: [
    'ERR_VRING_BLK_ZONE_ACTIVE_LIMIT',
    'that as many zones are active as may be',
  ],
};

/** @throws VringError ERR_VRING_BLK_*: what the device answered, and for what. */
export async function askDisk(guest: BlkGuest, request: BlkRequest): Promise<BlkCompletion> {
  const completion = await guest.requests.send(request);
  const { status } = completion;
  if (status === VIRTIO_BLK_S_OK) return completion;
  const name = blkRequestName(request.type);
  const at = request.type === VIRTIO_BLK_T_FLUSH ? '' : ` at sector ${request.sector}`;
  const bytes = request.write?.length ?? request.readBytes ?? 0;
  const [code, what] = STATUS[status] ?? ['ERR_VRING_BLK_STATUS', `status ${status}`];
  const asked = `${name}${at} (${bytes} bytes)`;
  throw new VringError(code, `${guest.backend.description} answered ${asked} with ${what}`);
}
