/** Capture of a switch port's frames as pcapng. */
export { type CaptureRing, CaptureRingReader, createCaptureRing } from './capture-ring.ts';
export { CaptureStream, type CaptureStreamOptions } from './capture-stream.ts';
export { CaptureTap } from './capture-tap.ts';
export * from './pcapng.ts';
