# The image out of the sources alone, where images can be pulled:
#
#   docker build --build-arg REFRACT_COMMIT=$(git rev-parse HEAD) --tag refract .
#
# Where a Rust toolchain is at hand, `make image` makes the same image without pulling any.
FROM rust:1-slim-bookworm AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends jq \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /refract
COPY . .
ARG REFRACT_COMMIT=unknown
RUN echo "$REFRACT_COMMIT 0" > .commit \
 && mkdir /image \
 && cp "$(./scripts/build-static)" LICENSE /image/ \
 && ./scripts/third-party licences > /image/THIRD-PARTY-LICENSES.txt

FROM scratch
ARG REFRACT_COMMIT=unknown
LABEL org.opencontainers.image.title="refract" \
      org.opencontainers.image.description="Cuts shared Xray accounts off" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.revision="${REFRACT_COMMIT}"
COPY --from=build /image /opt/refract/

# As in packaging/image/Dockerfile, which says why.
ENV PATH=/opt/refract \
    REFRACT_BLOCK_LOG=/var/log/refract/block.log \
    REFRACT_FIREWALL=nftables
ENTRYPOINT ["/opt/refract/refract"]
