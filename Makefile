# The two commands of the README, and the inner loop.
#
#   make demo        two daemons, two vLLM engines, one prompt: prefill there, decode here, every block verified
#   make test        everything, ending with one line `N passed, N failed`
#   make check       format, lints and unit tests, for use while writing
#   make torture     10,000 kill -9 of daemons under load, and of each store; a day of requests: an hour (KILLS=1000: 7 min)
#   make bench-peers KVFerry beside NIXL, Mooncake, iperf3 and raw sockets, in under 30 minutes: benches/RESULTS.md
#                    (shorter while developing: ROUNDS=1 ONLY=lo,copy PEERS=nixl-tcp,iperf3)
#   make bench-tiers KVFerry's host memory and disk beside memcpy, fio, Mooncake, LMCache, Redis; first token in vLLM
#                    (one part while developing: ROUNDS=1 ONLY=host, of host, look-up, disk, beside, restart, ttft)
#   make bench-vllm  first token on D: recompute, vLLM's NixlConnector, KVFerry; rewrites its section of benches/RESULTS.md
#
# Each installs what it lacks (under target/, and Debian packages where it runs as root) and nothing twice.

.PHONY: bench-peers bench-tiers bench-vllm check demo help setup test torture

help:
	@sed -n 's/^#   //p' Makefile

# Only what is missing or out of date; `make demo` and `make test` do it themselves.
setup:
	@python3 tests/setup packages tools vllm models daemon wheel

demo: setup
	@python3 tests/vllm/demo.py

test:
	@python3 tests/run test

check:
	@python3 tests/run check

# TRACE=FILE, an hour of requests as `kvferry cache replay` takes it, in place of a made-up one; SEED=N makes the same
# choices again.
torture:
	@KVFERRY_KILLS="$(KILLS)" KVFERRY_TRACE="$(TRACE)" KVFERRY_TEST_SEED="$(SEED)" python3 tests/run torture

bench-vllm: setup
	@python3 tests/setup nixl
	@python3 benches/vllm

# As root it also measures between network namespaces, and installs iperf3 where it is missing.
bench-peers:
	@python3 benches/peers --rounds "$(or $(ROUNDS),5)" --only "$(ONLY)" --peers "$(PEERS)"

# As root it also installs fio and Redis where they are missing. Up to 8 GiB of memory and 3 GB on the disk of target/.
bench-tiers: setup
	@python3 benches/tiers --rounds "$(or $(ROUNDS),5)" --only "$(ONLY)"
