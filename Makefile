# Everything a developer or packager does: `make` builds, `make check` proves, `make demo` shows.

PREFIX  ?= /usr/local
LIBDIR  ?= $(PREFIX)/lib
DESTDIR ?=
CARGO   ?= cargo
CC      ?= cc
STRIP   ?= strip
CLIPPY  := $(CARGO) clippy --profile proof --locked --all-targets -- -D warnings
CFLAGS  ?= -O2 -g
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
SONAME  := libreprise.so.0

LIBRARY := target/release/libreprise.so
HEADER  := include/reprise.h
SOURCES := $(shell find src -type f) Cargo.toml Cargo.lock build.rs cbindgen.toml tools/header.rs

WARN    := -std=c11 -D_GNU_SOURCE= -Wall -Wextra -Wpedantic -Werror
TLS     := -lssl -lcrypto -lpthread -ldl
REPRISE := -Iinclude -Ltarget/release '-Wl,-rpath,$(CURDIR)/target/release' -lreprise

# One program for each manual page, linked with libssl alone and with Reprise ahead of it.
PAGES   := $(patsubst c_tests/%.c,%,$(filter-out c_tests/harness.c,$(wildcard c_tests/*.c)))
OUT     := target/c_tests
# Where another libssl is to be tested: a folder with include/, lib/ and bin/ (tools/libssl.sh builds such).
LIBSSL  ?=
# Those that `make check-all` and `make conformance` try.
VERSIONS := 1.1.1 3.0 3.5 3.6 4.0
ifneq ($(LIBSSL),)
OUT     := target/c_tests-$(notdir $(LIBSSL))
WARN    += -I$(LIBSSL)/include
TLS     := -L$(LIBSSL)/lib -Wl,-rpath,$(LIBSSL)/lib $(TLS)
endif

.PHONY: all setup needed-to-build needed-to-check header install install-strip uninstall check check-everything check-quick \
        build-for-check check-all check-rust check-redis check-units check-c check-valgrind check-observed \
        check-conformance check-header observe conformance demo show bench lint clean
.DELETE_ON_ERROR:
# Test suites that run side by side under -j would disturb each other. Each of them uses all processors by itself.
.NOTPARALLEL:

all: $(LIBRARY)

# Only this, `make demo` and `make check` install packages, and only when root runs them. All others say what is missing.
setup:
	@tools/setup.sh check --install

needed-to-build:
	@tools/setup.sh build

needed-to-check:
	@tools/setup.sh check

$(LIBRARY): $(SOURCES)
	@tools/setup.sh build
	$(CARGO) build --release --locked --target-dir target
	@ln -sf libreprise.so target/release/$(SONAME)
	@touch -c $@

# --- the header ---------------------------------------------------------------------------------------------------

# Each build writes the header anew; what is committed is a copy.
GENERATED = $(shell ls -t target/release/build/reprise-*/out/reprise.h | head -n 1)

header: needed-to-build
	$(CARGO) build --release --locked --target-dir target
	cp $(GENERATED) $(HEADER)

check-header: $(LIBRARY)
	@cmp $(HEADER) $(GENERATED) || { echo "include/reprise.h is not what the sources say: make header"; exit 1; }

# --- installing ---------------------------------------------------------------------------------------------------

# make's lists cannot hold spaces: `uninstall` would remove other files.
ifneq ($(words x$(DESTDIR)$(PREFIX)$(LIBDIR)x),1)
    $(error DESTDIR, PREFIX and LIBDIR must not contain spaces)
endif
ifneq ($(filter-out /%,$(PREFIX) $(LIBDIR)),)
    $(error PREFIX and LIBDIR must begin with /)
endif

INCLUDE := $(PREFIX)/include
BIN     := $(PREFIX)/bin
SHARE   := $(PREFIX)/share
CMAKE   := $(LIBDIR)/cmake/reprise
MAJOR   := $(firstword $(subst ., ,$(VERSION)))
# What the templates leave open. pkg-config can move a package whose folders are given in terms of its prefix.
FILL    := sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@PC_LIBDIR@|$(patsubst $(PREFIX)/%,$${prefix}/%,$(LIBDIR))|' \
               -e 's|@VERSION@|$(VERSION)|' -e 's|@MAJOR@|$(MAJOR)|' -e 's|@SONAME@|$(SONAME)|' \
               -e "s|@INCLUDE@|$$(realpath -ms --relative-to=$(CMAKE) $(INCLUDE))|"

PAGES_3 := $(wildcard docs/man/*.3)
PAGES_7 := $(wildcard docs/man/*.7)
# Those that the command writes: `reprise generate man`.
PAGES_1 := $(addsuffix .1,reprise $(addprefix reprise-,run status doctor cache cache-ls cache-show cache-flush cache-rm keygen))

# Everything that `install` makes, for `uninstall`.
INSTALLED := $(LIBDIR)/libreprise.so.$(VERSION) $(LIBDIR)/$(SONAME) $(LIBDIR)/libreprise.so $(LIBDIR)/pkgconfig/reprise.pc \
    $(CMAKE)/reprise-config.cmake $(CMAKE)/reprise-config-version.cmake $(INCLUDE)/reprise.h $(BIN)/reprise \
    $(addprefix $(SHARE)/man/man1/,$(PAGES_1)) $(addprefix $(SHARE)/man/man3/,$(notdir $(PAGES_3))) \
    $(addprefix $(SHARE)/man/man7/,$(notdir $(PAGES_7))) $(SHARE)/bash-completion/completions/reprise \
    $(SHARE)/zsh/site-functions/_reprise $(SHARE)/fish/vendor_completions.d/reprise.fish

install: $(LIBRARY)
	install -d $(addprefix $(DESTDIR),$(sort $(dir $(INSTALLED))))
	install -m 755 target/release/reprise $(DESTDIR)$(BIN)/reprise
	target/release/reprise generate man $(DESTDIR)$(SHARE)/man/man1
	install -m 644 $(PAGES_3) $(DESTDIR)$(SHARE)/man/man3
	install -m 644 $(PAGES_7) $(DESTDIR)$(SHARE)/man/man7
	target/release/reprise generate completions bash > $(DESTDIR)$(SHARE)/bash-completion/completions/reprise
	target/release/reprise generate completions zsh > $(DESTDIR)$(SHARE)/zsh/site-functions/_reprise
	target/release/reprise generate completions fish > $(DESTDIR)$(SHARE)/fish/vendor_completions.d/reprise.fish
	install -m 644 $(LIBRARY) $(DESTDIR)$(LIBDIR)/libreprise.so.$(VERSION)
	ln -sf libreprise.so.$(VERSION) $(DESTDIR)$(LIBDIR)/$(SONAME)
	ln -sf $(SONAME) $(DESTDIR)$(LIBDIR)/libreprise.so
	install -m 644 $(HEADER) $(DESTDIR)$(INCLUDE)/reprise.h
	$(FILL) reprise.pc.in > $(DESTDIR)$(LIBDIR)/pkgconfig/reprise.pc
	$(FILL) cmake/reprise-config.cmake.in > $(DESTDIR)$(CMAKE)/reprise-config.cmake
	$(FILL) cmake/reprise-config-version.cmake.in > $(DESTDIR)$(CMAKE)/reprise-config-version.cmake
	@# What is written by the shell has the mode that the umask leaves.
	chmod 644 $(addprefix $(DESTDIR),$(filter-out $(BIN)/%,$(INSTALLED)))

# Without what only debuggers read. What the dynamic linker reads stays.
install-strip: install
	$(STRIP) --strip-unneeded $(DESTDIR)$(LIBDIR)/libreprise.so.$(VERSION)
	$(STRIP) $(DESTDIR)$(BIN)/reprise

# With the PREFIX, LIBDIR and DESTDIR of the installation. Folders that others may use stay.
uninstall:
	rm -f $(addprefix $(DESTDIR),$(INSTALLED))
	if [ -d $(DESTDIR)$(CMAKE) ]; then rmdir --ignore-fail-on-non-empty $(DESTDIR)$(CMAKE); fi

# --- C tests ------------------------------------------------------------------------------------------------------

$(OUT)/harness.o: c_tests/harness.c c_tests/harness.h | needed-to-check
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(WARN) -c $< -o $@

$(OUT)/stock/%: c_tests/%.c $(OUT)/harness.o
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(WARN) $^ -o $@ -lcmocka $(TLS)

$(OUT)/reprise/%: c_tests/%.c $(OUT)/harness.o $(LIBRARY)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(WARN) -DWITH_REPRISE $(filter %.c %.o,$^) -o $@ -lcmocka $(REPRISE) $(TLS)

STOCK_PAGES   := $(addprefix $(OUT)/stock/,$(PAGES))
REPRISE_PAGES := $(addprefix $(OUT)/reprise/,$(PAGES))

check-c: $(STOCK_PAGES) $(REPRISE_PAGES)
	tools/run_pages.sh $(OUT) $(PAGES)

check-valgrind: $(STOCK_PAGES) $(REPRISE_PAGES)
	tools/run_pages.sh --valgrind $(OUT) $(PAGES)

# What was observed on the system's libssl, or on LIBSSL, is what is recorded of that patch release, if it is; then the page
# that is made of all records.
check-observed: check-c
	@tools/conformance.py check $(OUT) $(LIBSSL) \
	    || { echo "c_tests/observed/ is not what the tests print: make conformance"; exit 1; }

check-conformance: check-observed
	@tools/conformance.py print | diff -u docs/conformance.md - \
	    || { echo "docs/conformance.md is not what c_tests/observed/ says: make conformance"; exit 1; }

observe: check-c
	tools/conformance.py collect $(OUT) $(LIBSSL) > c_tests/observed/$(or $(notdir $(LIBSSL)),debian).tsv

conformance: observe
	for version in $(VERSIONS); do \
	    $(MAKE) --no-print-directory observe LIBSSL="$$(tools/libssl.sh $$version)" || exit 1; done
	tools/conformance.py print > docs/conformance.md

# --- everything ---------------------------------------------------------------------------------------------------

check:
	@tools/setup.sh check --install
	@$(MAKE) --no-print-directory check-everything
	@echo "make check: everything passed"

# Rust's tests come last: their closing line sums up.
check-everything: build-for-check lint check-header check-c check-conformance check-valgrind check-redis check-rust

# The library and the tests side by side: the last minutes of the library, its optimization as a whole, use one processor.
build-for-check: needed-to-check
	@{ $(CARGO) test --profile proof --locked --no-run && $(CLIPPY); } & tests=$$!; \
	    $(MAKE) --no-print-directory all && wait $$tests

# While one works: what is fast to run after a build.
check-quick: lint check-units $(STOCK_PAGES) $(REPRISE_PAGES)
	tools/run_pages.sh --quick $(OUT) $(PAGES)

# Tests are built without the optimization over all crates, which would take longer than they do. What is proven is the
# library of the release all the same.
check-rust: needed-to-check $(LIBRARY) target/server-stock target/server-reprise target/reconnect
	$(CARGO) test --profile proof --locked --no-fail-fast

# The tests of the cache in Redis, complete, on each server that is installed (Redis, Valkey) beyond the one that
# check-rust takes.
check-redis: needed-to-check $(LIBRARY)
	tools/check_redis.sh

check-units: needed-to-check $(LIBRARY)
	$(CARGO) test --profile proof --locked --lib --bins

# What takes longer, or needs a nightly Rust: bare machines, other versions of libssl, data races, the model checker, fuzzing.
check-all: check
	tools/fresh.sh bookworm
	tools/fresh.sh trixie
	$(MAKE) --no-print-directory deb check-deb
	tools/run_pages.sh --valgrind-all $(OUT) $(PAGES)
	REPRISE_FIRST_SEQUENCE=$$(date +%s) REPRISE_SEQUENCES=20000 $(CARGO) test --profile proof --locked --test differential
	tools/check_libssl.sh $(VERSIONS)
	tools/check_threads.sh
	tools/check_models.sh

lint: needed-to-check
	$(CARGO) fmt --check
	$(CLIPPY)
	@$(MAKE) --no-print-directory check-copyright
	shellcheck .ci/run $$([ -e .git ] && git ls-files '*.sh' 2>/dev/null || find . -name '*.sh' -not -path './target/*' -not -path './vendor/*')

# --- the example server, the demo, the benchmarks -------------------------------------------------------------------

target/server-stock: examples/server.c | needed-to-check
	$(CC) $(CFLAGS) $(WARN) $< -o $@ -lsqlite3 $(TLS)

target/server-reprise: examples/server.c $(LIBRARY) $(HEADER)
	$(CC) $(CFLAGS) $(WARN) -DWITH_REPRISE $< -o $@ -lsqlite3 $(REPRISE) $(TLS)

target/reconnect: c_tests/tools/reconnect.c | needed-to-build
	$(CC) $(CFLAGS) $(WARN) $< -o $@ $(TLS)

target/prefork: examples/prefork.c | needed-to-build
	$(CC) $(CFLAGS) $(WARN) $< -o $@ $(TLS)

demo:
	@tools/setup.sh demo --install
	@$(MAKE) --no-print-directory show

show: all target/prefork target/reconnect
	@REPRISE=target/release/reprise PREFORK=target/prefork RECONNECT=target/reconnect examples/demo.sh

bench: all
	$(CARGO) bench --locked --bench paired -- $(or $(BENCH),--plots docs/img)
	$(CARGO) bench --locked --bench exports

# --- releases -----------------------------------------------------------------------------------------------------

.PHONY: dist deb check-deb copyright check-copyright

# The source with all crates, and Debian packages made from it. Neither installs anything.
dist:
	tools/dist.sh

deb: dist
	tools/deb.sh

# On fresh Debian 12 and 13: installed, used, removed. Needs root, and what `make deb` made.
check-deb:
	tools/check_deb.sh bookworm
	tools/check_deb.sh trixie

copyright:
	mkdir -p target && tools/crates.py copyright > target/copyright && mv target/copyright debian/copyright

check-copyright:
	@tools/crates.py check || { echo "debian/copyright is not what Cargo.lock's crates say: make copyright"; exit 1; }

clean:
	$(CARGO) clean
