// How long 64 bytes take there and back between two processes, sleeping and spinning: TCP, Unix sockets, futexes.
//
//   ping_pong --address IP --near NAMESPACE --far NAMESPACE --budget SECONDS
//
// One JSON line for each way, in microseconds for the round trip. A way that spins asks again and again without ever
// sleeping; one that sleeps blocks in the call. Waking a core that idles is the larger part of the second in a virtual
// machine, and it varies: read p50 together with p99.
#include "measure.h"
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <sys/syscall.h>

#define BYTES 64
#define WARM_UP 200
#define SAMPLES_MAX 200000

struct word {
  _Alignas(64) _Atomic uint32_t turn;
};

static void report(const char *way, const char *wait, double *samples, size_t count) {
  qsort(samples, count, sizeof *samples, by_value);
  printf("{\"way\": \"%s\", \"wait\": \"%s\", \"p50_us\": %.3f, \"p99_us\": %.3f, \"samples\": %zu}\n", way, wait,
         samples[count / 2] * 1e6, samples[count * 99 / 100] * 1e6, count);
  fflush(stdout);
}

static int move(int fd, char *bytes, int spin, int out) {
  for (size_t done = 0; done < BYTES;) {
    int flags = MSG_NOSIGNAL | (spin ? MSG_DONTWAIT : 0);
    ssize_t n = out ? send(fd, bytes + done, BYTES - done, flags) : recv(fd, bytes + done, BYTES - done, flags);
    if (n > 0) done += n;
    else if (n == 0) return 0;
    else if (errno == ECONNRESET || errno == EPIPE) return 0;
    else if (errno != EAGAIN && errno != EINTR) die("move");
  }
  return 1;
}

static void over_socket(const char *way, int fd, int spin, double budget, double *samples) {
  char bytes[BYTES] = {0};
  size_t count = 0;
  double end = now() + budget, start;
  for (int i = 0; ((start = now()) < end || count < 10) && count < SAMPLES_MAX; i++) {
    if (!move(fd, bytes, spin, 1) || !move(fd, bytes, spin, 0)) die("the far end went");
    if (i >= WARM_UP) samples[count++] = now() - start;
  }
  report(way, spin ? "spin" : "sleep", samples, count);
}

static void answer(int fd, int spin) {
  char bytes[BYTES];
  while (move(fd, bytes, spin, 0) && move(fd, bytes, spin, 1)) {}
  _exit(0);
}

static void tcp(const char *address, const char *near_name, const char *far_name, int spin, double budget,
                double *samples) {
  struct sockaddr_in at = {.sin_family = AF_INET};
  socklen_t length = sizeof at;
  int one = 1, listener, ends[2];
  if (inet_pton(AF_INET, address, &at.sin_addr) != 1) die("address");
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) die("socketpair");
  pid_t child = fork_bound();
  if (!child) {
    enter(far_name);
    if (read(ends[1], &at, sizeof at) != sizeof at) _exit(1);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (void *)&at, length)) die("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    answer(fd, spin);
  }
  enter(near_name);
  listener = socket(AF_INET, SOCK_STREAM, 0);
  if (bind(listener, (void *)&at, length) || listen(listener, 1) || getsockname(listener, (void *)&at, &length))
    die("listen");
  if (write(ends[0], &at, sizeof at) != sizeof at) die("write");
  int fd = accept(listener, 0, 0);
  if (fd < 0) die("accept");
  close(listener);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  over_socket("tcp", fd, spin, budget, samples);
  close(fd);
  close(ends[0]);
  close(ends[1]);
  waitpid(child, 0, 0);
}

static void uds(int spin, double budget, double *samples) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) die("socketpair");
  pid_t child = fork_bound();
  if (!child) {
    close(ends[0]);
    answer(ends[1], spin);
  }
  close(ends[1]);
  over_socket("uds", ends[0], spin, budget, samples);
  close(ends[0]);
  waitpid(child, 0, 0);
}

static void wait_turn(_Atomic uint32_t *turn, uint32_t mine, int spin) {
  uint32_t seen;
  while ((seen = *turn) != mine)
    if (!spin) syscall(SYS_futex, turn, FUTEX_WAIT, seen, 0, 0, 0);
}

static void give_turn(_Atomic uint32_t *turn, uint32_t to, int spin) {
  *turn = to;
  if (!spin) syscall(SYS_futex, turn, FUTEX_WAKE, INT_MAX, 0, 0, 0);
}

static void futex(int spin, double budget, double *samples) {
  struct word *word = (struct word *)map_bytes(sizeof *word);
  word->turn = 0;
  pid_t child = fork_bound();
  if (!child)
    for (;;) {
      wait_turn(&word->turn, 1, spin);
      give_turn(&word->turn, 0, spin);
    }
  size_t count = 0;
  double end = now() + budget, start;
  for (int i = 0; ((start = now()) < end || count < 10) && count < SAMPLES_MAX; i++) {
    give_turn(&word->turn, 1, spin);
    wait_turn(&word->turn, 0, spin);
    if (i >= WARM_UP) samples[count++] = now() - start;
  }
  kill(child, SIGKILL);
  waitpid(child, 0, 0);
  munmap(word, sizeof *word);
  report("futex", spin ? "spin" : "sleep", samples, count);
}

int main(int argc, char **argv) {
  const char *address = option(argc, argv, "address", "127.0.0.1");
  const char *near_name = option(argc, argv, "near", ""), *far_name = option(argc, argv, "far", "");
  double budget = atof(option(argc, argv, "budget", "0.2"));
  double *samples = malloc(SAMPLES_MAX * sizeof *samples);
  if (!samples) die("malloc");
  for (int spin = 0; spin < 2; spin++) {
    tcp(address, near_name, far_name, spin, budget, samples);
    uds(spin, budget, samples);
    futex(spin, budget, samples);
  }
  return 0;
}
