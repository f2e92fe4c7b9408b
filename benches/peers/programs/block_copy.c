// How fast one or two cores copy blocks from random places to random places: memcpy and non-temporal stores.
//
//   block_copy --block BYTES --region BYTES --budget SECONDS
//
// One JSON line for each way. Every pass goes through the whole region, so that no cache holds it. What was copied is
// compared with the source after the first way in full, and every 16th block after the others.
#include "measure.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

#define CORES 2

struct copier {
  char *to;
  const char *from;
  const size_t *to_order, *from_order;
  size_t first, count, block, bytes;
  int streaming;
  double budget;
  pthread_barrier_t *start;
  double seconds;
};

static void copy_streaming(char *to, const char *from, size_t bytes) {
#ifdef __x86_64__
  __m128i *t = (__m128i *)to;
  const __m128i *f = (const __m128i *)from;
  for (size_t i = 0; i < bytes / 16; i += 4) {
    __m128i a = _mm_load_si128(f + i), b = _mm_load_si128(f + i + 1);
    __m128i c = _mm_load_si128(f + i + 2), d = _mm_load_si128(f + i + 3);
    _mm_stream_si128(t + i, a);
    _mm_stream_si128(t + i + 1, b);
    _mm_stream_si128(t + i + 2, c);
    _mm_stream_si128(t + i + 3, d);
  }
  _mm_sfence();
#else
  memcpy(to, from, bytes);
#endif
}

static void *copy(void *argument) {
  struct copier *c = argument;
  pthread_barrier_wait(c->start);
  double start = now();
  for (size_t i = 0; (c->seconds = now() - start) < c->budget; i = (i + 1) % c->count) {
    char *to = c->to + c->to_order[c->first + i];
    const char *from = c->from + c->from_order[c->first + i];
    if (c->streaming) copy_streaming(to, from, c->block);
    else memcpy(to, from, c->block);
    c->bytes += c->block;
  }
  return 0;
}

int main(int argc, char **argv) {
  size_t block = strtoull(option(argc, argv, "block", "65536"), 0, 10);
  size_t region = strtoull(option(argc, argv, "region", "536870912"), 0, 10);
  double budget = atof(option(argc, argv, "budget", "0.3"));
  if (!block || block % 64 || region / block < CORES) {
    fprintf(stderr, "blocks must be multiples of 64 bytes, and two of them must fit the region\n");
    return 2;
  }
  size_t count = region / block;
  char *from = map_bytes(region), *to = map_bytes(region);
  size_t *from_order = shuffled(region, block, 33), *to_order = shuffled(region, block, 44);
  fill(from, region);
  int first_way = 1;
  for (int streaming = 0; streaming < 2; streaming++) {
    for (int cores = 1; cores <= CORES; cores++) {
      struct copier copiers[CORES];
      pthread_t threads[CORES];
      pthread_barrier_t start;
      memset(to, 0, region);
      pthread_barrier_init(&start, 0, cores);
      for (int i = 0; i < cores; i++) {
        copiers[i] = (struct copier){.to = to, .from = from, .to_order = to_order, .from_order = from_order,
                                     .first = count / cores * i, .count = count / cores, .block = block,
                                     .streaming = streaming, .budget = budget, .start = &start};
        if (pthread_create(&threads[i], 0, copy, &copiers[i])) die("pthread_create");
      }
      double rate = 0;
      int same = 1;
      for (int i = 0; i < cores; i++) {
        struct copier *c = &copiers[i];
        pthread_join(threads[i], 0);
        rate += c->bytes / c->seconds / 1e9;
        size_t copied = c->bytes / block < c->count ? c->bytes / block : c->count;
        for (size_t n = 0; n < copied; n += first_way ? 1 : 16)
          same &= holds(to + to_order[c->first + n], from_order[c->first + n], block);
      }
      pthread_barrier_destroy(&start);
      first_way = 0;
      printf("{\"way\": \"%s\", \"cores\": %d, \"gbps\": %.4f, \"verified\": %s}\n", streaming ? "streaming" : "memcpy",
             cores, rate, same ? "true" : "false");
      fflush(stdout);
    }
  }
  return 0;
}
