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
export type { CutResult } from './fault/power-cut-layer.ts';
export { type Extent, type Layer, LayerError } from './layer/layer.ts';
export {
  type ExportTlsOptions,
  NbdError,
  type NbdExportOptions,
  type NbdExportStatus,
  parseExport,
} from './nbd/index.ts';
export { checkStack } from './stack/check-stack.ts';
export {
  type FormatImageOptions,
  formatLuks2Image,
  type FormattedImage,
} from './stack/format-luks2-image.ts';
export { openStack, type OpenStackOptions } from './stack/open-stack.ts';
export { parsePart, parseStack } from './stack/parse-part.ts';
export { parseBytes } from './stack/part-options.ts';
export type * from './stack/stack-spec.ts';
export * from './io-batch.ts';
export { EXTENTS_BYTES, readExtents } from './extent-records.ts';
export type { ZoneShape } from './zoned/zone-types.ts';
export { createNullImage } from './null-image.ts';
export { canErase, openEngine } from './open-engine.ts';
