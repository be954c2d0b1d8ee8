/**
 * A disk that does nothing, for measuring what is around it: as QEMU's null-co it completes every
 * request at once and touches no data. A read leaves the guest's buffer as it was, so the guest
 * sees what it had there before; a write is forgotten.
 */
import { type IoBatch } from './io-batch.ts';
import { SyncEngine } from './sync-engine.ts';

export type NullEngineSpec = {
  readonly kind: 'null';
  readonly sizeBytes: number;
  readonly readOnly: boolean;
};

export class NullEngine extends SyncEngine {
  constructor(spec: NullEngineSpec) {
    super(spec.sizeBytes, spec.readOnly);
  }

  protected execute(_batch: IoBatch, _row: number): number {
    return 0;
  }

  protected finish(): void {}
}
