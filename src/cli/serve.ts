/** `vring serve`: one virtio device, over VDUSE or vhost-user. Each kind of device has its file. */
import { Command } from 'commander';
import { serveBlkCommand } from './serve-blk.ts';
import { serveNetCommand } from './serve-net.ts';
import { serveScsiCommand } from './serve-scsi.ts';

/** What can be served; a kind brings its own command. */
const DEVICES: readonly (() => Command)[] = [serveNetCommand, serveBlkCommand, serveScsiCommand];

const EXAMPLES = `
Examples:
  vring serve net --vduse net0 --tap tap0      a network interface of this host
  vring serve net --socket /run/n0.sock        the same device, for a VM
  vring serve blk --vduse disk0 --file a.img   a disk of this host, /dev/vdX
  vring serve scsi --socket s.sock --lun 0:0=a.img    disks for a VM

A device over VDUSE belongs to the kernel and outlives this process: after a crash, the same command
goes on with it. Needs root and the module vduse; docs/vduse.md says what kernels have it.`;

export function serveCommand(): Command {
  const command = new Command('serve')
    .summary('serve one device, to the kernel (VDUSE) or to a VM (vhost-user)')
    .description('Serves one virtio device until SIGTERM or SIGINT.')
    .addHelpText('after', EXAMPLES);
  for (const device of DEVICES) command.addCommand(device());
  return command;
}
