import type { EngineSpec } from './disk-image.ts';
import type { Engine } from './engine.ts';
import { FileEngine } from './file-engine.ts';
import { MemoryEngine } from './memory-engine.ts';

/** In the thread that will use it. */
export function openEngine(spec: EngineSpec): Engine {
  return spec.kind === 'file' ? new FileEngine(spec) : new MemoryEngine(spec);
}
