import type { Layer } from '../layer/layer.ts';

/** Reads; what lies past the end of the file is zeros: the last cluster may be there in part. */
export async function readPast(below: Layer, at: number, into: Uint8Array): Promise<void> {
  const there = Math.max(0, Math.min(into.length, below.sizeBytes - at));
  if (there < into.length) into.fill(0, there);
  if (there > 0) await below.read(at, into.subarray(0, there));
}
