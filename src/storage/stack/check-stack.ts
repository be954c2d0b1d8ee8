import { ConfigError } from '../../base/errors.ts';
import type { PartSpec, SourceSpec, StackSpec } from './stack-spec.ts';

/** Parts of one stack. */
export const MAX_PARTS = 16;

const SOURCES = new Set(['file', 'memory', 'null', 'nbd', 'http', 's3']);
const LAYERS = new Set(['limit', 'fault', 'crypt', 'overlay', 'qcow2']);

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
    const isLast = i === stack.length - 1;
    if (isSource(part) === isLast) continue;
    const names = [...SOURCES].join(', ');
    const text = isLast
      ? `${part.kind} stands on something: add ${names} after it`
      : `${part.kind} holds the bytes and comes last, but ${stack[i + 1]!.kind} follows`;
    throw new ConfigError(`${path}[${i}]`, text);
  }
}
