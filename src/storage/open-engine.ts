import { BridgeEngine } from './bridge/bridge-engine.ts';
import type { EngineSpec } from './disk-image.ts';
import type { Engine } from './engine.ts';
import { openFileEngine } from './file/open-file-engine.ts';
import { LimitEngine } from './limit/limit-engine.ts';
import { MemoryEngine } from './memory-engine.ts';
import { NullEngine } from './null-engine.ts';

/**
 * IO_ERASE overwrites what was there. Layers cannot promise it: they write elsewhere, or keep what
 * was.
 */
export function canErase(spec: EngineSpec): boolean {
  return spec.kind === 'limit' ? canErase(spec.inner) : spec.kind !== 'bridge';
}

/** In the thread that will use it. */
export function openEngine(spec: EngineSpec): Engine {
  switch (spec.kind) {
    case 'file':
      return openFileEngine(spec);
    case 'memory':
      return new MemoryEngine(spec);
    case 'limit':
      return new LimitEngine(openEngine(spec.inner), spec.cells);
    case 'bridge':
      return new BridgeEngine(spec);
    case 'null':
      return new NullEngine(spec);
  }
}
