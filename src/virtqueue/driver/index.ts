export { ringLayout, type RingLayout } from '../../wire/virtio.ts';
export * from './driver-batch.ts';
export * from './driver-queue.ts';
export * from './driver.hot.ts';
export * from './queue-pair.ts';
