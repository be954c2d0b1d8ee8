/** A device that asks its front-end for this and that while a session runs. */
import { REGION_BYTES } from './conversation.ts';
import type { FakeTarget } from './fake-target.ts';
import type { FuzzFds } from './fuzz-fds.ts';
import type { Random } from './random.ts';

/** One request; what becomes of it is the session's affair, and nobody waits. */
export function pesterFrontend(random: Random, target: FakeTarget, zoo: FuzzFds): void {
  const { requests } = target;
  if (requests === null) return;
  const uuid = random.bytes(16);
  const area = { fd: zoo.memory[0]!.number, offset: 0, sizeBytes: 4096 };
  const ring = random.next(target.queueCount);
  const ignore = (): undefined => undefined;
  switch (random.next(8)) {
    case 0:
      requests.iotlbMiss(random.next(2 * REGION_BYTES), random.once(2));
      break;
    case 1:
      requests.configChanged().catch(ignore);
      break;
    case 2:
      requests.setHostNotifier(ring, random.once(2) ? area : null).catch(ignore);
      break;
    case 3:
      requests.addSharedObject(uuid).catch(ignore);
      break;
    case 4:
      requests.removeSharedObject(uuid).catch(ignore);
      break;
    case 5:
      requests.lookUpSharedObject(uuid).then((fd) => fd?.close(), ignore);
      break;
    case 6:
      requests.mapShmem(random.next(3), 4096 * random.next(4), area, true).catch(ignore);
      break;
    default:
      requests.unmapShmem(random.next(3), 4096 * random.next(4), 4096).catch(ignore);
  }
}
