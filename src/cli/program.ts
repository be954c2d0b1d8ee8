/**
 * The commands of `vring`: names, options, help. What a command does is imported when it runs, so
 * that `vring --help` loads nothing but this and the parser.
 */
import { Command, CommanderError } from 'commander';
import { VERSION } from '../daemon/version.ts';

/** Commands with options of their own file: loaded when they are the ones called. */
const LATE: Readonly<
  Record<string, { summary: string; load: (args: readonly string[]) => Promise<Command> }>
> = {
  compare: {
    summary: 'one workload over every data path: vhost-user, vhost-net, vDPA, in-process',
    load: async () => (await import('./compare.ts')).compareCommand(),
  },
  conform: {
    summary: 'test a vhost-user back-end or front-end, rule by rule',
    load: async () => (await import('./conform.ts')).conformCommand(),
  },
  disk: {
    summary: 'one disk as a vhost-user-blk back-end program, as QEMU and libvirt start them',
    load: async (args) => (await import('./disk.ts')).diskCommand(args),
  },
  disks: {
    summary: 'list, add, remove, resize, limit, snapshot and export the disks of a daemon',
    load: async () => (await import('./disks.ts')).disksCommand(),
  },
  export: {
    summary: 'serve an image by NBD, without a device',
    load: async () => (await import('./export.ts')).exportCommand(),
  },
  format: {
    summary: 'make an encrypted image',
    load: async () => (await import('./format.ts')).formatCommand(),
  },
  guest: {
    summary: 'run a software guest on a port: ping, frame rates, without any VM',
    load: async () => (await import('./guest.ts')).guestCommand(),
  },
  record: {
    summary: 'stand between a front-end and a back-end and write down what they say',
    load: async () => (await import('./record.ts')).recordCommand(),
  },
  replay: {
    summary: 'drive a back-end with a recording and compare its answers',
    load: async () => (await import('./replay.ts')).replayCommand(),
  },
  scsi: {
    summary: 'list, add and remove the SCSI adapters of a daemon, attach and detach their units',
    load: async () => (await import('./scsi.ts')).scsiCommand(),
  },
  serve: {
    summary: 'serve one device, to the kernel (VDUSE) or to a VM (vhost-user)',
    load: async () => (await import('./serve.ts')).serveCommand(),
  },
  vdpa: {
    summary: 'vDPA devices of this kernel: list, add, delete, bind to a driver',
    load: async () => (await import('./vdpa-command.ts')).vdpaCommand(),
  },
  vm: {
    summary: 'QEMU command line and libvirt XML for a port, or start QEMU on it',
    load: async () => (await import('./vm.ts')).vmCommand(),
  },
};

/** Status of a wrong command line; commander's own is 1. */
const USAGE_STATUS = 2;

export async function buildProgram(args: readonly string[]): Promise<Command> {
  const program = new Command('vring')
    .description('The vhost stack for TypeScript: a virtual switch that VMs plug into.')
    .version(VERSION, '-V, --version', 'print the version of this program')
    .helpCommand('help [command]', 'show the help of a command');
  addSwitch(program);
  addPorts(program);
  addViews(program);
  addCapture(program);
  const words = args.filter((word) => !word.startsWith('-'));
  const called = words[0] === 'help' ? words[1] : words[0];
  for (const [name, { summary, load }] of Object.entries(LATE)) {
    if (called === name) program.addCommand(await load(args));
    else program.command(name).description(summary);
  }
  examples(program, [
    ['vring switch --port vm0=vhost-user:/run/vring/vm0.sock', 'start a switch with one port'],
    ['vring port add up=tap:tap0', 'connect it to the host'],
    ['vring ports', 'what is attached'],
    ['vring vm --help', 'how a VM attaches'],
  ]);
  throwInsteadOfExit(program);
  return program;
}

/** Runs the command line. Returns the exit status; throws what a command throws. */
export async function runProgram(args: readonly string[]): Promise<number> {
  const program = await buildProgram(args);
  try {
    if (args.length === 0) {
      program.outputHelp({ error: true });
      return USAGE_STATUS;
    }
    await program.parseAsync([...args], { from: 'user' });
  } catch (thrown) {
    if (!(thrown instanceof CommanderError)) throw thrown;
    return thrown.exitCode === 0 ? 0 : USAGE_STATUS;
  }
  return Number(process.exitCode ?? 0);
}

/** Commands of their own file do not inherit what the program is told. */
function throwInsteadOfExit(command: Command): void {
  command.exitOverride().showHelpAfterError('(add --help for usage and examples)');
  for (const inner of command.commands) throwInsteadOfExit(inner);
}

/** Lines of the help's end, aligned. */
function examples(command: Command, rows: readonly (readonly [string, string])[]): Command {
  const width = Math.min(60, Math.max(...rows.map(([line]) => line.length)));
  const lines = rows.map(([line, what]) =>
    what === '' ? `  ${line}` : `  ${line.padEnd(width)}  # ${what}`,
  );
  return command.addHelpText('after', `\nExamples:\n${lines.join('\n')}`);
}

/** Options of every command that talks to a running switch. */
function client(command: Command): Command {
  return command
    .option('--control <path>', 'socket of the switch (env VRING_CONTROL)')
    .option('--json', 'JSON instead of text');
}

function collect(value: string, earlier: readonly string[] = []): string[] {
  return [...earlier, value];
}

function addSwitch(program: Command): void {
  const command = program
    .command('switch')
    .summary('run a switch in the foreground')
    .description(
      'Runs a switch in the foreground until SIGTERM or SIGINT. Prints one line on standard ' +
        'output when all ports and disks are there, events on standard error.',
    )
    .option('-c, --config <file>', 'YAML configuration, "-" for standard input')
    .option('-p, --port <spec>', 'a port; may be given many times', collect)
    .option('--control <path>', 'socket of the control API (env VRING_CONTROL)')
    .option('--http <address>', 'also serve metrics and states here, such as 127.0.0.1:9100')
    .option('--latency', 'tune ports that say nothing else for short round trips')
    .option('--throughput', 'the same: for many frames')
    .option('--power', 'the same: for little processor time')
    .option('--workers <count>', 'threads of the data plane (1)')
    .option('--worker-cores <list>', 'the core of each of them, such as 2,3 (any)')
    .option('--check', 'check the configuration and end')
    .option('--take-over', 'take the ports and guests of the switch that runs at --control')
    .option('--json', 'readiness and events as JSON lines on standard output')
    .option('-q, --quiet', 'no events')
    .addHelpText(
      'after',
      `
Ports:
  NAME=vhost-user:PATH[,OPTION...]   a VM: QEMU connects to PATH
  NAME=tap:INTERFACE[,OPTION...]     a TAP interface of this host
  NAME=packet:INTERFACE[,OPTION...]  an interface that is there, by AF_PACKET
  NAME=xdp:INTERFACE[,OPTION...]     an interface that is there, by AF_XDP
  NAME=vduse:DEVICE[,OPTION...]      an interface of this host by VDUSE
  client              connect to PATH instead of listening on it   (vhost-user)
  queues=N            pairs of queues, 1 to 64                     (vhost-user)
  queues=N            of the interface               (tap, packet, xdp)
  mode=auto|copy|zero-copy   attach=auto|native|generic            (xdp)
  qdisc-bypass=off    through the interface's queueing discipline  (packet)
  mode=0660 owner=USER:GROUP   of the socket                       (vhost-user)
  mac=52:54:00:...    address offered to the guest          (vhost-user, vduse)
  packed=off mrg=off  features not to offer                 (vhost-user, vduse)
  bind=vhost|none     for /dev/vhost-vdpa-N, or not yet            (vduse)
  keep=on             leave the device to a successor              (vduse)
  iommu=on            for a guest behind a virtual IOMMU           (vhost-user)
  postcopy=on         for postcopy migration; trusted VMMs only    (vhost-user)
  vlan=VID            access port of this VLAN (default 1)
  trunk=VID+VID or trunk=all, native=VID
  mtu=N  mac-limit=N  csum=off  tso=off  uso=off  reflect
  policy=latency|balanced|throughput|power   what it is tuned for

Disks are in the file (disks:, scsi:), or come by "vring disks add" and "vring scsi add":
docs/disks.md.`,
    )
    .action(async (options) => {
      const { runSwitch } = await import('./switch-command.ts');
      process.exitCode = await runSwitch(options, async (config) => {
        const { VirtualSwitch } = await import('../daemon/virtual-switch.ts');
        return VirtualSwitch.start(config);
      });
    });
  examples(command, [
    ['vring switch --port vm0=vhost-user:/run/vring/vm0.sock', 'one port'],
    [
      'vring switch -p a=vhost-user:a.sock,vlan=10 -p up=tap:tap0,trunk=all',
      'a VLAN and an uplink',
    ],
    ['vring switch --config /etc/vring/switch.yaml', 'from a file'],
    ['vring switch --config switch.yaml --check', 'is the file right?'],
    ['vring switch --take-over', 'a newer vring, guests stay'],
  ]);
}

function addPorts(program: Command): void {
  examples(
    client(program.command('ports'))
      .summary('list the ports with state and counters')
      .description('Lists the ports with state and counters.'),
    [
      ['vring ports', 'a table, and why a port is not up'],
      ['vring ports --json | jq \'.[] | select(.state != "up") | .name\'', 'for scripts'],
    ],
  ).action(async (options) => (await import('./port-commands.ts')).showPorts(options));

  const port = program
    .command('port')
    .summary('show, add, remove or change one port')
    .description('Shows, adds, removes or changes one port.');
  examples(port, [
    ['vring port add vm1=vhost-user:/run/vring/vm1.sock', 'a port more'],
    ['vring port set vm1 --link down', 'pull the plug'],
  ]);
  examples(
    client(port.command('show <name>'))
      .summary('everything about a port')
      .description(
        'Everything about a port: what was negotiated, memory, messages, dirty log, IOTLB, ' +
          'queues, and each counter that is not zero.',
      ),
    [
      ['vring port show vm0', 'features, memory, queues, counters'],
      ['vring port show vm0 --json | jq .session', 'all of the session, for scripts'],
    ],
  ).action(async (name, options) => (await import('./port-commands.ts')).showPort(name, options));
  examples(
    client(port.command('add <spec>'))
      .summary('add a port')
      .description('Adds a port to the running switch; <spec> as for vring switch --port.'),
    [
      ['vring port add vm1=vhost-user:/run/vring/vm1.sock,vlan=10', 'for a VM'],
      ['vring port add up=tap:tap0,trunk=10+20,native=1', 'an uplink'],
    ],
  ).action(async (spec, options) => (await import('./port-commands.ts')).addPort(spec, options));
  examples(
    client(port.command('remove <name>'))
      .summary('remove a port and its socket')
      .description('Ends its session and removes its socket.'),
    [['vring port remove vm1', '']],
  ).action(async (name, options) => (await import('./port-commands.ts')).removePort(name, options));
  examples(
    client(port.command('set <name>'))
      .summary('change a port while it runs')
      .description('Changes a port while it runs.')
      .option('--link <up|down>', 'what the guest sees as its cable')
      .option('--vlan <vid>', 'make it an access port of this VLAN')
      .option('--trunk <vids>', 'make it a trunk: "all", or VLANs as 10+20')
      .option('--native <vid>', 'VLAN of untagged frames on the trunk, or "none"')
      .option('--mtu <bytes>', 'bytes of IP in one frame, from now on')
      .option('--policy <name>', 'latency, balanced, throughput or power, from now on'),
    [
      ['vring port set vm1 --link down', 'pull the plug'],
      ['vring port set up --trunk 10+20 --native 1', 'a trunk'],
      ['vring port set vm1 --mtu 9000', 'guests that can are told'],
      ['vring port set vm1 --policy power', 'fewer wake-ups, longer round trips'],
    ],
  ).action(async (name, options) => (await import('./port-commands.ts')).setPort(name, options));
}

function addViews(program: Command): void {
  examples(
    client(program.command('stats'))
      .summary('rates per second, live on a terminal')
      .description('Rates per second of all ports, live on a terminal.')
      .option('--once', 'measure one interval and end')
      .option('-i, --interval <seconds>', 'time between two measurements', '1'),
    [
      ['vring stats', 'follow'],
      ['vring stats --once --interval 5 --json', 'five seconds, for a script'],
    ],
  ).action(async (options) => (await import('./stats-command.ts')).showStats(options));

  examples(
    client(program.command('macs'))
      .summary('learned MAC addresses')
      .description('Learned MAC addresses.')
      .option('--port <name>', 'only of this port')
      .option('--flush', 'forget them'),
    [
      ['vring macs --port up', 'who is behind the uplink'],
      ['vring macs --flush', 'learn everything anew'],
    ],
  ).action(async (options) => (await import('./port-commands.ts')).showMacs(options));

  examples(
    client(program.command('events'))
      .summary('what happened: sessions, links, faults')
      .description('What happened: sessions, links, faults.')
      .option('-f, --follow', 'go on with what happens')
      .option('-n, --last <count>', 'only the last ones'),
    [
      ['vring events --last 20', ''],
      ['vring events --follow --json', 'one JSON object per line'],
    ],
  ).action(async (options) => (await import('./event-command.ts')).showEvents(options));

  examples(
    client(program.command('version'))
      .summary('versions of this program and the switch')
      .description('Versions of this program and the switch.'),
    [['vring version', '']],
  ).action(async (options) => (await import('./port-commands.ts')).showVersion(options));
}

function addCapture(program: Command): void {
  examples(
    client(program.command('capture <port>'))
      .summary('frames of a port, both directions, as pcapng')
      .description('Frames of a port, both directions, as pcapng.')
      .option('-w, --write <file>', 'file to write, "-" for standard output', '-')
      .option('-s, --snaplen <bytes>', 'bytes kept of each frame')
      .option('-c, --count <frames>', 'end after so many frames')
      .option('-t, --seconds <seconds>', 'end after so many seconds'),
    [
      ['vring capture vm0 -w vm0.pcapng --seconds 10', 'to a file'],
      ['vring capture vm0 | wireshark -k -i -', 'live'],
      ['vring capture vm0 --count 5 | tcpdump -n -r -', 'a look'],
    ],
  ).action(async (port, options) => (await import('./capture-command.ts')).capture(port, options));
}
