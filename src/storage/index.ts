/** Engines: where the bytes of a disk are. Never sees virtio. */
export {
  createMemoryImage,
  type DiskImage,
  type EngineSpec,
  type FileImageOptions,
  MAX_DISK_BYTES,
  openFileImage,
  SECTOR_BYTES,
} from './disk-image.ts';
export type { Engine } from './engine.ts';
export { type Extent, type Layer, LayerError } from './layer/layer.ts';
export { NbdError, type NbdExportOptions, type NbdExportStatus } from './nbd/index.ts';
export { checkStack } from './stack/check-stack.ts';
export { openStack, type OpenStackOptions } from './stack/open-stack.ts';
export { parseBytes, parsePart, parseStack } from './stack/parse-part.ts';
export type * from './stack/stack-spec.ts';
export * from './io-batch.ts';
export { createNullImage } from './null-image.ts';
export { canErase, openEngine } from './open-engine.ts';
