/** How Linux numbers its ioctls: asm-generic/ioctl.h, the same on x86-64 and arm64. */

const DIRECTION_SHIFT = 30;
const SIZE_SHIFT = 16;
const TYPE_SHIFT = 8;
const WRITE = 1; // the process writes, the kernel reads
const READ = 2;

/** One ioctl of a device. */
export type Ioctl = {
  /** As the header has it: `VHOST_SET_OWNER`. */
  readonly name: string;
  readonly request: number;
  /** First Linux that has it; for the message on a kernel that does not. */
  readonly since: string;
};

function ioctl(direction: number, type: number, number: number, sizeBytes: number): number {
  const bits = (direction << DIRECTION_SHIFT) | (sizeBytes << SIZE_SHIFT);
  return (bits | (type << TYPE_SHIFT) | number) >>> 0;
}

export const io = (type: number, number: number): number => ioctl(0, type, number, 0);
export const iow = (type: number, number: number, sizeBytes: number): number =>
  ioctl(WRITE, type, number, sizeBytes);
export const ior = (type: number, number: number, sizeBytes: number): number =>
  ioctl(READ, type, number, sizeBytes);
export const iowr = (type: number, number: number, sizeBytes: number): number =>
  ioctl(READ | WRITE, type, number, sizeBytes);
