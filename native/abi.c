/*
 * What the kernel's headers say about layouts and numbers, for the test that compares them with
 * src/wire. An addon of its own, built in checkouts only: it needs the headers of Linux 6.1.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define NAPI_VERSION 8
#include <node_api.h>

#include <linux/bpf.h>
#include <linux/ethtool.h>
#include <linux/falloc.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/genetlink.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/if_xdp.h>
#include <linux/io_uring.h>
#include <linux/memfd.h>
#include <linux/perf_event.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <linux/userfaultfd.h>
#include <linux/vdpa.h>
#include <linux/vduse.h>
#include <linux/vhost.h>
#include <linux/vhost_types.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_net.h>
#include <linux/virtio_ring.h>
#include <linux/virtio_scsi.h>
#include <linux/virtio_vsock.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <linux/vm_sockets.h> /* needs sys/socket.h */

struct entry {
  const char *name;
  double value;
};

#define CONSTANT(name) {#name, (double)(name)},
#define SIZE(type) {"sizeof(" #type ")", (double)sizeof(struct type)},
#define FIELD(type, field) \
  {"offsetof(" #type "," #field ")", (double)offsetof(struct type, field)},

#define UNION_FIELD(type, field) \
  {"offsetof(" #type "," #field ")", (double)offsetof(union type, field)},

static const struct entry entries[] = {
#include "abi-names.h"
};

/* The module itself: {name: number} */
NAPI_MODULE_INIT() {
  for (size_t i = 0; i < sizeof entries / sizeof entries[0]; i++) {
    napi_value number;
    napi_create_double(env, entries[i].value, &number);
    napi_set_named_property(env, exports, entries[i].name, number);
  }
  return exports;
}
