/* Counters that the kernel keeps of a thread: perf_event_open(2). glibc has no function for it. */
#include "vring.h"

#include <linux/perf_event.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* perfOpen(attributes: Uint8Array, tid): fd or -errno. Counts on every CPU. */
static napi_value perf_open(napi_env env, napi_callback_info info) {
  VRING_ARGS(2);
  void *data;
  size_t bytes;
  int32_t tid;
  if (!vring_bytes(env, argv[0], &data, &bytes) || !vring_int(env, argv[1], &tid)) return NULL;
  struct perf_event_attr attributes;
  memset(&attributes, 0, sizeof attributes);
  if (bytes > sizeof attributes) return vring_number(env, -E2BIG);
  memcpy(&attributes, data, bytes);
  attributes.size = (uint32_t)bytes;
  return vring_result(
      env, syscall(SYS_perf_event_open, &attributes, tid, -1, -1, PERF_FLAG_FD_CLOEXEC));
}

void vring_register_perf(napi_env env, napi_value exports) {
  vring_export(env, exports, "perfOpen", perf_open);
}
