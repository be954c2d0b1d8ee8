/*
 * io_uring: its three system calls and its memory, which src/storage/file reads and writes. That
 * memory cannot lie in the arena: the kernel chooses where it is mapped.
 */
#include "vring.h"

#include <fcntl.h>
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* uringSetup(entries, params: Uint8Array of io_uring_params): the ring's fd, or -errno */
static napi_value uring_setup(napi_env env, napi_callback_info info) {
  VRING_ARGS(2);
  uint32_t entries;
  void *params;
  size_t bytes;
  if (!vring_u32(env, argv[0], &entries) || !vring_bytes(env, argv[1], &params, &bytes)) return NULL;
  if (bytes != sizeof(struct io_uring_params)) return vring_number(env, -EINVAL);
  return vring_result(env, syscall(SYS_io_uring_setup, entries, params));
}

/* uringMap(fd, bytes, at): the mapping as an ArrayBuffer, until uringUnmap; or -errno */
static napi_value uring_map(napi_env env, napi_callback_info info) {
  VRING_ARGS(3);
  int32_t fd;
  uint64_t bytes, at;
  if (!vring_int(env, argv[0], &fd)) return NULL;
  if (!vring_offset(env, argv[1], &bytes) || !vring_offset(env, argv[2], &at)) return NULL;
  void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, (off_t)at);
  if (memory == MAP_FAILED) return vring_result(env, -1);
  madvise(memory, bytes, MADV_DONTFORK);
  napi_value buffer;
  if (napi_create_external_arraybuffer(env, memory, bytes, NULL, NULL, &buffer) == napi_ok) {
    return buffer;
  }
  munmap(memory, bytes);
  return vring_number(env, -ENOMEM);
}

/* uringUnmap(buffer): 0 or -errno. Arrays over it have no length any more. */
static napi_value uring_unmap(napi_env env, napi_callback_info info) {
  VRING_ARGS(1);
  void *memory;
  size_t bytes;
  if (napi_get_arraybuffer_info(env, argv[0], &memory, &bytes) != napi_ok) return NULL;
  if (napi_detach_arraybuffer(env, argv[0]) != napi_ok) return vring_number(env, -EINVAL);
  return vring_result(env, munmap(memory, bytes));
}

/* uringEnter(fd, toSubmit, minComplete, flags): requests that were submitted, or -errno */
static napi_value uring_enter(napi_env env, napi_callback_info info) {
  VRING_ARGS(4);
  int32_t fd;
  uint32_t submit, complete, flags;
  if (!vring_int(env, argv[0], &fd) || !vring_u32(env, argv[1], &submit)) return NULL;
  if (!vring_u32(env, argv[2], &complete) || !vring_u32(env, argv[3], &flags)) return NULL;
  return vring_result(env, syscall(SYS_io_uring_enter, fd, submit, complete, flags, NULL, 0));
}

/* uringRegister(fd, opcode, argument: typed array, count): 0 or -errno */
static napi_value uring_register(napi_env env, napi_callback_info info) {
  VRING_ARGS(4);
  int32_t fd;
  uint32_t opcode, count;
  void *argument;
  size_t bytes;
  if (!vring_int(env, argv[0], &fd) || !vring_u32(env, argv[1], &opcode)) return NULL;
  if (!vring_bytes(env, argv[2], &argument, &bytes) || !vring_u32(env, argv[3], &count)) return NULL;
  /* The largest element that is registered here is a struct io_uring_probe_op. */
  if (bytes < 4 || count > bytes / 4) return vring_number(env, -EINVAL);
  return vring_result(env, syscall(SYS_io_uring_register, fd, opcode, argument, count));
}

/*
 * directAlignment(fd, out: Uint32Array of 2): 0 or -errno. What O_DIRECT wants of memory and of
 * positions, bytes; zeros where the kernel does not say so (before Linux 6.1, some file systems).
 */
static napi_value direct_alignment(napi_env env, napi_callback_info info) {
  VRING_ARGS(2);
  int32_t fd;
  void *out;
  size_t bytes;
  if (!vring_int(env, argv[0], &fd) || !vring_bytes(env, argv[1], &out, &bytes)) return NULL;
  if (bytes < 8) return vring_number(env, -EINVAL);
  uint32_t *alignment = out;
  alignment[0] = alignment[1] = 0;
#ifdef STATX_DIOALIGN
  struct statx stat;
  if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stat) < 0) return vring_result(env, -1);
  if (stat.stx_mask & STATX_DIOALIGN) {
    alignment[0] = stat.stx_dio_mem_align;
    alignment[1] = stat.stx_dio_offset_align;
  }
#endif
  return vring_number(env, 0);
}

/* lockByte(fd, at, type, test): 0 or -errno; EAGAIN: somebody else has what forbids it. F_OFD_*. */
static napi_value lock_byte(napi_env env, napi_callback_info info) {
  VRING_ARGS(4);
  int32_t fd, type, test;
  uint64_t at;
  if (!vring_int(env, argv[0], &fd) || !vring_offset(env, argv[1], &at)) return NULL;
  if (!vring_int(env, argv[2], &type) || !vring_int(env, argv[3], &test)) return NULL;
  struct flock lock = {
      .l_type = (short)type, .l_whence = SEEK_SET, .l_start = (off_t)at, .l_len = 1};
  int result = fcntl(fd, test ? F_OFD_GETLK : F_OFD_SETLK, &lock);
  if (result == 0 && test && lock.l_type != F_UNLCK) return vring_number(env, -EAGAIN);
  return vring_result(env, result);
}

void vring_register_uring(napi_env env, napi_value exports) {
  vring_export(env, exports, "uringSetup", uring_setup);
  vring_export(env, exports, "uringMap", uring_map);
  vring_export(env, exports, "uringUnmap", uring_unmap);
  vring_export(env, exports, "uringEnter", uring_enter);
  vring_export(env, exports, "uringRegister", uring_register);
  vring_export(env, exports, "directAlignment", direct_alignment);
  vring_export(env, exports, "lockByte", lock_byte);
}
