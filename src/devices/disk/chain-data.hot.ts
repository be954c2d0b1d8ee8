/**
 * Parts of a chain's data: copied, so that only the copy is judged, or handed to an engine where
 * they lie. The caller has seen to it that the segments hold as much.
 */
import type { IoBatch } from '../../storage/io-batch.ts';
import type { ChainBatch } from '../../virtqueue/chain-batch.ts';

/** Copies bytes [skip, skip + size) of the segments from `first` on to `intoAt`. */
export function gather(
  chains: ChainBatch,
  first: number,
  skip: number,
  size: number,
  into: DataView,
  intoAt: number,
  arena: DataView,
): void {
  let seg = first;
  let from = skip;
  for (let done = 0; done < size;) {
    const len = chains.segLen[seg]!;
    if (from >= len) {
      from -= len;
      seg++;
      continue;
    }
    into.setUint8(intoAt + done++, arena.getUint8(chains.segOffset[seg]! + from++));
  }
}

/** Appends bytes [skip, skip + size) of the segments from `first` on. */
export function addSegments(
  io: IoBatch,
  chains: ChainBatch,
  first: number,
  skip: number,
  size: number,
): void {
  let seg = first;
  let from = skip;
  while (from >= chains.segLen[seg]!) from -= chains.segLen[seg++]!;
  let to = io.segments;
  for (let left = size; left > 0; seg++) {
    const rest = chains.segLen[seg]! - from;
    const len = rest < left ? rest : left;
    io.segOffset[to] = chains.segOffset[seg]! + from;
    io.segLen[to++] = len;
    left -= len;
    from = 0;
  }
  io.segments = to;
}
