/** From what a disk is made of to layers: what a storage thread does first. */
import { assert, unreachable } from '../../base/assert.ts';
import { ConfigError } from '../../base/errors.ts';
import { openFd } from '../../sys/index.ts';
import { O_DIRECT, O_RDONLY, O_RDWR } from '../../wire/linux.ts';
import { openCryptLayer } from '../crypt/crypt-layer.ts';
import type { EngineSpec } from '../disk-image.ts';
import { openFaultLayer } from '../fault/open-fault-layer.ts';
import { DirectFileLayer } from '../layer/direct-file-layer.ts';
import { FileLayer } from '../layer/file-layer.ts';
import { openHttpLayer } from '../http/index.ts';
import type { Layer } from '../layer/layer.ts';
import { LimitLayer } from '../limit/limit-layer.ts';
import { MemoryLayer } from '../layer/memory-layer.ts';
import { NullLayer } from '../layer/null-layer.ts';
import { openNbdLayer } from '../nbd/index.ts';
import { OverlayLayer } from '../overlay/overlay-layer.ts';
import { openQcow2Layer } from '../qcow2/open-qcow2.ts';
import { openZonedLayer } from '../zoned/open-zoned.ts';
import type { LayerSpec, SourceSpec, StackSpec } from './stack-spec.ts';

export type OpenOptions = { readonly readOnly: boolean };

/**
 * Opens a checked stack from the bottom up; `source` is its last part, where the main thread has
 * opened that. What cannot be opened closes what was.
 * @throws VringError of the part that failed.
 */
export async function openLayers(
  stack: StackSpec,
  source: EngineSpec | null,
  options: OpenOptions,
): Promise<Layer> {
  const bottom = stack.at(-1) as SourceSpec;
  let layer = source === null ? await openSource(bottom, options) : wrapSource(source, bottom);
  try {
    for (let i = stack.length - 2; i >= 0; i--) {
      const isBase = stack.slice(0, i).some(({ kind }) => kind === 'overlay');
      const next = stack[i + 1]!;
      const path = next.kind === 'file' ? next.path : null;
      const baseLockFd = source?.kind === 'file' && next.kind === 'file' ? source.fd : -1;
      const isLocked = next.kind === 'file' && next.lock !== false;
      const how = {
        readOnly: options.readOnly || isBase,
        path,
        baseLockFd: isLocked ? baseLockFd : -1,
      };
      layer = await openLayer(stack[i] as LayerSpec, layer, how);
    }
    return layer;
  } catch (error) {
    await layer.close();
    throw error;
  }
}

function wrapSource(source: EngineSpec, bottom: SourceSpec): Layer {
  if (source.kind === 'memory') return new MemoryLayer(source);
  if (source.kind === 'null') return new NullLayer(source.sizeBytes, source.readOnly);
  assert(
    source.kind === 'file' && bottom.kind === 'file',
    'the main thread opens files and memory',
  );
  // Opened once more, not duplicated: the kernel tells each open file of an error once, and a data
  // plane that uses the image beside us must hear of it, too. The image keeps its lock.
  const { path } = bottom;
  const { readOnly, bounce } = source;
  const flags = (readOnly ? O_RDONLY : O_RDWR) | (bounce === undefined ? 0 : O_DIRECT);
  const file = openFd(`/proc/self/fd/${source.fd}`, flags);
  const options = { file, path, readOnly };
  return bounce === undefined ? new FileLayer(options) : new DirectFileLayer(options, bounce);
}

async function openSource(spec: SourceSpec, { readOnly }: OpenOptions): Promise<Layer> {
  switch (spec.kind) {
    case 'null':
      return new NullLayer(spec.sizeBytes, readOnly);
    case 'nbd':
      return openNbdLayer({ ...spec, readOnly });
    case 'http':
    case 's3':
      return openHttpLayer(spec);
    default:
      throw new ConfigError(spec.kind, 'no such source is known');
  }
}

/** `path`: what is directly below is this file. */
type LayerOptions = OpenOptions & { readonly path: string | null; readonly baseLockFd: number };

async function openLayer(spec: LayerSpec, below: Layer, options: LayerOptions): Promise<Layer> {
  const { readOnly, path, baseLockFd } = options;
  switch (spec.kind) {
    case 'qcow2':
      return openQcow2Layer(below, { ...spec, ...options });
    case 'overlay':
      return OverlayLayer.open({
        folder: spec.folder,
        base: below,
        basePath: path,
        baseLockFd,
        readOnly,
      });
    case 'crypt':
      return openCryptLayer(below, spec);
    case 'limit':
      return LimitLayer.of(below, spec);
    case 'fault':
      return openFaultLayer(below, spec);
    case 'zoned':
      return openZonedLayer(below, spec, options);
    default:
      return unreachable(spec);
  }
}
