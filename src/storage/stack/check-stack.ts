import { ConfigError } from '../../base/errors.ts';
import type { PartSpec, SourceSpec, StackSpec } from './stack-spec.ts';

/** Parts of one stack. */
export const MAX_PARTS = 16;

const SOURCES = new Set(['file', 'memory', 'null', 'nbd', 'http', 's3']);
const LAYERS = new Set(['limit', 'fault', 'crypt', 'overlay', 'qcow2', 'zoned']);

export function isSource(part: PartSpec): part is SourceSpec {
  return SOURCES.has(part.kind);
}

/**
 * A source at the bottom and nowhere else.
 * @throws ConfigError, below `path`.
 */
export function checkStack(stack: StackSpec, path: string): void {
  if (stack.length === 0 || stack.length > MAX_PARTS) {
    throw new ConfigError(path, `has ${stack.length} parts, expected 1 to ${MAX_PARTS}`);
  }
  for (const [i, part] of stack.entries()) {
    if (!SOURCES.has(part.kind) && !LAYERS.has(part.kind)) {
      throw new ConfigError(`${path}[${i}]`, `'${String(part.kind)}' is no kind of layer`);
    }
    if (part.kind === 'zoned') checkAbove(stack.slice(0, i), `${path}[${i}]`);
    const isLast = i === stack.length - 1;
    if (part.kind === 'file' && isLast && part.uring === 'on' && hasLayers(stack)) {
      const text =
        'uring=on is for a file that the data plane drives; layers do without: remove it';
      throw new ConfigError(`${path}[${i}]`, text);
    }
    if (isSource(part) === isLast) continue;
    const names = [...SOURCES].join(', ');
    const text = isLast
      ? `${part.kind} stands on something: add ${names} after it`
      : `${part.kind} holds the bytes and comes last, but ${stack[i + 1]!.kind} follows`;
    throw new ConfigError(`${path}[${i}]`, text);
  }
}

/** Limits at the top need none. */
function hasLayers(stack: StackSpec): boolean {
  return stack.findIndex(({ kind }) => kind !== 'limit') < stack.length - 1;
}

/** Where data goes is what zones are about: what moves or changes it belongs below them. */
function checkAbove(above: StackSpec, path: string): void {
  if (above.length === 0 || (above.length === 1 && above[0]!.kind === 'limit')) return;
  const kinds = above.map(({ kind }) => kind).join(', ');
  throw new ConfigError(path, `zoned has ${kinds} above it; only one limit may be, the rest below`);
}
