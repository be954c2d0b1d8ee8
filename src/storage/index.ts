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
export * from './io-batch.ts';
export { openEngine } from './open-engine.ts';
