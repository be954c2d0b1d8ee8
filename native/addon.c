/* The module's entry, called once per thread that loads it, and the argument helpers. */
#include "vring.h"

static bool refuse(napi_env env, const char *what) {
  napi_throw_type_error(env, "ERR_VRING_NATIVE_ARGUMENT", what);
  return false;
}

bool vring_int(napi_env env, napi_value value, int32_t *out) {
  if (napi_get_value_int32(env, value, out) == napi_ok) return true;
  return refuse(env, "expected a 32-bit integer");
}

bool vring_u32(napi_env env, napi_value value, uint32_t *out) {
  if (napi_get_value_uint32(env, value, out) == napi_ok) return true;
  return refuse(env, "expected an unsigned 32-bit integer");
}

bool vring_offset(napi_env env, napi_value value, uint64_t *out) {
  double number;
  if (napi_get_value_double(env, value, &number) != napi_ok) return refuse(env, "expected a number");
  if (!(number >= 0 && number <= VRING_MAX_SAFE)) {
    return refuse(env, "expected a whole number below 2^53");
  }
  *out = (uint64_t)number;
  return true;
}

static size_t element_bytes(napi_typedarray_type type) {
  switch (type) {
    case napi_int8_array:
    case napi_uint8_array:
    case napi_uint8_clamped_array:
      return 1;
    case napi_int16_array:
    case napi_uint16_array:
      return 2;
    case napi_int32_array:
    case napi_uint32_array:
    case napi_float32_array:
      return 4;
    default:
      return 8;
  }
}

bool vring_bytes(napi_env env, napi_value value, void **data, size_t *bytes) {
  napi_typedarray_type type;
  size_t length;
  if (napi_get_typedarray_info(env, value, &type, &length, data, NULL, NULL) != napi_ok) {
    return refuse(env, "expected a typed array");
  }
  *bytes = length * element_bytes(type);
  return true;
}

bool vring_string(napi_env env, napi_value value, char *out, size_t capacity) {
  size_t length;
  if (napi_get_value_string_utf8(env, value, NULL, 0, &length) != napi_ok) {
    return refuse(env, "expected a string");
  }
  if (length >= capacity) return refuse(env, "string too long");
  return napi_get_value_string_utf8(env, value, out, capacity, &length) == napi_ok;
}

napi_value vring_double(napi_env env, double value) {
  napi_value number;
  return napi_create_double(env, value, &number) == napi_ok ? number : NULL;
}

napi_value vring_number(napi_env env, int64_t value) {
  napi_value number;
  if (value < INT32_MIN || value > INT32_MAX) return vring_double(env, (double)value);
  return napi_create_int32(env, (int32_t)value, &number) == napi_ok ? number : NULL;
}

napi_value vring_result(napi_env env, int64_t result) {
  return vring_number(env, result == -1 ? -(int64_t)errno : result);
}

void vring_export(napi_env env, napi_value exports, const char *name, napi_callback function) {
  napi_value value;
  if (napi_create_function(env, name, NAPI_AUTO_LENGTH, function, NULL, &value) != napi_ok) return;
  napi_set_named_property(env, exports, name, value);
}

NAPI_MODULE_INIT() {
  vring_register_arena(env, exports);
  vring_register_bulk(env, exports);
  vring_register_fd(env, exports);
  vring_register_event(env, exports);
  vring_register_storage(env, exports);
  vring_register_uring(env, exports);
  vring_register_socket(env, exports);
  vring_register_poll(env, exports);
  vring_register_thread(env, exports);
  vring_register_closer(env, exports);
  vring_register_perf(env, exports);
  vring_register_notify(env, exports);
  vring_register_packet(env, exports);
  return exports;
}
