/* Packet sockets, XDP sockets and bpf(2): what they need beside what all sockets have. */
#include "vring.h"

#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_ADDRESS 128 /* sizeof(struct sockaddr_storage) */
#define MAX_BPF 160     /* union bpf_attr as of Linux 6.18 */

/* setSocketBytes(fd, level, name, value: Uint8Array): 0 or -errno */
static napi_value set_socket_bytes(napi_env env, napi_callback_info info) {
  VRING_ARGS(4);
  int32_t fd, level, name;
  void *data;
  size_t bytes;
  if (!vring_int(env, argv[0], &fd) || !vring_int(env, argv[1], &level)) return NULL;
  if (!vring_int(env, argv[2], &name) || !vring_bytes(env, argv[3], &data, &bytes)) return NULL;
  return vring_result(env, setsockopt(fd, level, name, data, (socklen_t)bytes));
}

/* getSocketBytes(fd, level, name, into: Uint8Array): bytes that the kernel wrote, or -errno */
static napi_value get_socket_bytes(napi_env env, napi_callback_info info) {
  VRING_ARGS(4);
  int32_t fd, level, name;
  void *data;
  size_t bytes;
  if (!vring_int(env, argv[0], &fd) || !vring_int(env, argv[1], &level)) return NULL;
  if (!vring_int(env, argv[2], &name) || !vring_bytes(env, argv[3], &data, &bytes)) return NULL;
  socklen_t length = (socklen_t)bytes;
  int result = getsockopt(fd, level, name, data, &length);
  return vring_result(env, result < 0 ? -1 : (int64_t)length);
}

/* bindBytes(fd, address: Uint8Array): 0 or -errno */
static napi_value bind_bytes(napi_env env, napi_callback_info info) {
  VRING_ARGS(2);
  int32_t fd;
  void *data;
  size_t bytes;
  if (!vring_int(env, argv[0], &fd) || !vring_bytes(env, argv[1], &data, &bytes)) return NULL;
  if (bytes > MAX_ADDRESS) return vring_number(env, -EINVAL);
  return vring_result(env, bind(fd, data, (socklen_t)bytes));
}

/* ringSend(fd): the kernel sends what the socket's ring has. Bytes or -errno. */
static napi_value ring_send(napi_env env, napi_callback_info info) {
  VRING_ARGS(1);
  int32_t fd;
  if (!vring_int(env, argv[0], &fd)) return NULL;
  return vring_result(env, send(fd, NULL, 0, MSG_DONTWAIT | MSG_NOSIGNAL));
}

/* ringReceive(fd): the kernel looks at the socket's fill ring. 0 or -errno. */
static napi_value ring_receive(napi_env env, napi_callback_info info) {
  VRING_ARGS(1);
  int32_t fd;
  if (!vring_int(env, argv[0], &fd)) return NULL;
  return vring_result(env, recv(fd, NULL, 0, MSG_DONTWAIT));
}

/* bpf(command, attributes: Uint8Array): fd, 0 or -errno; the kernel may write into them */
static napi_value bpf_(napi_env env, napi_callback_info info) {
  VRING_ARGS(2);
  int32_t command;
  void *data;
  size_t bytes;
  if (!vring_int(env, argv[0], &command)) return NULL;
  if (!vring_bytes(env, argv[1], &data, &bytes)) return NULL;
  if (bytes > MAX_BPF) return vring_number(env, -E2BIG);
  return vring_result(env, syscall(SYS_bpf, command, data, (unsigned)bytes));
}

void vring_register_packet(napi_env env, napi_value exports) {
  vring_export(env, exports, "setSocketBytes", set_socket_bytes);
  vring_export(env, exports, "getSocketBytes", get_socket_bytes);
  vring_export(env, exports, "bindBytes", bind_bytes);
  vring_export(env, exports, "ringSend", ring_send);
  vring_export(env, exports, "ringReceive", ring_receive);
  vring_export(env, exports, "bpf", bpf_);
}
