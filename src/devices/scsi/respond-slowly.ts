/** Answers that are rare: sense data, and whatever does not lie in one piece. */
import type { ChainBatch } from '../../virtqueue/chain-batch.ts';
import type { CommandRules } from './command-rules.ts';
import { encodeSense } from './sense.ts';
import type { ScsiFlight } from './scsi-vring.ts';

const RESPONSE_BYTES = 12; // virtio_scsi_cmd_resp without sense

/** With sense data, or with a response in several pieces. */
export function respondSlowly(
  flight: ScsiFlight,
  row: number,
  rules: CommandRules,
  arena: DataView,
  needsSense: boolean,
): void {
  const chains = flight.chains;
  const bytes = new Uint8Array(rules.responseBytes);
  const view = new DataView(bytes.buffer);
  view.setInt32(4, flight.residual[row]!, true);
  bytes[10] = flight.status[row]!;
  bytes[11] = flight.response[row]!;
  if (needsSense) {
    const index = flight.lun[row]!;
    const asDescriptors = index >= 0 && rules.luns[index]?.descriptorSense === 1;
    const [code, field] = [flight.sense[row]!, flight.field[row]!];
    const sense = encodeSense(code, flight.information[row]!, field, asDescriptors);
    const size = Math.min(sense.length, bytes.length - RESPONSE_BYTES);
    view.setUint32(0, size, true);
    bytes.set(sense.subarray(0, size), RESPONSE_BYTES);
  }
  scatter(chains, chains.segFirst[row]! + chains.readSegs[row]!, 0, bytes, bytes.length, arena);
}

/** Copies into bytes [skip, skip + size) of the segments from `first` on. */
export function scatter(
  chains: ChainBatch,
  first: number,
  skip: number,
  bytes: Uint8Array,
  size: number,
  arena: DataView,
): void {
  let seg = first;
  let to = skip;
  for (let done = 0; done < size;) {
    const len = chains.segLen[seg]!;
    if (to >= len) {
      to -= len;
      seg++;
      continue;
    }
    arena.setUint8(chains.segOffset[seg]! + to++, bytes[done++]!);
  }
}
