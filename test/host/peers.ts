/** What the test host needs from other packages, by the names that `requirePeer` knows. */
import { BUILD_TOOLS } from './modules.ts';

/** Programs that the files inside run; inside they come from the machine outside. */
const INSIDE_PEERS = [
  'ip',
  'vdpa',
  'modprobe',
  'busybox',
  'tcpdump',
  'socat',
  'mkfs.ext4',
  'fsck.ext4',
  'qemu-storage-daemon',
  'cryptsetup',
];

export const TEST_HOST_PEERS = [
  'qemu-system-x86_64',
  'linux kernel',
  'linux headers',
  'linux source',
  'virtiofsd',
  'unshare',
  ...BUILD_TOOLS,
  ...INSIDE_PEERS,
];
