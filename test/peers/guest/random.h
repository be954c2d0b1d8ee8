/* Random numbers and contents that come again from their seed: xorshift64*. */
#ifndef VRING_RANDOM_H
#define VRING_RANDOM_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct {
  uint64_t state;
} Random;

static inline Random random_from(uint64_t seed) {
  return (Random){(seed + 1) * 0x9e3779b97f4a7c15u | 1};
}

static inline uint64_t random_next(Random *random) {
  uint64_t x = random->state;
  x ^= x >> 12;
  x ^= x << 25;
  x ^= x >> 27;
  random->state = x;
  return x * 0x2545f4914f6cdd1du;
}

static inline uint64_t random_below(Random *random, uint64_t limit) {
  return (random_next(random) >> 11) % limit;
}

static inline void random_fill(Random *random, uint8_t *into, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 8) {
    uint64_t word = random_next(random);
    memcpy(into + i, &word, bytes - i < 8 ? bytes - i : 8);
  }
}
#endif
