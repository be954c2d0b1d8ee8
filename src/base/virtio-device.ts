/**
 * The second contract: what a back-end hosts. A device never knows how it is reached: the same
 * object is served over vhost-user, VDUSE or in-process. A host masks the features that it
 * cannot carry.
 *
 * This is the control half. The data half is a module that a worker loads (`planeModule`).
 */
export interface VirtioDevice {
  /** Virtio device ID (virtio 1.2, section 5): 1 is net, 2 is blk. */
  readonly deviceId: number;
  /** Most virtqueues that a driver may use. */
  readonly queueCount: number;
  /** Largest size of a virtqueue. */
  readonly queueSizeMax: number;
  /** Feature bits offered to the driver, ring and transport bits included. */
  readonly features: bigint;
  /** Why the device does not work with these features, for people: FEATURES_OK stays clear. */
  refuses?(acked: bigint): string | null;
  /** Device configuration space, little-endian. */
  readConfig(offset: number, sizeBytes: number): Uint8Array | null;
  /** False where the field is read-only or the range is outside the space. */
  writeConfig(offset: number, bytes: Uint8Array): boolean;
}
