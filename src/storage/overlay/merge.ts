/**
 * Copies what one image of a chain holds into what is below it. Nobody sees a difference while that
 * happens: what is copied is read from the upper one all the time. So it may end anywhere, and be
 * done again.
 */
import type { Layer } from '../layer/layer.ts';
import type { Qcow2Layer } from '../qcow2/qcow2-layer.ts';

/** Copied at once; a guest's request waits behind one of these at most. */
const STEP_BYTES = 2 ** 20;

/** Looked at, at once, for what is to be copied. */
const SPAN_BYTES = 2 ** 30;

export type MergeProgress = { doneBytes: number; readonly totalBytes: number };

/** False: `isStopped` said so. Durable when it resolves. */
export async function mergeDown(
  from: Qcow2Layer,
  into: Layer,
  progress: MergeProgress,
  isStopped: () => boolean,
): Promise<boolean> {
  const { sizeBytes } = from;
  if (into.sizeBytes < sizeBytes) await into.resize(sizeBytes);
  for (let at = 0; at < sizeBytes;) {
    for (const piece of await from.ownPieces(at, Math.min(SPAN_BYTES, sizeBytes - at))) {
      at = piece.at + piece.sizeBytes;
      for (let part = piece.at; part < at && piece.kind !== 'none'; part += STEP_BYTES) {
        if (isStopped()) return false;
        const size = Math.min(STEP_BYTES, at - part);
        if (piece.kind === 'zero') await into.zero(part, size, { unmap: true, fua: false });
        else {
          const bytes = Buffer.allocUnsafeSlow(size);
          await from.read(part, bytes);
          await into.write(part, bytes, false);
        }
        progress.doneBytes = part + size;
      }
      progress.doneBytes = at;
    }
    if (isStopped()) return false;
  }
  await into.flush();
  return true;
}
