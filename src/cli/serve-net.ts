/** `vring serve net`: a network device and its uplink, which is a switch of two ports. */
import { resolve } from 'node:path';
import { Command, Option } from 'commander';
import { ConfigError } from '../base/errors.ts';
import { buildConfig, problemLines } from '../daemon/index.ts';
import { type Served, serveUntilSignal } from './serve-run.ts';
import { complain, printable, UsageError } from './output.ts';

const EXAMPLES = `
Examples:
  vring serve net --vduse net0 --tap tap0 --mac 52:54:00:00:00:01
  vring serve net --vduse net0 --tap tap0 --bind vhost   for a VM by /dev/vhost-vdpa-N
  vring serve net --socket /run/net0.sock --tap tap0     over vhost-user
  vring serve net --vduse net0 --tap tap0 --json         one line of JSON when it is ready

After a crash the same command goes on with the device. SIGTERM takes it away, unless --keep.
Exit status: 0 ended by a signal, 1 failed, 2 wrong usage.`;

export type ServeNetOptions = {
  readonly vduse?: string;
  readonly socket?: string;
  readonly tap?: string;
  readonly mac?: string;
  readonly mtu?: string;
  readonly queues?: string;
  readonly bind: string;
  readonly packed: boolean;
  readonly keep?: boolean;
  readonly json?: boolean;
  readonly quiet?: boolean;
};

/** Names of the two ports, in events. */
const DEVICE_PORT = 'device';
const UPLINK_PORT = 'uplink';

export function serveNetCommand(): Command {
  return new Command('net')
    .summary('a network device whose frames go to a TAP interface')
    .description('Serves a network device whose frames go to and come from a TAP interface.')
    .option('--vduse <name>', 'as vDPA device NAME of this kernel')
    .option('--socket <path>', 'over vhost-user, listening at PATH')
    .option('--tap <interface>', 'where its frames go; without it they come back to the device')
    .option('--mac <address>', 'address offered to the driver')
    .option('--mtu <bytes>', 'bytes of IP in one frame')
    .option('--queues <pairs>', 'pairs of queues (--socket; over VDUSE there is one)')
    .addOption(
      new Option('--bind <driver>', 'who drives it (--vduse)')
        .choices(['virtio', 'vhost', 'none'])
        .default('virtio'),
    )
    .option('--no-packed', 'offer no packed rings')
    .option('--keep', 'leave the device to a successor at the end (--vduse)')
    .option('--json', 'the ready line as JSON')
    .option('-q, --quiet', 'no events on standard error')
    .addHelpText('after', EXAMPLES)
    .action(async (options: ServeNetOptions) => {
      process.exitCode = await serveNet(options);
    });
}

async function serveNet(options: ServeNetOptions): Promise<number> {
  const ports = portSpecs(options);
  let config;
  try {
    config = buildConfig({ file: undefined, ports, control: undefined, http: undefined });
  } catch (thrown) {
    if (!(thrown instanceof ConfigError)) throw thrown;
    throw new UsageError(problemLines(thrown).join('\n'));
  }
  return await serveUntilSignal(() => start(options, config), options);
}

/** The words of `vring switch --port`: one place says what they may be. */
export function portSpecs(options: ServeNetOptions): string[] {
  const { vduse, socket, tap, mac, mtu, queues, bind, packed, keep } = options;
  if ((vduse === undefined) === (socket === undefined)) {
    throw new UsageError('say how the device is reached: --vduse NAME or --socket PATH');
  }
  if (socket !== undefined && (keep === true || bind !== 'virtio')) {
    throw new UsageError('--keep and --bind belong to --vduse; remove them, or --socket');
  }
  for (const [flag, value] of Object.entries({ vduse, socket, tap, mac, mtu, queues })) {
    if (value?.includes(',')) throw new UsageError(`--${flag}: ${value}: takes no comma`);
  }
  const words: string[] = [];
  if (mac !== undefined) words.push(`mac=${mac}`);
  if (mtu !== undefined) words.push(`mtu=${mtu}`);
  if (queues !== undefined && !(vduse !== undefined && queues === '1')) {
    words.push(`queues=${queues}`);
  }
  if (!packed) words.push('packed=off');
  if (vduse !== undefined) words.push(`bind=${bind}`);
  if (keep === true) words.push('keep=on');
  if (tap === undefined) words.push('reflect');
  const endpoint = vduse === undefined ? `vhost-user:${resolve(socket!)}` : `vduse:${vduse}`;
  const specs = [[`${DEVICE_PORT}=${endpoint}`, ...words].join(',')];
  const uplinkMtu = mtu === undefined ? '' : `,mtu=${mtu}`;
  if (tap !== undefined) specs.push(`${UPLINK_PORT}=tap:${tap}${uplinkMtu}`);
  return specs;
}

async function start(
  options: ServeNetOptions,
  config: ReturnType<typeof buildConfig>,
): Promise<Served> {
  const { VirtualSwitch } = await import('../daemon/virtual-switch.ts');
  let fail: (error: Error) => void = () => undefined;
  const failed = new Promise<Error>((resolveFailed) => (fail = resolveFailed));
  // The uplink first: a driver that is ready may send at once.
  const network = await VirtualSwitch.start({ ...config, ports: config.ports.toReversed() });
  network.on('error', fail);
  const show = ({ kind, message }: { kind: string; message: string }): void => {
    if (options.quiet !== true) complain(printable(`${kind}: ${message}`));
    if (kind === 'device-gone') fail(new Error(message));
  };
  for (const event of network.events()) show(event);
  network.on('event', show);
  const presence = network.presence(DEVICE_PORT);
  return {
    readiness: {
      device: 'net',
      name: options.vduse ?? null,
      socket: options.socket === undefined ? null : resolve(options.socket),
      driver: presence?.driver ?? null,
      node: presence?.node ?? null,
      interface: presence?.interface ?? null,
      resumed: presence?.resumed ?? false,
    },
    failed,
    close: () => network.close(),
  };
}
