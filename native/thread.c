/* What one thread asks of the kernel about itself. */
#include "vring.h"

#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/*
 * watchThread(intervalMs): from now on a signal interrupts this thread's blocking calls every
 * `intervalMs`; 0 ends that. 0 or -errno. What a peer does to a descriptor that it shares with us
 * can then hold the thread for one interval at most (see eventfdSignal). System calls are called
 * by number: timer_create(3) moved between libraries.
 */
#define WATCH_SIGNAL 50 /* a real-time signal, used by neither libuv nor V8 */

static _Thread_local int watch_timer = -1;

static void on_watch(int signal) { (void)signal; }

static napi_value watch_thread(napi_env env, napi_callback_info info) {
  VRING_ARGS(1);
  uint32_t interval;
  if (!vring_u32(env, argv[0], &interval)) return NULL;
  if (interval == 0) {
    int timer = watch_timer;
    watch_timer = -1;
    return vring_result(env, timer < 0 ? 0 : (int)syscall(SYS_timer_delete, timer));
  }
  if (watch_timer < 0) {
    struct sigaction action = {.sa_handler = on_watch}; /* no SA_RESTART: calls end with EINTR */
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = WATCH_SIGNAL};
    event._sigev_un._tid = (int)syscall(SYS_gettid);
    if (sigaction(WATCH_SIGNAL, &action, NULL) != 0) return vring_result(env, -1);
    if (syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &watch_timer) != 0) {
      watch_timer = -1;
      return vring_result(env, -1);
    }
  }
  struct timespec every = {interval / 1000, (long)(interval % 1000) * 1000000};
  struct itimerspec times = {.it_interval = every, .it_value = every};
  return vring_result(env, (int)syscall(SYS_timer_settime, watch_timer, 0, &times, NULL));
}

/* pauseWatch(): the timer stays, but does not tick until watchThread is called again. */
static napi_value pause_watch(napi_env env, napi_callback_info info) {
  (void)info;
  if (watch_timer < 0) return vring_number(env, 0);
  struct itimerspec never = {0};
  return vring_result(env, (int)syscall(SYS_timer_settime, watch_timer, 0, &never, NULL));
}

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
  vring_export(env, exports, "watchThread", watch_thread);
  vring_export(env, exports, "pauseWatch", pause_watch);
  vring_export(env, exports, "setns", set_ns);
}
