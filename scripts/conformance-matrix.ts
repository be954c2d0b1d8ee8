/**
 * `npm run conformance`: runs the conformance checks against our own back-end and every peer that
 * is installed, and writes the matrix into docs/conformance.md.
 *
 *   npm run conformance                 all peers
 *   npm run conformance -- dpdk qemu    those whose name contains one of the words
 *   npm run conformance -- --from DIR   no runs: the JSON reports of an earlier one
 *
 * Reports go to build/conformance/NAME.json. The matrix is written once all peers have one, so
 * that no column is lost. Needs root, huge pages, and the packages of scripts/ci-peers.sh.
 */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { readOptions, wrongUsage } from './options.ts';
import { reserveHugePages } from '../test/peers/hugepages.ts';
import {
  BACK_END_CHECKS,
  type DeviceProfile,
  FRONT_END_RULES,
  PROFILES,
  type Report,
  type ReportedCheck,
  runBackEnd,
  runFrontEnd,
  textReport,
} from '../src/conformance/index.ts';

const ROOT = join(import.meta.dirname, '..');
const REPORTS = join(ROOT, 'build', 'conformance');
const PAGE = join(ROOT, 'docs', 'conformance.md');
const VRING = `${process.execPath} ${join(ROOT, 'src/cli/main.ts')}`;

type Peer = {
  readonly name: string;
  /** Head of its column. */
  readonly title: string;
  readonly side: 'back-end' | 'front-end';
  readonly device: string;
  /** Program without which it is left out. */
  readonly program: string | null;
  readonly hugePagesMib?: number;
  readonly command: (folder: string, socket: string) => string;
};

const TESTPMD =
  'dpdk-testpmd --lcores 0@0,1@1 --in-memory --single-file-segments --no-pci -m 64 --no-telemetry';
const QEMU =
  'qemu-system-x86_64 -M q35,accel=tcg -cpu max -m 256 -display none -nodefaults -serial stdio ' +
  '-monitor none -object memory-backend-memfd,id=mem,size=256M,share=on -numa node,memdev=mem';

function vring(name: string, title: string, options: string): Peer {
  const command = (folder: string, socket: string): string =>
    `${VRING} switch --quiet --port a=vhost-user:${socket},reflect${options} ` +
    `--control ${folder}/control`;
  return { name, title, side: 'back-end', device: 'net', program: null, command };
}

const PEERS: readonly Peer[] = [
  vring('vring', 'vring', ',postcopy=on'),
  vring('vring-iommu', 'vring, iommu=on', ',iommu=on'),
  {
    name: 'dpdk',
    title: 'DPDK net_vhost',
    side: 'back-end',
    device: 'net',
    program: '/usr/bin/dpdk-testpmd',
    hugePagesMib: 64,
    command: (_folder, socket) =>
      `${TESTPMD} --vdev net_vhost0,iface=${socket},queues=1,iommu-support=1 -- -i --auto-start ` +
      '--nb-cores=1 --forward-mode=io --port-topology=loop --total-num-mbufs=2048',
  },
  {
    name: 'qsd',
    title: 'qemu-storage-daemon',
    side: 'back-end',
    device: 'blk',
    program: '/usr/bin/qemu-storage-daemon',
    command: (folder, socket) =>
      `qemu-storage-daemon --blockdev driver=file,filename=${folder}/disk.img,node-name=n0 ` +
      `--export type=vhost-user-blk,id=e0,node-name=n0,addr.type=unix,addr.path=${socket},` +
      'writable=on,num-queues=1',
  },
  {
    name: 'virtiofsd',
    title: 'virtiofsd (C)',
    side: 'back-end',
    device: 'fs',
    program: '/usr/lib/qemu/virtiofsd',
    command: (folder, socket) =>
      `/usr/lib/qemu/virtiofsd --socket-path=${socket} -o source=${folder}/share ` +
      '-o sandbox=chroot -o cache=always',
  },
  {
    name: 'qemu-net',
    title: 'QEMU net',
    side: 'front-end',
    device: 'net',
    program: '/usr/bin/qemu-system-x86_64',
    command: (_folder, socket) =>
      `${VRING} vm --socket ${socket} --demo-guest --ip 10.0.0.5/24 --accel tcg --run`,
  },
  {
    name: 'qemu-blk',
    title: 'QEMU blk',
    side: 'front-end',
    device: 'blk',
    program: '/usr/bin/qemu-system-x86_64',
    command: (_folder, socket) =>
      `${QEMU} -chardev socket,id=c0,path=${socket},reconnect=1 ` +
      '-device vhost-user-blk-pci,chardev=c0,num-queues=1,bootindex=0',
  },
  {
    name: 'virtio-user',
    title: 'DPDK virtio-user',
    side: 'front-end',
    device: 'net',
    program: '/usr/bin/dpdk-testpmd',
    hugePagesMib: 64,
    command: (_folder, socket) =>
      `${TESTPMD} --vdev net_virtio_user0,path=${socket},queues=1,queue_size=256 -- -i ` +
      '--auto-start --forward-mode=txonly --nb-cores=1 --total-num-mbufs=2048',
  },
];

async function run(peer: Peer): Promise<Report> {
  const folder = mkdtempSync(join(tmpdir(), 'vring-conform-'));
  const socket = join(folder, 's');
  writeFileSync(join(folder, 'disk.img'), new Uint8Array(16 << 20));
  mkdirSync(join(folder, 'share'));
  if (peer.hugePagesMib !== undefined) reserveHugePages(peer.hugePagesMib);
  const command = peer.command(folder, socket);
  try {
    if (peer.side === 'front-end') {
      return await runFrontEnd({ socket, device: peer.device, seconds: 5, spawn: command });
    }
    return await runBackEnd({
      socket,
      profile: PROFILES[peer.device] as DeviceProfile,
      level: 'destructive',
      respawn: command,
      // A busy poller may lose its core for a while: what it does not do at once it may do later.
      patience: { answerMs: 2000, quietMs: peer.name === 'dpdk' ? 300 : 120 },
    });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

const MARKS = { pass: 'pass', fail: 'FAIL', error: 'error', 'not applicable': '–' } as const;

type Column = { readonly peer: Peer; readonly report: Report };

function mark(report: Report, id: string): string {
  const found = report.checks.find((each) => each.id === id);
  if (found === undefined) return ' ';
  return found.critical ? 'DIES' : MARKS[found.verdict];
}

function table(
  columns: readonly Column[],
  checks: readonly { id: string; severity: string; title: string }[],
): string {
  const titles = columns.map(({ peer }) => peer.title);
  const lines = [
    `| check | | ${titles.join(' | ')} | what |`,
    `|---|---|${titles.map(() => ':-:|').join('')}---|`,
  ];
  for (const { id, severity, title } of checks) {
    const marks = columns.map(({ report }) => mark(report, id));
    lines.push(`| ${id} | ${severity} | ${marks.join(' | ')} | ${title} |`);
  }
  return lines.join('\n');
}

function summary(columns: readonly Column[]): string {
  const lines = [
    '| peer | device | pass | fail | dies | n/a | error |',
    '|---|---|--:|--:|--:|--:|--:|',
  ];
  for (const { peer, report } of columns) {
    const { counts } = report;
    const dies = report.checks.filter((each) => each.critical).length;
    const cells = [counts.pass, counts.fail - dies, dies, counts['not applicable'], counts.error];
    lines.push(`| ${peer.title} | ${peer.device} | ${cells.join(' | ')} |`);
  }
  return lines.join('\n');
}

/** Checks that no peer but ourselves has an opinion on. */
function withoutWitness(columns: readonly Column[], ids: readonly string[]): string[] {
  const others = columns.filter(({ peer }) => !peer.name.startsWith('vring'));
  const judged = (each: ReportedCheck | undefined): boolean =>
    each !== undefined && (each.verdict === 'pass' || each.verdict === 'fail');
  return ids.filter(
    (id) => !others.some(({ report }) => judged(report.checks.find((each) => each.id === id))),
  );
}

function generated(columns: readonly Column[]): string {
  const back = columns.filter(({ peer }) => peer.side === 'back-end');
  const front = columns.filter(({ peer }) => peer.side === 'front-end');
  const alone = withoutWitness(
    back,
    BACK_END_CHECKS.map(({ id }) => id),
  );
  const aloneFront = withoutWitness(
    front,
    FRONT_END_RULES.map(({ id }) => id),
  );
  return [
    summary(columns),
    `\n### Back-ends\n\n${table(back, BACK_END_CHECKS)}`,
    `\n### Front-ends\n\n${table(front, FRONT_END_RULES)}`,
    '\n### Checks without a third-party witness\n',
    `Of back-ends (${alone.length}): ${alone.join(', ') || 'none'}.\n`,
    `Of front-ends (${aloneFront.length}): ${aloneFront.join(', ') || 'none'}.`,
  ].join('\n');
}

const BEGIN = '<!-- matrix: npm run conformance -->';
const END = '<!-- end of matrix -->';

function writePage(columns: readonly Column[]): void {
  const page = readFileSync(PAGE, 'utf8');
  const [head] = page.split(BEGIN) as [string];
  const tail = page.split(END)[1] ?? '';
  writeFileSync(PAGE, `${head}${BEGIN}\n\n${generated(columns)}\n\n${END}${tail}`);
}

const USAGE = `npm run conformance -- [options] [WORD...]
  WORD         only peers whose name contains it: ${PEERS.map(({ name }) => name).join(', ')}
  --from DIR   no runs: the JSON reports of an earlier one`;

const { values, positionals: words } = readOptions(USAGE, {
  options: { from: { type: 'string' } },
  allowPositionals: true,
});
const from = values.from ?? null;
for (const word of words) {
  if (PEERS.some(({ name }) => name.includes(word))) continue;
  wrongUsage(USAGE, `no peer's name contains "${word}"`);
}
const wanted = (peer: Peer): boolean =>
  from !== null || words.length === 0 || words.some((word) => peer.name.includes(word));
mkdirSync(REPORTS, { recursive: true });
for (const peer of PEERS.filter(wanted)) {
  if (from !== null) continue;
  if (peer.program !== null && !existsSync(peer.program)) {
    console.log(`${peer.name}: ${peer.program} is not installed`);
    continue;
  }
  console.log(`${peer.name} ...`);
  const report = await run(peer);
  writeFileSync(join(REPORTS, `${peer.name}.json`), `${JSON.stringify(report, null, 1)}\n`);
  console.log(textReport(report).split('\n').at(-1));
}
const columns = PEERS.flatMap((peer): Column[] => {
  const path = join(from ?? REPORTS, `${peer.name}.json`);
  if (!existsSync(path)) return [];
  return [{ peer, report: JSON.parse(readFileSync(path, 'utf8')) as Report }];
});
const missing = PEERS.filter((peer) => !columns.some((column) => column.peer === peer));
if (missing.length === 0) {
  writePage(columns);
  console.log(`${PAGE} is written`);
} else {
  const names = missing.map(({ name }) => name).join(', ');
  console.log(`${PAGE} is left as it is: no report of ${names} in ${from ?? REPORTS}`);
}
