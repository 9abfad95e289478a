# An image with one static binary and the certificates of public authorities. It has no shell, no file of users, and
# nothing that can be written to.
#
#   docker build -t registry.example.com/thingspace-gateway:0.1.0 .
#
# `make image` makes the same image with the machine's own toolchain, where no image can be pulled.

# The toolchain that Cargo.toml names (rust-version), on Debian 12, whose glibc is linked into the binary.
FROM docker.io/library/rust:1.95.0-bookworm AS build
WORKDIR /src
COPY . .
RUN .ci/image-root /out

FROM scratch
COPY --from=build /out/ /
USER 65532:65532
ENTRYPOINT ["/thingspace-gateway"]
CMD ["--help"]
# Which sources the image has. `make image` fills them in.
ARG VERSION=""
ARG REVISION=""
ARG SOURCE=""
LABEL org.opencontainers.image.title="thingspace-gateway" \
      org.opencontainers.image.description="One gRPC service that owns eSIM profile downloads through Verizon's ThingSpace" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.source="$SOURCE"
