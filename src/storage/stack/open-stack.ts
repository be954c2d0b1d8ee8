/** From what a disk is made of to an image that a device can be served from; in the main thread. */
import { LayeredImage } from '../bridge/layered-image.ts';
import { createMemoryImage, type DiskImage, openFileImage } from '../disk-image.ts';
import { patiently } from '../file/image-lock.ts';
import { LimitedImage } from '../limit/limited-image.ts';
import { checkRates, LimitCells } from '../limit/rate-limits.ts';
import { DirectImage } from './direct-image.ts';
import { createNullImage } from '../null-image.ts';
import { checkStack } from './check-stack.ts';
import type { SourceSpec, StackSpec } from './stack-spec.ts';

export type OpenStackOptions = {
  readonly stack: StackSpec;
  readonly readOnly?: boolean;
  /** What people should hear: which disk, what, where, why; at most once a second. */
  readonly onProblem?: (message: string) => void;
  /** What carries the disk's requests out has ended by itself: `DiskImage.failure`. */
  readonly onCrash?: (error: Error) => void;
  /** The thread that NBD exports run on has ended; the disk goes on. */
  readonly onExportsLost?: (error: Error) => void;
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
  // Limits at the top hold in the data plane, where nothing waits for a thread.
  const limits: LimitCells[] = [];
  for (const part of stack) {
    if (part.kind !== 'limit') break;
    const cells = new LimitCells();
    cells.rates = checkRates(part, 'limit');
    limits.push(cells);
  }
  const exportLimits = limits.map(({ buffer }) => buffer);
  const rest = { ...options, stack: stack.slice(limits.length) };
  const image = await openUnlimited(rest, exportLimits);
  return limits.reduceRight((below: DiskImage, cells) => new LimitedImage(below, cells), image);
}

async function openUnlimited(
  options: OpenStackOptions,
  exportLimits: readonly SharedArrayBuffer[],
): Promise<DiskImage> {
  const { stack, readOnly = false, onProblem = () => undefined } = options;
  const { environment, onCrash, onExportsLost } = options;
  const bottom = stack.at(-1) as SourceSpec;
  const isBase = stack.some(({ kind }) => kind === 'overlay');
  const isLayered = stack.length > 1;
  const source = await openDirect(bottom, readOnly || isBase, isLayered);
  const where = environment === undefined ? {} : { environment };
  const crash = onCrash === undefined ? {} : { onCrash };
  const lost = onExportsLost === undefined ? {} : { onExportsLost };
  warnOfClearText(stack, onProblem);
  if (source !== null && !isLayered) {
    return new DirectImage({ image: source, stack, exportLimits, onProblem, ...lost, ...where });
  }
  try {
    const how = { stack, source, readOnly, exportLimits };
    return await LayeredImage.open({ ...how, onProblem, ...crash, ...where });
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
async function openDirect(
  spec: SourceSpec,
  readOnly: boolean,
  isLayered: boolean,
): Promise<DiskImage | null> {
  if (spec.kind === 'file') return patiently(() => openFileImage({ ...spec, readOnly, isLayered }));
  if (spec.kind === 'memory') return createMemoryImage(spec.sizeBytes, readOnly);
  if (spec.kind === 'null') return createNullImage(spec.sizeBytes, readOnly);
  return null;
}
