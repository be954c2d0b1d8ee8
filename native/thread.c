/* What one thread asks of the kernel about itself. */
#include "vring.h"

#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static napi_value yield_thread(napi_env env, napi_callback_info info) {
  (void)info;
  return vring_result(env, sched_yield());
}

static napi_value set_thread_name(napi_env env, napi_callback_info info) {
  VRING_ARGS(1);
  char name[16];
  if (!vring_string(env, argv[0], name, sizeof name)) return NULL;
  return vring_result(env, prctl(PR_SET_NAME, name));
}

/* cpuSeconds(ofProcess: 0 | 1): seconds */
static napi_value cpu_seconds(napi_env env, napi_callback_info info) {
  VRING_ARGS(1);
  int32_t of_process;
  if (!vring_int(env, argv[0], &of_process)) return NULL;
  struct timespec used = {0, 0};
  clock_gettime(of_process ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_THREAD_CPUTIME_ID, &used);
  return vring_double(env, (double)used.tv_sec + (double)used.tv_nsec / 1e9);
}

static napi_value pin_thread(napi_env env, napi_callback_info info) {
  VRING_ARGS(1);
  uint32_t cpu;
  if (!vring_u32(env, argv[0], &cpu)) return NULL;
  if (cpu >= CPU_SETSIZE) return vring_number(env, -EINVAL);
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  return vring_result(env, sched_setaffinity(0, sizeof set, &set));
}

/* setns(fd, type): 0 or -errno. By syscall(2): the function is as young as glibc 2.14. */
static napi_value set_ns(napi_env env, napi_callback_info info) {
  VRING_ARGS(2);
  int32_t fd, type;
  if (!vring_int(env, argv[0], &fd) || !vring_int(env, argv[1], &type)) return NULL;
  return vring_result(env, syscall(SYS_setns, fd, type));
}

void vring_register_thread(napi_env env, napi_value exports) {
  vring_export(env, exports, "setThreadName", set_thread_name);
  vring_export(env, exports, "cpuSeconds", cpu_seconds);
  vring_export(env, exports, "pinThread", pin_thread);
  vring_export(env, exports, "yieldThread", yield_thread);
  vring_export(env, exports, "setns", set_ns);
}
