/** From what a disk is made of to an image that a device can be served from; in the main thread. */
import { LayeredImage } from '../bridge/layered-image.ts';
import { createMemoryImage, type DiskImage, openFileImage } from '../disk-image.ts';
import { LimitedImage } from '../limit/limited-image.ts';
import { DirectImage } from './direct-image.ts';
import { createNullImage } from '../null-image.ts';
import { checkStack } from './check-stack.ts';
import type { SourceSpec, StackSpec } from './stack-spec.ts';

export type OpenStackOptions = {
  readonly stack: StackSpec;
  readonly readOnly?: boolean;
  /** What people should hear: which disk, what, where, why; at most once a second. */
  readonly onProblem?: (message: string) => void;
  /** Of a storage thread: `workerEnvironment()` of the runtime. */
  readonly environment?: NodeJS.ProcessEnv;
};

/**
 * Files and memory by themselves are driven by the data plane directly; any other stack gets a
 * storage thread. Below an overlay everything is opened read-only.
 * @throws ConfigError, SysError, VringError of the part that cannot be opened.
 */
export async function openStack(options: OpenStackOptions): Promise<DiskImage> {
  const { stack } = options;
  checkStack(stack, 'layers');
  const [top] = stack;
  if (top?.kind !== 'limit') return openUnlimited(options);
  // Limits at the top hold in the data plane, where nothing waits for a thread.
  const image = await openStack({ ...options, stack: stack.slice(1) });
  try {
    return new LimitedImage(image, top);
  } catch (error) {
    await image.close();
    throw error;
  }
}

async function openUnlimited(options: OpenStackOptions): Promise<DiskImage> {
  const { stack, readOnly = false, onProblem = () => undefined, environment } = options;
  const bottom = stack.at(-1) as SourceSpec;
  const isBase = stack.some(({ kind }) => kind === 'overlay');
  const isLayered = stack.length > 1;
  // A second open file with O_DIRECT, which no layer uses, would hold a lock of a base of its own.
  const spec = bottom.kind === 'file' && isBase ? { ...bottom, direct: 'off' as const } : bottom;
  const source = openDirect(spec, readOnly || isBase, isLayered);
  const where = environment === undefined ? {} : { environment };
  warnOfClearText(stack, onProblem);
  if (source !== null && !isLayered) {
    return new DirectImage({ image: source, stack, onProblem, ...where });
  }
  try {
    return await LayeredImage.open({ stack, source, readOnly, onProblem, ...where });
  } catch (error) {
    await source?.close();
    throw error;
  }
}

/** What is written above a cipher never reaches it. */
function warnOfClearText(stack: StackSpec, onProblem: (message: string) => void): void {
  const cipher = stack.findIndex(({ kind }) => kind === 'crypt');
  const above = stack.slice(0, Math.max(cipher, 0)).find((part) => part.kind === 'overlay');
  if (above?.kind !== 'overlay') return;
  const text = 'stands above crypt, so what the guest writes is kept there in the clear';
  onProblem(`overlay:${above.folder} ${text}; put crypt above it to encrypt that, too`);
}

/** A file in which a format lives has any size. */
function openDirect(spec: SourceSpec, readOnly: boolean, anySize: boolean): DiskImage | null {
  if (spec.kind === 'file') return openFileImage({ ...spec, readOnly, anySize });
  if (spec.kind === 'memory') return createMemoryImage(spec.sizeBytes, readOnly);
  if (spec.kind === 'null') return createNullImage(spec.sizeBytes, readOnly);
  return null;
}
