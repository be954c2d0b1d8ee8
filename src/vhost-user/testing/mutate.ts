/** What goes wrong with a message on its way: its size, flags, fields, bytes, fds. */
import { VhostUserHeader } from '../../wire/vhost-user.ts';
import type { FuzzFds } from './fuzz-fds.ts';
import { INTERESTING, type Random } from './random.ts';

export type Outgoing = { readonly bytes: Uint8Array; readonly fds: readonly number[] };

const HEADER = VhostUserHeader.size;

/** Another message, wrong in one way; sometimes right by chance. */
export function mutate(random: Random, message: Outgoing, zoo: FuzzFds): Outgoing {
  const bytes = message.bytes.slice();
  const view = new DataView(bytes.buffer);
  switch (random.next(9)) {
    case 0: // a byte
      bytes[random.next(bytes.length)] = random.next(256);
      break;
    case 1: // a bit
      bytes[random.next(bytes.length)]! ^= 1 << random.next(8);
      break;
    case 2: // flags
      view.setUint32(4, random.pick([0, 1, 2, 3, 5, 9, 13, 0x11, 0xffffffff]), true);
      break;
    case 3: // the size that the header says
      view.setUint32(8, random.pick([0, 1, 7, 8, 12, 4096, 4097, 2 ** 31, 2 ** 32 - 1]), true);
      break;
    case 4: // more or less payload, and the header knows it
      return resized(random, message);
    case 5: // fds: none, too many, of any kind
      return { bytes, fds: Array.from({ length: random.next(12) }, () => zoo.any(random)) };
    case 6: // the right number of fds, of any kind
      return { bytes, fds: message.fds.map(() => zoo.any(random)) };
    case 7: // a field
      if (bytes.length >= HEADER + 8) {
        const at = HEADER + 8 * random.next((bytes.length - HEADER) >> 3);
        view.setBigUint64(at, random.pick(INTERESTING), true);
      }
      break;
    default: // nothing of it is left
      return { bytes: random.bytes(1 + random.next(64)), fds: message.fds };
  }
  return { bytes, fds: message.fds };
}

function resized(random: Random, { bytes, fds }: Outgoing): Outgoing {
  const size = random.next(2 * (bytes.length - HEADER) + 16);
  const next = new Uint8Array(HEADER + size);
  next.set(bytes.subarray(0, next.length));
  new DataView(next.buffer).setUint32(8, size, true);
  return { bytes: next, fds };
}
