/* Files and block devices that hold a disk: vectored transfers between them and the arena. */
#include "vring.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_VECTORS 1024 /* IOV_MAX of Linux */

/* Arguments 1 to 4 of a transfer, as vectors: how many, or -errno; -1 with an exception pending. */
static int64_t arena_vectors(napi_env env, napi_value *argv, struct iovec *vectors) {
  void *offset_data, *length_data;
  size_t offset_bytes, length_bytes;
  uint32_t first, count;
  if (!vring_bytes(env, argv[1], &offset_data, &offset_bytes)) return -1;
  if (!vring_bytes(env, argv[2], &length_data, &length_bytes)) return -1;
  if (!vring_u32(env, argv[3], &first) || !vring_u32(env, argv[4], &count)) return -1;
  uint64_t end = (uint64_t)first + count;
  if (count > MAX_VECTORS || end > offset_bytes / 8 || end > length_bytes / 4) return -EINVAL;
  const double *offsets = (const double *)offset_data + first;
  const int32_t *lengths = (const int32_t *)length_data + first;
  for (uint32_t i = 0; i < count; i++) {
    vectors[i].iov_base = vring_arena_at(offsets[i], lengths[i]);
    vectors[i].iov_len = (size_t)lengths[i];
    if (vectors[i].iov_base == NULL) return -EFAULT;
  }
  return count;
}

static napi_value transfer(napi_env env, napi_callback_info info, bool is_write) {
  VRING_ARGS(7);
  int32_t fd, flags;
  uint64_t at;
  struct iovec vectors[MAX_VECTORS];
  if (!vring_int(env, argv[0], &fd)) return NULL;
  int64_t count = arena_vectors(env, argv, vectors);
  if (count == -1) return NULL; /* EPERM is none of its errors */
  if (!vring_offset(env, argv[5], &at) || !vring_int(env, argv[6], &flags)) return NULL;
  if (count < 0) return vring_number(env, count);
  if (is_write) return vring_result(env, pwritev2(fd, vectors, (int)count, (off_t)at, flags));
  return vring_result(env, preadv2(fd, vectors, (int)count, (off_t)at, flags));
}

/*
 * preadvArena(fd, offsets: Float64Array, lengths: Int32Array, first, count, at, flags): bytes or
 * -errno. `at` is the position in the file, `flags` are RWF_*.
 */
static napi_value preadv_arena(napi_env env, napi_callback_info info) {
  return transfer(env, info, false);
}

/* pwritevArena: as preadvArena */
static napi_value pwritev_arena(napi_env env, napi_callback_info info) {
  return transfer(env, info, true);
}

/* fallocate(fd, mode, at, size): 0 or -errno */
static napi_value fd_fallocate(napi_env env, napi_callback_info info) {
  VRING_ARGS(4);
  int32_t fd, mode;
  uint64_t at, size;
  if (!vring_int(env, argv[0], &fd) || !vring_int(env, argv[1], &mode)) return NULL;
  if (!vring_offset(env, argv[2], &at) || !vring_offset(env, argv[3], &size)) return NULL;
  return vring_result(env, fallocate(fd, mode, (off_t)at, (off_t)size));
}

/* seekFile(fd, at, whence): a position, or -errno. `whence` is SEEK_*. */
static napi_value fd_seek(napi_env env, napi_callback_info info) {
  VRING_ARGS(3);
  int32_t fd, whence;
  uint64_t at;
  if (!vring_int(env, argv[0], &fd) || !vring_offset(env, argv[1], &at)) return NULL;
  if (!vring_int(env, argv[2], &whence)) return NULL;
  return vring_result(env, lseek(fd, (off_t)at, whence));
}

/* fdatasync(fd): 0 or -errno */
static napi_value fd_datasync(napi_env env, napi_callback_info info) {
  VRING_ARGS(1);
  int32_t fd;
  if (!vring_int(env, argv[0], &fd)) return NULL;
  return vring_result(env, fdatasync(fd));
}

/* zeroArenaPages(offset, size): 0 or -errno. Whole pages of private memory become zeros, unused. */
static napi_value zero_arena_pages(napi_env env, napi_callback_info info) {
  VRING_ARGS(2);
  uint64_t offset, size;
  if (!vring_offset(env, argv[0], &offset) || !vring_offset(env, argv[1], &size)) return NULL;
  void *at = vring_arena_at((double)offset, (double)size);
  if (at == NULL) return vring_number(env, -EFAULT);
  return vring_result(env, madvise(at, size, MADV_DONTNEED));
}

void vring_register_storage(napi_env env, napi_value exports) {
  vring_export(env, exports, "preadvArena", preadv_arena);
  vring_export(env, exports, "pwritevArena", pwritev_arena);
  vring_export(env, exports, "fallocate", fd_fallocate);
  vring_export(env, exports, "seekFile", fd_seek);
  vring_export(env, exports, "fdatasync", fd_datasync);
  vring_export(env, exports, "zeroArenaPages", zero_arena_pages);
}
