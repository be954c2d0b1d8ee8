/**
 * `vring guest net ...`: the software guest on the command line. What each command does stands in
 * guest-actions.ts; here are the names, the options and their checks.
 */
import { Command, InvalidArgumentError, Option } from 'commander';
import { BACKEND_FORMS } from '../guest/index.ts';
import { isMacText } from '../wire/ethernet.ts';
import {
  bulkReceive,
  bulkSend,
  echo,
  info,
  ping,
  pps,
  runAction,
  sink,
  type GuestOptions,
} from './guest-actions.ts';
import { addBlkCommands } from './guest-blk.ts';
import { addScsiCommands } from './guest-scsi.ts';
import { addVsockCommands } from './guest-vsock.ts';

const EXAMPLES = `
Examples:
  Two guests on two ports of a switch, one answers, the other asks:
    vring guest net --socket /run/vring/vm1.sock --ip 10.0.0.2/24 echo
    vring guest net --socket /run/vring/vm0.sock --ip 10.0.0.1/24 ping 10.0.0.2 -c 3
  IPv6, a VLAN tag, a packed ring:
    vring guest net --socket vm0.sock --ip6 fd00::1/64 --vlan 10 --ring packed ping fd00::2
  How many frames per second: one guest sends, the other one counts:
    vring guest net --socket vm1.sock --mac 02:00:00:00:00:02 sink
    vring guest net --socket vm0.sock pps --size 64 --seconds 5 --to 02:00:00:00:00:02
  The same through one port that reflects, or through DPDK's testpmd in io mode:
    vring guest net --socket vm0.sock pps --size 1500 --seconds 5 --loop --json
  A guest that outlives its switch, behind a virtual IOMMU:
    vring guest net --socket vm1.sock --reconnect --iommu --ip 10.0.0.2/24 echo
  A guest that moves to another port while it works, whenever it is told to:
    vring guest net --socket vm1.sock --migrate-to vm2.sock --ip 10.0.0.2/24 echo &
    kill -USR1 $!
  The same guest on the kernel's vhost-net, or as its own device, with the host behind a TAP:
    vring guest net --backend vhost-net:tap0 --ip 10.0.0.1/24 ping 10.0.0.2
    vring guest net --backend in-process:tap0 --ip 10.0.0.1/24 echo
  What did the back-end offer, and what was negotiated:
    vring guest net --socket vm0.sock --features +ctrl_vq,-tso info
  100 MiB with retransmission and a checksum compare:
    vring guest net --socket vm1.sock --ip 10.0.0.2/24 bulk-receive
    vring guest net --socket vm0.sock --ip 10.0.0.1/24 bulk-send 10.0.0.2 --size 100M

Results go to standard output, messages to standard error.
Exit status: 0 success, 1 failure (nobody answered, data differ, the back-end is missing or broke
the protocol), 2 wrong usage.`;

/** The command tree below `vring guest`. */
export function guestCommand(): Command {
  const guest = new Command('guest')
    .description('A guest without a VM, to exercise back-ends.')
    .addHelpText('after', EXAMPLES);
  const net = guest
    .command('net')
    .summary('a virtio-net guest on any back-end, with a small network stack')
    .description(
      'A virtio-net guest with a small network stack, on a vhost-user socket, on the ' +
        "kernel's vhost-net or vhost-vDPA, or with its device in its own process.",
    )
    .option('--backend <which>', BACKEND_FORMS)
    .option('--socket <path>', 'short for --backend vhost-user:PATH; one of both is required')
    .option('--server', 'listen on the socket and wait for the back-end', false)
    .option('--ip <address>', 'IPv4 address and prefix, e.g. 10.0.0.1/24')
    .option('--ip6 <address>', 'IPv6 address and prefix, e.g. fd00::1/64')
    .option('--gateway <address>', 'next hop for addresses outside the network')
    .option('--mac <address>', 'MAC address (default: the one of the device, or made up)', macText)
    .option('--vlan <id>', 'send and take frames with this 802.1Q tag', integer(1, 4094))
    .addOption(
      new Option('--ring <format>', 'ring format').choices(['split', 'packed']).default('split'),
    )
    .option('--ring-size <n>', 'descriptors of each ring', integer(2, 32768), 256)
    .option('--queues <n>', 'queue pairs', integer(1, 64), 1)
    .option('--features <list>', 'force features on or off: +in_order,-csum,-tso')
    .option(
      '--mtu <bytes>',
      'bytes of IP in a frame (default: what the device says)',
      integer(68, 65535),
    )
    .option('--huge-pages', 'guest memory from 2 MiB pages (vm.nr_hugepages)', false)
    .option('--poll', 'poll for received frames and ask for no call', false)
    .option('--reconnect', 'survive a back-end that goes away, and wait for the next one', false)
    .option('--migrate-to <which>', 'on SIGUSR1 move to this back-end or socket, then back')
    .addOption(
      new Option(
        '--iommu [mode]',
        'a virtual IOMMU: offset (default) maps all memory at once, scatter each range elsewhere',
      )
        .argParser(iommuMode)
        .preset('offset'),
    )
    .option('--json', 'print results as JSON, one object per line', false)
    .addHelpText('after', EXAMPLES);
  addStackCommands(net);
  addTrafficCommands(net);
  addBlkCommands(guest);
  addScsiCommands(guest);
  addVsockCommands(guest);
  return guest;
}

function addStackCommands(net: Command): void {
  net
    .command('ping')
    .description('send ICMP echo requests; status 1 when none is answered')
    .argument('<address>', 'IPv4 or IPv6 address')
    .option('-c, --count <n>', 'requests', integer(1, 1_000_000), 4)
    .option('-i, --interval <seconds>', 'between two requests', decimal(0, 3600), 1)
    .option('-s, --payload <bytes>', 'bytes behind the ICMP header', integer(0, 65500), 56)
    .option('-W, --timeout <seconds>', 'wait for an answer', decimal(0.001, 3600), 1)
    .addHelpText(
      'after',
      calls('--ip 10.0.0.1/24 ping 10.0.0.2 -c 3', '--ip6 fd00::1/64 ping fd00::2 -i 0.1 -c 100'),
    )
    .action(action(ping));
  net
    .command('echo')
    .description('answer ARP, neighbour discovery and ping, reflect UDP, until SIGTERM')
    .option('--seconds <n>', 'end after so long', decimal(0.1, 1e6))
    .addHelpText(
      'after',
      calls('--ip 10.0.0.2/24 echo', '--ip 10.0.0.2/24 --reconnect echo --seconds 60'),
    )
    .action(action(echo));
  net
    .command('bulk-send')
    .description('send a file or made-up bytes reliably, and compare SHA-256 at the end')
    .argument('<address>', 'address of the guest that runs bulk-receive')
    .option('--size <bytes>', 'how much, with K, M or G', byteCount, 16 * 1024 * 1024)
    .option('--file <path>', 'send this file instead')
    .option('--port <n>', 'UDP port', integer(1, 65535), 7700)
    .addHelpText(
      'after',
      calls(
        '--ip 10.0.0.1/24 bulk-send 10.0.0.2 --size 100M',
        '--ip 10.0.0.1/24 bulk-send 10.0.0.2 --file disk.img',
      ),
    )
    .action(action(bulkSend));
  net
    .command('bulk-receive')
    .description('receive one transfer of bulk-send')
    .option('--out <path>', 'write the bytes here')
    .option('--port <n>', 'UDP port', integer(1, 65535), 7700)
    .option('--wait <seconds>', 'wait for a sender (default: forever)', decimal(0.1, 1e6))
    .addHelpText(
      'after',
      calls(
        '--ip 10.0.0.2/24 bulk-receive',
        '--ip 10.0.0.2/24 bulk-receive --out copy.img --wait 10',
      ),
    )
    .action(action(bulkReceive));
  net
    .command('info')
    .description('print what was offered and negotiated, and the configuration space')
    .addHelpText('after', calls('info', '--features +ctrl_vq,-tso --json info'))
    .action(action(info));
}

function addTrafficCommands(net: Command): void {
  net
    .command('pps')
    .description('send numbered test frames as fast as possible, count and check what comes')
    .option(
      '--size <bytes>',
      'bytes of a frame, Ethernet header included, FCS not',
      integer(62, 65549),
      64,
    )
    .option('--seconds <n>', 'how long', decimal(0.1, 1e6), 5)
    .option('--to <mac>', 'destination MAC address (default: broadcast)', macText)
    .option('--flows <n>', 'flows: UDP ports and addresses that take turns', integer(1, 1024), 1)
    .option(
      '--first-flow <n>',
      'number of the first flow, where several guests send',
      integer(0, 1023),
      0,
    )
    .option('--rate <frames>', 'frames per second, with k or M (default: as many as go)', frameRate)
    .option('--window <frames>', 'with --loop: frames under way at most', integer(1, 32768))
    .option('--loop', 'the port reflects: status 1 when nothing comes back, losses are told', false)
    .option(
      '--echo',
      'send nothing of our own: swap the MAC addresses of what comes and return it',
      false,
    )
    .addOption(
      new Option('--gso <kind>', 'frames that the back-end has to segment, --size may be 65549')
        .choices(['none', 'tcp4', 'tcp6', 'udp4', 'udp6'])
        .default('none'),
    )
    .option('--gso-size <bytes>', 'payload of each segment', integer(20, 65535), 1400)
    .option(
      '--verify-every <n>',
      'compare all bytes of every n-th frame, 0: none',
      integer(0, 1e9),
      16,
    )
    .addHelpText(
      'after',
      calls(
        'pps --size 64 --seconds 5 --to 02:00:00:00:00:02',
        'pps --size 1500 --loop --window 64',
      ),
    )
    .action(action(pps));
  net
    .command('sink')
    .description("count and check the frames of another guest's pps until SIGTERM")
    .option('--seconds <n>', 'end after so long', decimal(0.1, 1e6))
    .option(
      '--verify-every <n>',
      'compare all bytes of every n-th frame, 0: none',
      integer(0, 1e9),
      16,
    )
    .option('--min-frames <n>', 'status 1 when fewer came', integer(0, 1e15), 0)
    .addHelpText(
      'after',
      calls('--mac 02:00:00:00:00:02 sink', 'sink --seconds 5 --min-frames 1000'),
    )
    .action(action(sink));
}

/** Examples of one command; the options in front of it are those of `vring guest net`. */
function calls(...lines: readonly string[]): string {
  const net = 'vring guest net --socket /run/vring/vm0.sock';
  return `\nExamples:\n${lines.map((line) => `  ${net} ${line}`).join('\n')}`;
}

type Handler = (options: GuestOptions, argument: string) => Promise<number>;

/** Commander calls an action with the arguments, the options and the command. */
function action(handler: Handler): (...parts: unknown[]) => Promise<void> {
  return async (...parts) => {
    const command = parts.at(-1) as Command;
    const argument = typeof parts[0] === 'string' ? parts[0] : '';
    const options = command.optsWithGlobals<GuestOptions>();
    process.exitCode = await runAction(() => handler(options, argument), options.json);
  };
}

function integer(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (/^\d+$/.test(text) && value >= least && value <= most) return value;
    throw new InvalidArgumentError(`A whole number from ${least} to ${most} is expected.`);
  };
}

function decimal(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (/^\d*\.?\d+$/.test(text) && value >= least && value <= most) return value;
    throw new InvalidArgumentError(`A number from ${least} to ${most} is expected.`);
  };
}

/** `1.5M` is 1500000. */
function frameRate(text: string): number {
  const match = /^(\d+(?:\.\d+)?)([kM]?)$/.exec(text);
  if (match === null)
    throw new InvalidArgumentError('A number like 1000, 50k or 1.5M is expected.');
  return Math.round(Number(match[1]) * ({ '': 1, k: 1e3, M: 1e6 }[match[2]] ?? 1));
}

/** `64K` is 65536. */
function byteCount(text: string): number {
  const match = /^(\d+(?:\.\d+)?)([KMG]?)$/i.exec(text);
  if (match === null)
    throw new InvalidArgumentError('A number like 4096, 64K, 16M or 1G is expected.');
  const unit = { '': 1, K: 1024, M: 1024 ** 2, G: 1024 ** 3 }[match[2].toUpperCase()] ?? 1;
  return Math.round(Number(match[1]) * unit);
}

function iommuMode(text: string): string {
  if (text === 'offset' || text === 'scatter') return text;
  const expected = 'Expected is offset or scatter; in front of a command write --iommu offset.';
  throw new InvalidArgumentError(expected);
}

function macText(text: string): string {
  if (isMacText(text)) return text.toLowerCase();
  throw new InvalidArgumentError('A MAC address like 02:00:00:00:00:01 is expected.');
}
