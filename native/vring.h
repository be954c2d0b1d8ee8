/*
 * vring's native layer: thin system calls, nothing else. No policy, no protocol, no packet parsed.
 * A function returns its value or -errno; it throws a TypeError only when an argument has the
 * wrong type, which is a mistake in src/sys.
 */
#ifndef VRING_H
#define VRING_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#ifndef NAPI_VERSION
#define NAPI_VERSION 8
#endif

#include <errno.h>
#include <node_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VRING_MAX_SAFE 9007199254740991.0 /* Number.MAX_SAFE_INTEGER */

/* Declares `argv` with `n` arguments; missing ones are undefined and fail their type check. */
#define VRING_ARGS(n)                                                   \
  napi_value argv[n];                                                   \
  size_t argc = (n);                                                    \
  if (napi_get_cb_info(env, info, &argc, argv, NULL, NULL) != napi_ok) \
  return NULL

/* Each reads one argument, or throws a TypeError and returns false. */
bool vring_int(napi_env env, napi_value value, int32_t *out);
bool vring_u32(napi_env env, napi_value value, uint32_t *out);
/* A whole number in [0, 2^53): offsets and sizes in bytes. */
bool vring_offset(napi_env env, napi_value value, uint64_t *out);
/* Any typed array; `bytes` is its length in bytes. Valid during the call only. */
bool vring_bytes(napi_env env, napi_value value, void **data, size_t *bytes);
/* Copies a string with its NUL. */
bool vring_string(napi_env env, napi_value value, char *out, size_t capacity);

/* A number: the value, or -errno. */
napi_value vring_number(napi_env env, int64_t value);
/* `result`, or -errno when it is -1. */
napi_value vring_result(napi_env env, int64_t result);
napi_value vring_double(napi_env env, double value);

void vring_export(napi_env env, napi_value exports, const char *name, napi_callback function);

/* The arena's bytes [offset, offset + size), or NULL when that is not inside it. */
void *vring_arena_at(double offset, double size);
/* Where this process has its arena, and how large it is (far more than INT32_MAX, or 0). */
char *vring_arena(uint64_t *size);

void vring_register_arena(napi_env env, napi_value exports);
void vring_register_bulk(napi_env env, napi_value exports);
void vring_register_fd(napi_env env, napi_value exports);
void vring_register_event(napi_env env, napi_value exports);
void vring_register_storage(napi_env env, napi_value exports);
void vring_register_uring(napi_env env, napi_value exports);
void vring_register_socket(napi_env env, napi_value exports);
void vring_register_poll(napi_env env, napi_value exports);
void vring_register_thread(napi_env env, napi_value exports);
void vring_register_closer(napi_env env, napi_value exports);
void vring_register_perf(napi_env env, napi_value exports);
void vring_register_notify(napi_env env, napi_value exports);
void vring_register_packet(napi_env env, napi_value exports);

#endif
