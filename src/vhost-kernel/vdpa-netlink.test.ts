import assert from 'node:assert/strict';
import { existsSync, read, write } from 'node:fs';
import { test } from 'node:test';
import { VringError } from '../base/errors.ts';
import { NetlinkSocket, openFdCount, socketPair } from '../sys/index.ts';
import * as netlink from '../wire/netlink.ts';
import * as vdpa from '../wire/vdpa-netlink.ts';
import { bindVdpa, vdpaPresence, VdpaNetlink } from './index.ts';

const code = (expected: string) => (error: unknown) =>
  error instanceof VringError && error.code === expected;

test("the real kernel's controller answers, and says what it does not know", async () => {
  const before = openFdCount();
  const socket = NetlinkSocket.open(netlink.NETLINK_GENERIC);
  const request = (name: string, sequence: number) =>
    netlink.encodeGeneric({
      family: netlink.GENL_ID_CTRL,
      flags: netlink.NLM_F_ACK,
      sequence,
      command: netlink.CTRL_CMD_GETFAMILY,
      version: 1,
      attributes: [netlink.stringAttribute(netlink.CTRL_ATTR_FAMILY_NAME, name)],
    });
  await socket.send(request('nlctrl', 7));
  const [found] = netlink.decodeMessages(await socket.receive());
  assert.ok(found?.kind === 'data' && found.sequence === 7);
  const attributes = (type: number) => netlink.attributesOf(found.body, type)[0];
  assert.equal(netlink.textOf(attributes(netlink.CTRL_ATTR_FAMILY_NAME)), 'nlctrl');
  assert.equal(netlink.numberOf(attributes(netlink.CTRL_ATTR_FAMILY_ID)), 0x10n);
  const [ack] = netlink.decodeMessages(await socket.receive());
  assert.deepEqual(ack, { kind: 'error', sequence: 7, errno: 0, text: '' });

  await socket.send(request('no-such-family', 8));
  const [refusal] = netlink.decodeMessages(await socket.receive());
  assert.ok(refusal?.kind === 'error' && refusal.errno === 2);
  socket.close();
  socket.close();
  assert.equal(openFdCount(), before);
});

test('a kernel without vDPA is told from one that refuses', async (t) => {
  if (existsSync('/sys/bus/vdpa')) return t.skip('this kernel has vDPA');
  const before = openFdCount();
  await assert.rejects(VdpaNetlink.open(), (error: unknown) => {
    assert.ok(code('ERR_VRING_KERNEL_LACKS')(error));
    assert.match((error as Error).message, /modprobe vdpa.*docs\/vduse\.md/);
    return true;
  });
  assert.equal(openFdCount(), before);
  for (const name of ['v0', '../../net/lo', 'a b']) {
    await assert.rejects(bindVdpa(name, 'vhost_vdpa'), code('ERR_VRING_VDPA_UNKNOWN'));
    await assert.rejects(vdpaPresence(name), code('ERR_VRING_VDPA_UNKNOWN'));
  }
});

/** A kernel that answers what the test says; keeps what it was asked. */
class FakeKernel {
  readonly asked: Uint8Array[] = [];
  readonly vdpa: VdpaNetlink;
  readonly #fds: { number: number; close(): void }[];

  constructor(answers: (sequence: number) => Uint8Array[]) {
    const [ours, theirs] = socketPair();
    this.#fds = [ours, theirs];
    const socket = Object.create(NetlinkSocket.prototype, {
      send: {
        value: (message: Uint8Array) =>
          new Promise<void>((resolve) => {
            this.asked.push(message.slice());
            const { nlmsgSeq } = netlink.NetlinkHeader.decode(message);
            write(theirs.number, Buffer.concat(answers(nlmsgSeq)), () => resolve());
          }),
      },
      receive: {
        value: () =>
          new Promise<Uint8Array>((resolve, reject) => {
            const into = new Uint8Array(65536);
            read(ours.number, into, 0, into.length, null, (error, bytes) =>
              error === null ? resolve(into.subarray(0, bytes)) : reject(error),
            );
          }),
      },
      close: { value: () => this.close() },
    }) as NetlinkSocket;
    this.vdpa = new VdpaNetlink(socket, 33);
  }

  close(): void {
    for (const fd of this.#fds) fd.close();
  }
}

function answer(type: number, flags: number, sequence: number, body: Uint8Array): Uint8Array {
  const nlmsgLen = 16 + body.length;
  const head = { nlmsgLen, nlmsgType: type, nlmsgFlags: flags, nlmsgSeq: sequence, nlmsgPid: 1 };
  return Buffer.concat([netlink.NetlinkHeader.encode(head), body]);
}

const data = (sequence: number, attributes: Uint8Array[]) =>
  answer(33, 0, sequence, Buffer.concat([new Uint8Array(4), ...attributes]));

function error(sequence: number, errno: number, text = ''): Uint8Array {
  const body = new Uint8Array(4 + 16);
  new DataView(body.buffer).setInt32(0, -errno, true);
  const words = text === '' ? [] : [netlink.stringAttribute(netlink.NLMSGERR_ATTR_MSG, text)];
  const flags = text === '' ? 0 : netlink.NLM_F_CAPPED | netlink.NLM_F_ACK_TLVS;
  return answer(netlink.NLMSG_ERROR, flags, sequence, Buffer.concat([body, ...words]));
}

test('adding says all that was asked for, and only that', async () => {
  const kernel = new FakeKernel((sequence) => [error(sequence, 0)]);
  const mac = Uint8Array.of(2, 0, 0, 0, 0, 1);
  await kernel.vdpa.add({
    name: 'v0',
    management: 'pci/0000:01:00.0',
    mac,
    mtu: 1400,
    queuePairs: 2,
    features: 0x1_0000_0020n,
  });
  const [message] = kernel.asked;
  const { nlmsgType, nlmsgFlags, nlmsgLen } = netlink.NetlinkHeader.decode(message!);
  assert.deepEqual([nlmsgType, nlmsgFlags, nlmsgLen], [33, 5, message!.length]);
  assert.deepEqual([...message!.subarray(16, 18)], [vdpa.VDPA_CMD_DEV_NEW, 1]);
  const get = (type: number) => netlink.attributesOf(message!.subarray(20), type)[0];
  assert.equal(netlink.textOf(get(vdpa.VDPA_ATTR_DEV_NAME)), 'v0');
  assert.equal(netlink.textOf(get(vdpa.VDPA_ATTR_MGMTDEV_BUS_NAME)), 'pci');
  assert.equal(netlink.textOf(get(vdpa.VDPA_ATTR_MGMTDEV_DEV_NAME)), '0000:01:00.0');
  assert.deepEqual([...get(vdpa.VDPA_ATTR_DEV_NET_CFG_MACADDR)!], [...mac]);
  assert.equal(get(vdpa.VDPA_ATTR_DEV_NET_CFG_MTU)!.length, 2);
  assert.equal(netlink.numberOf(get(vdpa.VDPA_ATTR_DEV_FEATURES)), 0x1_0000_0020n);
  await kernel.vdpa.add({ name: 'v1', management: 'vduse' });
  const bare = kernel.asked[1]!.subarray(20);
  assert.equal(netlink.attributesOf(bare, vdpa.VDPA_ATTR_MGMTDEV_BUS_NAME).length, 0);
  assert.equal(netlink.attributesOf(bare, vdpa.VDPA_ATTR_DEV_FEATURES).length, 0);
  await kernel.vdpa.close();
});

test("a refusal has the kernel's own words and what helps", async () => {
  const answers = [
    (n: number) => error(n, 95, 'All provided attributes are not supported'),
    (n: number) => error(n, 1),
    (n: number) => error(n, 19, 'device not found'),
  ];
  const kernel = new FakeKernel((sequence) => [answers[sequence - 1]!(sequence)]);
  const add = { name: 'v0', management: 'vduse' };
  await assert.rejects(kernel.vdpa.add(add), {
    code: 'ERR_VRING_VDPA',
    message: /adding v0 to vduse: .* ENOTSUP, All provided attributes are not supported; /,
  });
  await assert.rejects(kernel.vdpa.add(add), { message: /EPERM; run as root/ });
  await assert.rejects(kernel.vdpa.delete('v0'), {
    code: 'ERR_VRING_VDPA_UNKNOWN',
    message: /deleting v0: .* device not found/,
  });
  await kernel.vdpa.close();
});

test('lists and details are read, over several messages and with strangers between', async () => {
  const { numberAttribute: number, stringAttribute: text } = netlink;
  const one = (sequence: number, name: string) =>
    data(sequence, [
      text(vdpa.VDPA_ATTR_DEV_NAME, name),
      text(vdpa.VDPA_ATTR_MGMTDEV_DEV_NAME, 'vduse'),
      number(vdpa.VDPA_ATTR_DEV_ID, 4, 1n),
      number(vdpa.VDPA_ATTR_DEV_MAX_VQS, 4, 2n),
      number(vdpa.VDPA_ATTR_DEV_MAX_VQ_SIZE, 2, 256n),
    ]);
  const answers = [
    (n: number) => [
      one(n, 'a'),
      one(n + 100, 'of somebody else'),
      one(n, 'b'),
      answer(netlink.NLMSG_DONE, netlink.NLM_F_MULTI, n, new Uint8Array(4)),
    ],
    (n: number) => [
      data(n, [
        netlink.attribute(vdpa.VDPA_ATTR_DEV_NET_CFG_MACADDR, Uint8Array.of(2, 0, 0, 0, 0, 7)),
        number(vdpa.VDPA_ATTR_DEV_NET_STATUS, 2, 1n),
        number(vdpa.VDPA_ATTR_DEV_NET_CFG_MTU, 2, 1500n),
        number(vdpa.VDPA_ATTR_VDPA_DEV_SUPPORTED_FEATURES, 8, 0x3_0000_0000n),
      ]),
      error(n, 0),
    ],
    (n: number) => [
      data(n, [
        text(vdpa.VDPA_ATTR_DEV_VENDOR_ATTR_NAME, 'received_desc'),
        number(vdpa.VDPA_ATTR_DEV_VENDOR_ATTR_VALUE, 8, 5n),
        text(vdpa.VDPA_ATTR_DEV_VENDOR_ATTR_NAME, 'completed_desc'),
        number(vdpa.VDPA_ATTR_DEV_VENDOR_ATTR_VALUE, 8, 4n),
      ]),
      error(n, 0),
    ],
    (n: number) => [
      data(n, [
        text(vdpa.VDPA_ATTR_MGMTDEV_BUS_NAME, 'pci'),
        text(vdpa.VDPA_ATTR_MGMTDEV_DEV_NAME, '0000:01:00.0'),
        number(vdpa.VDPA_ATTR_MGMTDEV_SUPPORTED_CLASSES, 8, 6n),
        number(vdpa.VDPA_ATTR_DEV_MGMTDEV_MAX_VQS, 4, 3n),
      ]),
      answer(netlink.NLMSG_DONE, netlink.NLM_F_MULTI, n, new Uint8Array(4)),
    ],
  ];
  const kernel = new FakeKernel((sequence) => answers[sequence - 1]!(sequence));
  const devices = await kernel.vdpa.devices();
  assert.deepEqual(
    devices.map(({ name }) => name),
    ['a', 'b'],
  );
  const rest = { management: 'vduse', deviceId: 1, vendorId: 0, maxQueues: 2, maxQueueSize: 256 };
  assert.deepEqual(devices[0], { name: 'a', ...rest });
  assert.deepEqual(await kernel.vdpa.config('a'), {
    name: 'a',
    deviceId: 0,
    mac: '02:00:00:00:00:07',
    mtu: 1500,
    queuePairs: null,
    linkUp: true,
    features: 0x3_0000_0000n,
    negotiated: null,
  });
  assert.deepEqual(await kernel.vdpa.stats('a', 0), { received_desc: 5n, completed_desc: 4n });
  const [management] = await kernel.vdpa.managementDevices();
  assert.equal(management!.name, 'pci/0000:01:00.0');
  assert.deepEqual(management!.deviceIds, [1, 2]);
  await kernel.vdpa.close();
});

test('messages that are cut short end a datagram, whatever they claim', () => {
  const whole = data(1, [netlink.stringAttribute(vdpa.VDPA_ATTR_DEV_NAME, 'x')]);
  for (let length = 0; length < whole.length; length++) {
    assert.deepEqual(netlink.decodeMessages(whole.subarray(0, length)), []);
  }
  const liar = whole.slice();
  new DataView(liar.buffer, liar.byteOffset).setUint32(0, 3, true);
  assert.deepEqual(netlink.decodeMessages(liar), []);
  assert.deepEqual(netlink.attributesOf(Uint8Array.of(2, 0, 4, 0, 9, 9), 4), []);
  assert.deepEqual(netlink.attributesOf(Uint8Array.of(200, 0, 4, 0, 9, 9), 4), []);
});
