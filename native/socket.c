/* Unix stream sockets, with file descriptors in their messages. */
#include "vring.h"

#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_FDS 253 /* SCM_MAX_FD of the kernel */

static napi_value socket_create(napi_env env, napi_callback_info info) {
  VRING_ARGS(3);
  int32_t domain, type, protocol;
  if (!vring_int(env, argv[0], &domain) || !vring_int(env, argv[1], &type)) return NULL;
  if (!vring_int(env, argv[2], &protocol)) return NULL;
  return vring_result(env, socket(domain, type | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol));
}

/* setSocketOption(fd, level, name, value): options that are an int */
static napi_value set_socket_option(napi_env env, napi_callback_info info) {
  VRING_ARGS(4);
  int32_t fd, level, name, value;
  if (!vring_int(env, argv[0], &fd) || !vring_int(env, argv[1], &level)) return NULL;
  if (!vring_int(env, argv[2], &name) || !vring_int(env, argv[3], &value)) return NULL;
  return vring_result(env, setsockopt(fd, level, name, &value, sizeof value));
}

/* Reads (fd, path) into an address. */
static bool unix_address(napi_env env, napi_value *argv, int32_t *fd, struct sockaddr_un *address) {
  memset(address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  if (!vring_int(env, argv[0], fd)) return false;
  return vring_string(env, argv[1], address->sun_path, sizeof address->sun_path);
}

static napi_value unix_bind(napi_env env, napi_callback_info info) {
  VRING_ARGS(2);
  int32_t fd;
  struct sockaddr_un address;
  if (!unix_address(env, argv, &fd, &address)) return NULL;
  return vring_result(env, bind(fd, (struct sockaddr *)&address, sizeof address));
}

static napi_value unix_connect(napi_env env, napi_callback_info info) {
  VRING_ARGS(2);
  int32_t fd;
  struct sockaddr_un address;
  if (!unix_address(env, argv, &fd, &address)) return NULL;
  return vring_result(env, connect(fd, (struct sockaddr *)&address, sizeof address));
}

static napi_value socket_listen(napi_env env, napi_callback_info info) {
  VRING_ARGS(2);
  int32_t fd, backlog;
  if (!vring_int(env, argv[0], &fd) || !vring_int(env, argv[1], &backlog)) return NULL;
  return vring_result(env, listen(fd, backlog));
}

static napi_value socket_accept(napi_env env, napi_callback_info info) {
  VRING_ARGS(1);
  int32_t fd;
  if (!vring_int(env, argv[0], &fd)) return NULL;
  return vring_result(env, accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK));
}

/* socketPair(out: Int32Array(2)): 0 or -errno */
static napi_value socket_pair(napi_env env, napi_callback_info info) {
  VRING_ARGS(1);
  void *data;
  size_t bytes;
  if (!vring_bytes(env, argv[0], &data, &bytes)) return NULL;
  if (bytes < 2 * sizeof(int)) return vring_number(env, -EINVAL);
  return vring_result(env, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, data));
}

/* peerCredentials(socket, out: Int32Array(3)): 0 or -errno; out is pid, uid, gid */
static napi_value peer_credentials(napi_env env, napi_callback_info info) {
  VRING_ARGS(2);
  int32_t fd;
  void *data;
  size_t bytes;
  if (!vring_int(env, argv[0], &fd) || !vring_bytes(env, argv[1], &data, &bytes)) return NULL;
  struct ucred peer;
  socklen_t size = sizeof peer;
  if (bytes < 3 * sizeof(int32_t)) return vring_number(env, -EINVAL);
  int result = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size);
  if (result < 0) return vring_result(env, -1);
  int32_t *out = data;
  out[0] = peer.pid;
  out[1] = (int32_t)peer.uid;
  out[2] = (int32_t)peer.gid;
  return vring_number(env, 0);
}

/* sendFds(socket, bytes: Uint8Array, fds: Int32Array): bytes sent or -errno */
static napi_value send_fds(napi_env env, napi_callback_info info) {
  VRING_ARGS(3);
  int32_t fd;
  void *data, *fds;
  size_t bytes, fd_bytes;
  if (!vring_int(env, argv[0], &fd) || !vring_bytes(env, argv[1], &data, &bytes)) return NULL;
  if (!vring_bytes(env, argv[2], &fds, &fd_bytes)) return NULL;
  if (fd_bytes > MAX_FDS * sizeof(int)) return vring_number(env, -EINVAL);
  struct iovec vector = {data, bytes};
  union {
    struct cmsghdr align;
    char room[CMSG_SPACE(MAX_FDS * sizeof(int))];
  } control;
  struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
  if (fd_bytes > 0) {
    message.msg_control = control.room;
    message.msg_controllen = CMSG_SPACE(fd_bytes);
    memset(control.room, 0, message.msg_controllen);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fd_bytes);
    memmove(CMSG_DATA(header), fds, fd_bytes);
  }
  return vring_result(env, sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT));
}

/*
 * receiveFds(socket, into: Uint8Array, out: Int32Array): bytes, 0 at the end, or -errno.
 * out[0] is the number of fds in out[2..]; out[1] is 1 when some did not fit and were closed.
 */
static napi_value receive_fds(napi_env env, napi_callback_info info) {
  VRING_ARGS(3);
  int32_t fd;
  void *data, *out_data;
  size_t bytes, out_bytes;
  if (!vring_int(env, argv[0], &fd) || !vring_bytes(env, argv[1], &data, &bytes)) return NULL;
  if (!vring_bytes(env, argv[2], &out_data, &out_bytes)) return NULL;
  int32_t *out = out_data;
  size_t room = out_bytes / sizeof(int32_t);
  if (room < 2) return vring_number(env, -EINVAL);
  room -= 2;
  out[0] = 0;
  out[1] = 0;
  struct iovec vector = {data, bytes};
  union {
    struct cmsghdr align;
    char room[CMSG_SPACE(MAX_FDS * sizeof(int))];
  } control;
  struct msghdr message = {
      .msg_iov = &vector,
      .msg_iovlen = 1,
      .msg_control = control.room,
      .msg_controllen = sizeof control.room,
  };
  ssize_t received = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  if (received < 0) return vring_result(env, -1);
  if (message.msg_flags & MSG_CTRUNC) out[1] = 1;
  for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header != NULL;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; i++) {
      int got;
      memmove(&got, CMSG_DATA(header) + i * sizeof got, sizeof got);
      if ((size_t)out[0] < room) {
        out[2 + out[0]++] = got;
      } else {
        close(got);
        out[1] = 1;
      }
    }
  }
  return vring_number(env, received);
}

void vring_register_socket(napi_env env, napi_value exports) {
  vring_export(env, exports, "socket", socket_create);
  vring_export(env, exports, "setSocketOption", set_socket_option);
  vring_export(env, exports, "unixBind", unix_bind);
  vring_export(env, exports, "unixConnect", unix_connect);
  vring_export(env, exports, "listen", socket_listen);
  vring_export(env, exports, "accept", socket_accept);
  vring_export(env, exports, "socketPair", socket_pair);
  vring_export(env, exports, "peerCredentials", peer_credentials);
  vring_export(env, exports, "sendFds", send_fds);
  vring_export(env, exports, "receiveFds", receive_fds);
}
