// What plain TCP sockets carry between two processes: blocks of one size in random order, gathered by sendmsg and
// scattered by recvmsg, for several call sizes and stream counts, sleeping and spinning.
//
//   source (child) -> sendmsg of up to CALL bytes -> kernel -> recvmsg of up to CALL bytes -> destination (parent)
//
//   raw_sockets --address IP --near NAMESPACE --far NAMESPACE --block BYTES --region BYTES --budget SECONDS --full 0|1
//
// One JSON line for each way. The best of them is the ceiling that transports on TCP are held against: no request, no
// answer, no checksum and no end of a transfer, both sides on one continuous flow. Every pass goes through the whole
// region. The destination is wiped before each way and compared after it: in full with --full 1, else every 16th block.
#include "measure.h"

#define BUFFER (8 << 20)
#define IOV 512
#define STREAMS 2

struct way {
  size_t call;
  int streams;
  int spin;
  int cubic;  // or the system's congestion control
};

// Of more sizes, these were the best in one setting or another (measured: 128 KiB to 4 MiB, 1 to 4 streams).
static const struct way WAYS[] = {
    {512 << 10, 1, 0, 0}, {512 << 10, 2, 0, 0}, {256 << 10, 1, 1, 0}, {512 << 10, 1, 1, 0},
    {512 << 10, 1, 0, 1}, {512 << 10, 2, 0, 1},
};
#define WAY_COUNT (sizeof WAYS / sizeof *WAYS)

// One stream's share of the blocks: number `first`, `first + step`, ... of the order.
struct flow {
  char *memory;
  const size_t *order;
  size_t count, block, first, step;
  const struct way *way;
  double budget;
  int socket;
  size_t bytes;  // moved
  // When the warm-up had passed, what had moved by then, and when the last byte came.
  double warm_at, ended_at;
  size_t warm_bytes;
};

// Windows have opened, and the scheduler has found a core for each thread; as long as that of `kvferry bench`.
static const double WARM_UP = 0.15;

static const char *address, *near_name, *far_name;

static size_t share(const struct flow *f) { return (f->count - f->first + f->step - 1) / f->step; }

// The next up to `call` bytes of the flow as pieces; never past the end of one pass.
static int gather(const struct flow *f, struct iovec *iov) {
  size_t pass = share(f) * f->block, at = f->bytes % pass, left = f->way->call;
  int n = 0;
  while (left && n < IOV && at < pass) {
    size_t inside = at % f->block, length = f->block - inside;
    if (length > left) length = left;
    iov[n].iov_base = f->memory + f->order[f->first + at / f->block * f->step] + inside;
    iov[n++].iov_len = length;
    at += length;
    left -= length;
  }
  return n;
}

static void *send_flow(void *argument) {
  struct flow *f = argument;
  struct iovec iov[IOV];
  int flags = MSG_NOSIGNAL | (f->way->spin ? MSG_DONTWAIT : 0);
  double end = now() + WARM_UP + f->budget;
  while (now() < end) {
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = gather(f, iov)};
    ssize_t sent = sendmsg(f->socket, &message, flags);
    if (sent > 0) f->bytes += sent;
    else if (errno != EAGAIN && errno != EINTR) die("sendmsg");
  }
  shutdown(f->socket, SHUT_WR);
  char last;
  while (recv(f->socket, &last, 1, 0) < 0 && errno == EINTR) {}
  close(f->socket);
  return 0;
}

static void *receive_flow(void *argument) {
  struct flow *f = argument;
  struct iovec iov[IOV];
  int flags = f->way->spin ? MSG_DONTWAIT : 0;
  double warm = now() + WARM_UP;
  for (;;) {
    if (!f->warm_at && now() >= warm) {
      f->warm_at = now();
      f->warm_bytes = f->bytes;
    }
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = gather(f, iov)};
    ssize_t got = recvmsg(f->socket, &message, flags);
    if (got > 0) f->bytes += got;
    else if (got == 0) {
      f->ended_at = now();
      return 0;
    }
    else if (errno != EAGAIN && errno != EINTR) die("recvmsg");
  }
}

// As large as the kernel lets us; without root it stops at net.core.[rw]mem_max.
static void enlarge(int fd, int forced, int asked) {
  int size = BUFFER;
  if (setsockopt(fd, SOL_SOCKET, forced, &size, sizeof size)) setsockopt(fd, SOL_SOCKET, asked, &size, sizeof size);
}

// Without pacing, whatever the system's choice. Where it is not allowed, this way is another like the first.
static void take_cubic(int fd) { setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5); }

static int listen_here(struct sockaddr_in *at, int cubic) {
  socklen_t length = sizeof *at;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) die("socket");
  enlarge(fd, SO_RCVBUFFORCE, SO_RCVBUF);  // both are inherited by the accepted sockets
  if (cubic) take_cubic(fd);
  if (bind(fd, (void *)at, length) || listen(fd, STREAMS) || getsockname(fd, (void *)at, &length)) die("listen");
  return fd;
}

static int dial(const struct sockaddr_in *to, int cubic) {
  int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) die("socket");
  enlarge(fd, SO_SNDBUFFORCE, SO_SNDBUF);
  if (cubic) take_cubic(fd);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (connect(fd, (const void *)to, sizeof *to)) die("connect");
  return fd;
}

static void run_flows(struct flow *flows, int count, void *(*body)(void *)) {
  pthread_t thread[STREAMS];
  for (int i = 1; i < count; i++)
    if (pthread_create(&thread[i], 0, body, &flows[i])) die("pthread_create");
  body(&flows[0]);
  for (int i = 1; i < count; i++) pthread_join(thread[i], 0);
}

static void set_flows(struct flow *flows, struct flow like, const struct way *way) {
  like.way = way;
  like.step = way->streams;
  for (int i = 0; i < way->streams; i++) {
    flows[i] = like;
    flows[i].first = i;
  }
}

// The child: for each way, told where to connect, sends for the time of the budget.
static void source(int control, struct flow like, size_t region, uint64_t seed) {
  enter(far_name);
  like.memory = map_bytes(region);
  like.order = shuffled(region, like.block, seed);
  fill(like.memory, region);
  for (size_t w = 0; w < WAY_COUNT; w++) {
    struct sockaddr_in to;
    struct flow flows[STREAMS];
    if (read(control, &to, sizeof to) != sizeof to) _exit(1);
    set_flows(flows, like, &WAYS[w]);
    for (int i = 0; i < WAYS[w].streams; i++) {
      unsigned char number = i;
      flows[i].socket = dial(&to, WAYS[w].cubic);
      if (send(flows[i].socket, &number, 1, 0) != 1) die("send");
    }
    run_flows(flows, WAYS[w].streams, send_flow);
  }
  _exit(0);
}

// Compares what landed with what was sent, in the order of both sides.
static int check(const struct flow *f, const size_t *source_order, int full) {
  size_t landed = f->bytes / f->block;
  if (landed > share(f)) landed = share(f);
  for (size_t i = 0; i < landed; i += full ? 1 : 16) {
    size_t number = f->first + i * f->step;
    if (!holds(f->memory + f->order[number], source_order[number], f->block)) return 0;
  }
  return 1;
}

int main(int argc, char **argv) {
  struct flow like = {0};
  size_t region = strtoull(option(argc, argv, "region", "1073741824"), 0, 10);
  int full = atoi(option(argc, argv, "full", "1"));
  address = option(argc, argv, "address", "127.0.0.1");
  near_name = option(argc, argv, "near", "");
  far_name = option(argc, argv, "far", "");
  like.block = strtoull(option(argc, argv, "block", "65536"), 0, 10);
  like.budget = atof(option(argc, argv, "budget", "0.3"));
  like.count = region / (like.block ? like.block : 1);
  if (!like.block || like.block % 8 || like.count < STREAMS) {
    fprintf(stderr, "blocks must be multiples of 8 bytes, and two of them must fit the region\n");
    return 2;
  }
  const uint64_t source_seed = 11, destination_seed = 22;
  int control[2];
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, control)) die("socketpair");
  pid_t child = fork_bound();
  if (!child) source(control[1], like, region, source_seed);
  close(control[1]);
  enter(near_name);
  like.memory = map_bytes(region);
  like.order = shuffled(region, like.block, destination_seed);
  size_t *source_order = shuffled(region, like.block, source_seed);
  for (size_t w = 0; w < WAY_COUNT; w++) {
    const struct way *way = &WAYS[w];
    struct flow flows[STREAMS];
    struct sockaddr_in at = {.sin_family = AF_INET};
    if (inet_pton(AF_INET, address, &at.sin_addr) != 1) die("address");
    memset(like.memory, 0, region);
    set_flows(flows, like, way);
    int listener = listen_here(&at, way->cubic);
    if (write(control[0], &at, sizeof at) != sizeof at) die("write");
    for (int i = 0; i < way->streams; i++) {
      unsigned char number;
      int fd = accept(listener, 0, 0);
      if (fd < 0 || recv(fd, &number, 1, MSG_WAITALL) != 1 || number >= way->streams) die("accept");
      flows[number].socket = fd;
    }
    close(listener);
    run_flows(flows, way->streams, receive_flow);
    double rate = 0;
    int same = 1;
    for (int i = 0; i < way->streams; i++) {
      close(flows[i].socket);
      if (!flows[i].warm_at) die("the flow ended before it was warm");
      rate += (flows[i].bytes - flows[i].warm_bytes) / (flows[i].ended_at - flows[i].warm_at);
      same &= check(&flows[i], source_order, full && w == 0);
    }
    printf("{\"call\": %zu, \"streams\": %d, \"wait\": \"%s\", \"congestion\": \"%s\", ", way->call, way->streams,
           way->spin ? "spin" : "sleep", way->cubic ? "cubic" : "system");
    printf("\"gbps\": %.4f, \"verified\": %s}\n", rate / 1e9, same ? "true" : "false");
    fflush(stdout);
  }
  int status;
  waitpid(child, &status, 0);
  return status ? 1 : 0;
}
