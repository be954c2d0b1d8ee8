/**
 * A flush that failed: what was written before it may be lost, and stays lost, whichever engine the
 * image has later.
 */
import { IO_FLUSH, IO_READ, type IoDone } from '../../storage/index.ts';

/** What the medium failed: of a device, or of one part of it. */
export type ErrorTally = {
  /** `PlaneIoError.part`. */
  readonly part: number;
  /** Requests that the medium failed, and the last of them. */
  errors: number;
  lastError: LastError | null;
  /** -errno of a flush that failed: what was written before may be lost. */
  failedFlush: number;
  /** When people were told. */
  toldErrorMs: number;
};

export type LastError = { readonly op: string; readonly at: number; readonly errno: number };

/**
 * Fails what an engine completed, where one before it failed a flush (`inherits`): the engine does
 * not know of that. Of its own failure an engine knows best whether it lasts.
 */
export function keepFailing(
  done: IoDone,
  tally: ErrorTally,
  inherits: boolean,
  isWriteThrough: boolean,
): void {
  const { failedFlush } = tally;
  for (let i = 0; i < done.count; i++) {
    if (done.status[i] !== 0) continue;
    const isFlush = done.op[i] === IO_FLUSH;
    if (!inherits && isFlush) tally.failedFlush = 0;
    const isDurable = isFlush || (isWriteThrough && done.op[i] !== IO_READ);
    if (inherits && isDurable) done.status[i] = failedFlush;
  }
}
