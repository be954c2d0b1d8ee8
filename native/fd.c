/* File descriptors of all kinds: open, close, dup, stat, memfd, ioctl. */
#include "vring.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#ifndef F_ADD_SEALS
#define F_ADD_SEALS 1033
#define F_GET_SEALS 1034
#endif
#ifndef HUGETLBFS_MAGIC
#define HUGETLBFS_MAGIC 0x958458f6
#endif

static napi_value fd_open(napi_env env, napi_callback_info info) {
  VRING_ARGS(2);
  char path[4096];
  int32_t flags;
  if (!vring_string(env, argv[0], path, sizeof path)) return NULL;
  if (!vring_int(env, argv[1], &flags)) return NULL;
  return vring_result(env, open(path, flags | O_CLOEXEC, 0666));
}

static napi_value fd_close(napi_env env, napi_callback_info info) {
  VRING_ARGS(1);
  int32_t fd;
  if (!vring_int(env, argv[0], &fd)) return NULL;
  return vring_result(env, close(fd));
}

static napi_value fd_dup(napi_env env, napi_callback_info info) {
  VRING_ARGS(1);
  int32_t fd;
  if (!vring_int(env, argv[0], &fd)) return NULL;
  return vring_result(env, fcntl(fd, F_DUPFD_CLOEXEC, 0));
}

/* setNonblocking(fd, on): 0 or -errno. The flag is the open file's: duplicates share it. */
static napi_value fd_set_nonblocking(napi_env env, napi_callback_info info) {
  VRING_ARGS(2);
  int32_t fd, on;
  if (!vring_int(env, argv[0], &fd) || !vring_int(env, argv[1], &on)) return NULL;
  int flags = fcntl(fd, F_GETFL);
  if (flags < 0) return vring_result(env, -1);
  return vring_result(env, fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK));
}

/*
 * fdStat(fd, out: Float64Array(4)): 0 or -errno. out: [S_IFMT bits, size, page size, seals or -1].
 * The page size is the huge page of hugetlbfs, else the system's.
 *
 * The fd may be a stranger's, on a file system that answers when it likes, or never: nothing here
 * asks it. Seals are known to memory alone, attributes are the cached ones, and only memory is
 * asked for its file system.
 */
static napi_value fd_stat(napi_env env, napi_callback_info info) {
  VRING_ARGS(2);
  int32_t fd;
  void *data;
  size_t bytes;
  if (!vring_int(env, argv[0], &fd) || !vring_bytes(env, argv[1], &data, &bytes)) return NULL;
  if (bytes < 4 * sizeof(double)) return vring_number(env, -EINVAL);
  struct statx st;
  long got = syscall(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_BASIC_STATS, &st);
  if (got != 0) return vring_result(env, -1);
  int seals = fcntl(fd, F_GET_SEALS);
  struct statfs fs = {0};
  if (seals >= 0 && fstatfs(fd, &fs) != 0) return vring_result(env, -1);
  bool huge = (uint32_t)fs.f_type == HUGETLBFS_MAGIC;
  double *out = data;
  out[0] = (double)(st.stx_mode & S_IFMT);
  out[1] = (double)st.stx_size;
  out[2] = huge ? (double)fs.f_bsize : (double)sysconf(_SC_PAGESIZE);
  out[3] = (double)seals;
  return vring_number(env, 0);
}

static napi_value memfd_create_(napi_env env, napi_callback_info info) {
  VRING_ARGS(2);
  char name[250];
  uint32_t flags;
  if (!vring_string(env, argv[0], name, sizeof name)) return NULL;
  if (!vring_u32(env, argv[1], &flags)) return NULL;
  return vring_result(env, syscall(SYS_memfd_create, name, flags));
}

static napi_value fd_truncate(napi_env env, napi_callback_info info) {
  VRING_ARGS(2);
  int32_t fd;
  uint64_t size;
  if (!vring_int(env, argv[0], &fd) || !vring_offset(env, argv[1], &size)) return NULL;
  return vring_result(env, ftruncate(fd, (off_t)size));
}

static napi_value add_seals(napi_env env, napi_callback_info info) {
  VRING_ARGS(2);
  int32_t fd, seals;
  if (!vring_int(env, argv[0], &fd) || !vring_int(env, argv[1], &seals)) return NULL;
  return vring_result(env, fcntl(fd, F_ADD_SEALS, seals));
}

/* ioctlBytes(fd, request, argument: Uint8Array): result or -errno; the kernel may write into it */
static napi_value ioctl_bytes(napi_env env, napi_callback_info info) {
  VRING_ARGS(3);
  int32_t fd;
  uint32_t request;
  void *data;
  size_t bytes;
  if (!vring_int(env, argv[0], &fd) || !vring_u32(env, argv[1], &request)) return NULL;
  if (!vring_bytes(env, argv[2], &data, &bytes)) return NULL;
  return vring_result(env, ioctl(fd, (unsigned long)request, data));
}

/* ioctlValue(fd, request, argument: number): result or -errno */
static napi_value ioctl_value(napi_env env, napi_callback_info info) {
  VRING_ARGS(3);
  int32_t fd;
  uint32_t request;
  uint64_t argument;
  if (!vring_int(env, argv[0], &fd) || !vring_u32(env, argv[1], &request)) return NULL;
  if (!vring_offset(env, argv[2], &argument)) return NULL;
  return vring_result(env, ioctl(fd, (unsigned long)request, (unsigned long)argument));
}

/* userfaultfd(flags): fd or -errno. glibc has no function of that name. */
static napi_value userfaultfd_(napi_env env, napi_callback_info info) {
  VRING_ARGS(1);
  int32_t flags;
  if (!vring_int(env, argv[0], &flags)) return NULL;
  return vring_result(env, syscall(SYS_userfaultfd, flags));
}

/* readBytes(fd, into: Uint8Array): bytes or -errno */
static napi_value read_bytes(napi_env env, napi_callback_info info) {
  VRING_ARGS(2);
  int32_t fd;
  void *data;
  size_t bytes;
  if (!vring_int(env, argv[0], &fd) || !vring_bytes(env, argv[1], &data, &bytes)) return NULL;
  return vring_result(env, read(fd, data, bytes));
}

/* writeBytes(fd, from: Uint8Array): bytes or -errno */
static napi_value write_bytes(napi_env env, napi_callback_info info) {
  VRING_ARGS(2);
  int32_t fd;
  void *data;
  size_t bytes;
  if (!vring_int(env, argv[0], &fd) || !vring_bytes(env, argv[1], &data, &bytes)) return NULL;
  return vring_result(env, write(fd, data, bytes));
}

/*
 * Pipes and sockets that a stranger has too: whoever shares the open file can clear its O_NONBLOCK
 * at any moment, and read(2) or write(2) would hold the thread. Sockets have MSG_DONTWAIT. Pipes
 * have nothing on all kernels (RWF_NOWAIT since Linux 6.4) but splice(2), which goes by its own
 * flag: through a pipe that nobody else has.
 */
static ssize_t pipe_read_now(int fd, void *data, size_t bytes) {
  int own[2];
  if (pipe2(own, O_CLOEXEC | O_NONBLOCK) != 0) return -1;
  ssize_t moved = splice(fd, NULL, own[1], NULL, bytes, SPLICE_F_NONBLOCK);
  int error = errno;
  for (ssize_t at = 0; at < moved;) {
    ssize_t got = read(own[0], (char *)data + at, (size_t)(moved - at));
    if (got > 0) {
      at += got;
      continue;
    }
    moved = -1;
    error = EIO;
  }
  close(own[0]);
  close(own[1]);
  errno = error;
  return moved;
}

static ssize_t pipe_write_now(int fd, const void *data, size_t bytes) {
  int own[2];
  if (pipe2(own, O_CLOEXEC | O_NONBLOCK) != 0) return -1;
  ssize_t moved = write(own[1], data, bytes); /* as much as our pipe holds */
  if (moved > 0) moved = splice(own[0], NULL, fd, NULL, (size_t)moved, SPLICE_F_NONBLOCK);
  int error = errno;
  close(own[0]); /* with what was not taken: it is written again */
  close(own[1]);
  errno = error;
  return moved;
}

/* readNow(pipe or socket, into: Uint8Array): bytes, 0 at the end, or -errno */
static napi_value read_now(napi_env env, napi_callback_info info) {
  VRING_ARGS(2);
  int32_t fd;
  void *data;
  size_t bytes;
  if (!vring_int(env, argv[0], &fd) || !vring_bytes(env, argv[1], &data, &bytes)) return NULL;
  ssize_t got = recv(fd, data, bytes, MSG_DONTWAIT);
  if (got < 0 && errno == ENOTSOCK) got = pipe_read_now(fd, data, bytes);
  return vring_result(env, got);
}

/* writeNow(pipe or socket, from: Uint8Array): bytes, or -errno */
static napi_value write_now(napi_env env, napi_callback_info info) {
  VRING_ARGS(2);
  int32_t fd;
  void *data;
  size_t bytes;
  if (!vring_int(env, argv[0], &fd) || !vring_bytes(env, argv[1], &data, &bytes)) return NULL;
  ssize_t sent = send(fd, data, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (sent < 0 && errno == ENOTSOCK) sent = pipe_write_now(fd, data, bytes);
  return vring_result(env, sent);
}

void vring_register_fd(napi_env env, napi_value exports) {
  vring_export(env, exports, "open", fd_open);
  vring_export(env, exports, "close", fd_close);
  vring_export(env, exports, "dup", fd_dup);
  vring_export(env, exports, "setNonblocking", fd_set_nonblocking);
  vring_export(env, exports, "fdStat", fd_stat);
  vring_export(env, exports, "memfdCreate", memfd_create_);
  vring_export(env, exports, "truncate", fd_truncate);
  vring_export(env, exports, "addSeals", add_seals);
  vring_export(env, exports, "userfaultfd", userfaultfd_);
  vring_export(env, exports, "readBytes", read_bytes);
  vring_export(env, exports, "writeBytes", write_bytes);
  vring_export(env, exports, "readNow", read_now);
  vring_export(env, exports, "writeNow", write_now);
  vring_export(env, exports, "ioctlBytes", ioctl_bytes);
  vring_export(env, exports, "ioctlValue", ioctl_value);
}
