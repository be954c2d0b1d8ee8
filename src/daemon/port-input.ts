/**
 * The configuration as people write it: zod schemas of a port and of the whole switch. YAML files,
 * `--port` and `POST /v1/ports` all pass through them. Every message says what is expected, as the
 * end of the sentence "VALUE is not ..."; `config-problem.ts` writes the rest.
 */
import * as z from 'zod';
import { MAX_DISKS, MAX_PORTS, MAX_WORKERS } from '../base/limits.ts';
import { DEFAULT_POLICY, PORT_POLICIES } from '../devices/net/index.ts';
import { MAC_CAPACITY_MAX } from '../switch/index.ts';
import { DiskInput } from './disks/disk-input.ts';
import { AdapterInput } from './disks/scsi-input.ts';
import {
  bool,
  fileMode,
  int,
  mapping,
  NAME,
  NAME_RULE,
  owner,
  socketPath,
  text,
} from './input-fields.ts';
import { DEFAULT_CONTROL_PATH } from './switch-control.ts';

/** Longest name of a network interface: IFNAMSIZ is 16 and counts the zero. */
export const MAX_INTERFACE_BYTES = 15;
/** MAX_VRINGS is 129: 64 pairs and the control queue. */
export const MAX_QUEUE_PAIRS = 64;
/** Queues of one uplink. */
export const MAX_UPLINK_QUEUES = 64;
/** Most addresses learned from one port; a switch may have MAC_CAPACITY_MAX. */
export const MAX_MAC_ENTRIES = 65536;

const CORES = 'a list of cores, one for each worker, such as [2, 3]; or null';

const vid = () => int(1, 4094, 'a VLAN ID');

const vlanMapping = z.discriminatedUnion(
  'mode',
  [
    mapping({ mode: z.literal('access'), vid: vid() }, 'a mapping with mode and vid'),
    mapping(
      {
        mode: z.literal('trunk'),
        allowed: z
          .union(
            [
              z.literal('all'),
              z.array(vid()).min(1, { error: 'a list with at least one VLAN ID' }).max(4094, {
                error: 'a list of at most 4094 VLAN IDs',
              }),
            ],
            { error: '"all" or a list of VLAN IDs' },
          )
          .default('all')
          .meta({ description: 'VLANs that may cross the port, tagged.' }),
        native: z
          .union([vid(), z.null()], { error: 'a VLAN ID from 1 to 4094, or null' })
          .default(null)
          .meta({
            description:
              'VLAN of untagged frames, in both directions. null: untagged frames are dropped.',
          }),
      },
      'a mapping with mode, allowed and native',
    ),
  ],
  { error: 'one of access, trunk' },
);

export const VlanInput = z
  .union([vid(), vlanMapping], {
    error: 'a VLAN ID from 1 to 4094, or a mapping with mode: access or mode: trunk',
  })
  .meta({
    description:
      'A number is the VLAN of an access port: frames arrive and leave untagged, tagged ones are ' +
      'dropped. A mapping with `mode: trunk` lets tagged frames through.',
  });

const offload = mapping(
  {
    csum: bool()
      .optional()
      .meta({ default: true, description: 'Checksums may be left to the receiver.' }),
    tso: bool()
      .optional()
      .meta({ default: true, description: 'TCP segments up to 64 KiB. Needs csum.' }),
    uso: bool()
      .optional()
      .meta({ default: true, description: 'UDP segments up to 64 KiB. Needs csum.' }),
  },
  'a mapping with csum, tso and uso',
);

export const portName = () => text(NAME, `a port name (${NAME_RULE})`);

export const policy = () => z.enum(PORT_POLICIES, { error: `one of ${PORT_POLICIES.join(', ')}` });

const common = {
  name: portName().meta({ description: 'Unique name of the port; 1 to 63 characters.' }),
  vlan: VlanInput.default(1),
  mtu: int(68, 65535, 'bytes of IP in one frame')
    .default(1500)
    .meta({ description: 'Bytes of IP that fit one frame; a guest that asks is told.' }),
  offload: offload
    .optional()
    .meta({ default: {}, description: 'What may be left to the receiver of a frame.' }),
  reflect: bool()
    .default(false)
    .meta({ description: 'Every frame goes back to its port: measures one port alone.' }),
  macLimit: int(1, MAX_MAC_ENTRIES, 'MAC addresses')
    .default(1024)
    .meta({ description: 'Most MAC addresses learned from this port; more are not learned.' }),
  policy: policy()
    .optional()
    .meta({ description: 'What the port is tuned for; when absent, what the switch says.' }),
};

const MAC = 'a unicast MAC address, such as "52:54:00:12:34:56"';
const UNICAST = /^(?!00:00:00:00:00:00$)[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}$/;

const vhostUserPort = mapping(
  {
    ...common,
    kind: z.literal('vhost-user').meta({ description: 'A VM, or any vhost-user front-end.' }),
    path: socketPath().meta({ description: 'The Unix socket; absolute, at most 107 bytes.' }),
    mode: z.enum(['server', 'client'], { error: 'one of server, client' }).default('server').meta({
      description:
        '`server` listens on `path`; `client` connects to it, and again whenever it ends.',
    }),
    socketOwner: owner()
      .optional()
      .meta({ description: 'Owner of the socket, `user:group` or `uid:gid`; server mode only.' }),
    socketMode: fileMode()
      .optional()
      .meta({
        type: ['string', 'integer'],
        default: '0660',
        description: 'File mode of the socket, octal; server mode only.',
      }),
    queuePairs: int(1, MAX_QUEUE_PAIRS, 'pairs of queues')
      .default(1)
      .meta({ description: 'Pairs of queues that a front-end may use.' }),
    mac: text(UNICAST, MAC)
      .optional()
      .meta({ description: 'MAC address offered to the guest; none when absent.' }),
    packed: bool().default(true).meta({ description: 'Offer packed rings.' }),
    mrgRxbuf: bool().default(true).meta({ description: 'Offer mergeable receive buffers.' }),
    iommu: bool()
      .default(false)
      .meta({ description: 'Offer ACCESS_PLATFORM, for a guest behind a virtual IOMMU.' }),
    postcopy: bool()
      .default(false)
      .meta({
        description:
          'Offer PAGEFAULT, for postcopy migration. A VMM that then brings no pages holds up ' +
          'all ports of the switch: only for VMMs that are trusted with that.',
      }),
  },
  'a mapping with name, kind and path',
);

const interfaceName = (example: string) =>
  text(
    /^(?!\.\.?$)[^\s/:\0,]{1,15}$/,
    `an interface name of 1 to ${MAX_INTERFACE_BYTES} bytes, such as ${example}`,
  );

const tapPort = mapping(
  {
    ...common,
    kind: z.literal('tap').meta({ description: 'A TAP interface of this host.' }),
    interface: interfaceName('tap0').meta({
      description: 'Name of the TAP interface; made when it does not exist.',
    }),
    queues: int(1, MAX_UPLINK_QUEUES, 'queues').default(1).meta({
      description:
        'Queues of the interface, chosen by flow. One that exists must be `multi_queue`.',
    }),
  },
  'a mapping with name, kind and interface',
);

const packetPort = mapping(
  {
    ...common,
    kind: z.literal('packet').meta({
      description: "An interface of this host, beside the host's own stack: AF_PACKET.",
    }),
    interface: interfaceName('eth1').meta({ description: 'Name of the interface; it exists.' }),
    queues: int(1, MAX_UPLINK_QUEUES, 'queues')
      .default(1)
      .meta({ description: 'Sockets that share what arrives, by flow.' }),
    qdiscBypass: bool()
      .default(true)
      .meta({
        description:
          'Send past the queueing discipline of the interface: faster, and what does not fit its ' +
          'queue is dropped.',
      }),
  },
  'a mapping with name, kind and interface',
);

const xdpPort = mapping(
  {
    ...common,
    kind: z.literal('xdp').meta({
      description: "An interface of this host, instead of the host's own stack: AF_XDP.",
    }),
    interface: interfaceName('eth1').meta({ description: 'Name of the interface; it exists.' }),
    queues: int(1, MAX_UPLINK_QUEUES, 'queues').optional().meta({
      description: 'Receive queues of the interface that the port has, from 0 on; all if absent.',
    }),
    copyMode: z
      .enum(['auto', 'copy', 'zero-copy'], { error: 'one of auto, copy, zero-copy' })
      .default('auto')
      .meta({
        description:
          '`zero-copy`: the driver uses our memory, or the port is refused; `copy`: the kernel ' +
          'copies; `auto`: zero copy where the driver has it.',
      }),
    attach: z
      .enum(['auto', 'native', 'generic'], { error: 'one of auto, native, generic' })
      .default('auto')
      .meta({
        description:
          "Where the XDP program runs: in the driver (`native`), in the kernel's stack " +
          '(`generic`), or in the driver if it can.',
      }),
  },
  'a mapping with name, kind and interface',
);

const DEVICE = 'a device name of at most 255 of A-Z a-z 0-9 _ . : -, such as net0';

const vdusePort = mapping(
  {
    ...common,
    kind: z.literal('vduse').meta({ description: 'A vDPA device of this host: VDUSE.' }),
    device: text(/^(?!\.\.?$|control$)[\w.:-]{1,255}$/, DEVICE).meta({
      description: 'Its name in /dev/vduse and on the vDPA bus; one that is there is gone on with.',
    }),
    mac: text(UNICAST, MAC)
      .optional()
      .meta({ description: 'MAC address offered to the driver; none when absent.' }),
    packed: bool().default(true).meta({ description: 'Offer packed rings.' }),
    mrgRxbuf: bool().default(true).meta({ description: 'Offer mergeable receive buffers.' }),
    bind: z
      .enum(['virtio', 'vhost', 'none'], { error: 'one of virtio, vhost, none' })
      .default('virtio')
      .meta({
        description:
          '`virtio`: the kernel drives it, a network interface of this host; `vhost`: a process ' +
          'does, by /dev/vhost-vdpa-N; `none`: it is not put onto the vDPA bus.',
      }),
    keep: bool()
      .default(false)
      .meta({ description: 'Leave the device when the port goes, for a successor.' }),
  },
  'a mapping with name, kind and device',
);

export const PortInput = z.discriminatedUnion(
  'kind',
  [vhostUserPort, tapPort, packetPort, xdpPort, vdusePort],
  { error: 'one of vhost-user, tap, packet, xdp, vduse' },
);
export type PortInput = z.output<typeof PortInput>;

/** `PATCH /v1/ports/{name}`. */
export const PortUpdateInput = mapping(
  {
    vlan: VlanInput.optional(),
    linkUp: bool().optional().meta({ description: 'false takes the link down for the guest.' }),
    mtu: int(68, 65535, 'bytes of IP in one frame')
      .optional()
      .meta({ description: 'A guest that runs is told; Linux takes it when its driver starts.' }),
    policy: policy().optional().meta({ description: 'What the port is tuned for from now on.' }),
  },
  'an object with vlan, linkUp, mtu or policy',
);

const HTTP = 'a loopback address and port, such as 127.0.0.1:9100';

export const SwitchInput = mapping(
  {
    ports: z
      .array(PortInput, { error: 'a list of ports' })
      .max(MAX_PORTS, { error: `a list of at most ${MAX_PORTS} ports` })
      .default([])
      .meta({ description: `The ports, at most ${MAX_PORTS}; more can be added later.` }),
    disks: z
      .array(DiskInput, { error: 'a list of disks' })
      .max(MAX_DISKS, { error: `a list of at most ${MAX_DISKS} disks` })
      .default([])
      .meta({ description: `The disks, at most ${MAX_DISKS}; more can be added later.` }),
    scsi: z
      .array(AdapterInput, { error: 'a list of SCSI adapters' })
      .max(MAX_DISKS, { error: `a list of at most ${MAX_DISKS} SCSI adapters` })
      .default([])
      .meta({
        description: `SCSI adapters, with disks at most ${MAX_DISKS}; more can be added later.`,
      }),
    stateFile: text(/^\/[^\0]{1,4094}$/, 'an absolute path')
      .optional()
      .meta({
        description:
          'Where disks and SCSI adapters that the API added are remembered. When absent: beside ' +
          'the control socket, which a restart survives and a reboot does not.',
      }),
    control: mapping(
      {
        path: socketPath()
          .default(DEFAULT_CONTROL_PATH)
          .meta({ description: 'Unix socket of the control API.' }),
        mode: fileMode()
          .default('0660')
          .meta({ type: ['string', 'integer'], description: 'Its file mode, octal.' }),
        owner: owner().optional().meta({ description: 'Its owner, `user:group` or `uid:gid`.' }),
      },
      'a mapping with path, mode and owner',
    )
      .prefault({})
      .meta({ description: 'Where the control API listens.' }),
    http: text(/^(localhost|127(\.\d{1,3}){3}|\[::1\]):\d{1,5}$/, HTTP)
      .nullable()
      .default(null)
      .meta({ description: 'Also serve the read-only part of the API and /metrics here.' }),
    mac: mapping(
      {
        ageingSeconds: int(1, 86400, 'seconds')
          .default(300)
          .meta({ description: 'An address that was silent this long is forgotten.' }),
        limit: int(1, MAC_CAPACITY_MAX, 'MAC addresses')
          .default(16384)
          .meta({ description: 'Most learned addresses of the switch.' }),
      },
      'a mapping with ageingSeconds and limit',
    )
      .prefault({})
      .meta({ description: 'The MAC table.' }),
    spinMicroseconds: int(0, 10000, 'microseconds').default(50).meta({
      description: 'How long a worker polls an empty queue before it sleeps; see docs/latency.md.',
    }),
    policy: policy()
      .default(DEFAULT_POLICY)
      .meta({ description: 'What ports are tuned for that do not say it themselves.' }),
    workers: int(1, MAX_WORKERS, 'workers')
      .default(1)
      .meta({ description: 'Threads of the data plane; see workers.md.' }),
    workerCores: z
      .array(int(0, 1023, 'a core'), { error: CORES })
      .min(1, { error: CORES })
      .nullable()
      .default(null)
      .meta({ description: 'The core of each worker, as many as workers; null: any.' }),
  },
  'a mapping with ports, disks, scsi, control, http, mac, spinMicroseconds, policy, ' +
    'workers or workerCores',
);
export type SwitchInput = z.output<typeof SwitchInput>;
