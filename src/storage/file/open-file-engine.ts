import { SysError } from '../../base/errors.ts';
import { FileEngine, type FileEngineSpec } from '../file-engine.ts';
import { UringEngine } from './uring-engine.ts';

/**
 * By io_uring where the image says so, else by system calls. A ring that the image could have made
 * and this thread cannot (memory, descriptors) is done without, unless it is required.
 */
export function openFileEngine(spec: FileEngineSpec): FileEngine {
  const { uring } = spec;
  if (uring === undefined) return new FileEngine(spec);
  try {
    return new UringEngine(spec, uring);
  } catch (error) {
    if (uring.required || !(error instanceof SysError)) throw error;
    return new FileEngine(spec);
  }
}
