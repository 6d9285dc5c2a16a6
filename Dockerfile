# docker build --build-arg REVISION="$(git rev-parse --short=12 HEAD)" -t vote-aggregator:0.1.0 .
#
# The image holds the program, its libraries and the authorities for TLS. It runs as an account
# without rights, writes nothing (--read-only works), and has no shell:
#
#   docker run --read-only --cap-drop=ALL -e RABBITMQ_HOST=... -e POSTGRES_HOST=... vote-aggregator:0.1.0

# Debian 12, like the machines that the tests run on: the libraries come from here.
FROM rust:1.95.0-bookworm AS build
WORKDIR /src
COPY . .
# Which commit this is; --version and the first line of a log tell it.
ARG REVISION=""
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    VOTE_AGGREGATOR_REVISION="$REVISION" cargo build --release --locked --bin vote-aggregator \
    && deploy/docker/rootfs target/release/vote-aggregator /rootfs

FROM scratch
LABEL org.opencontainers.image.title="vote-aggregator" \
      org.opencontainers.image.description="Counts votes from a RabbitMQ queue into PostgreSQL, each exactly once" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /rootfs/ /
# By number, so that an orchestrator can see that it is not root.
USER 65532:65532
# A pipeline.toml mounted here is read.
WORKDIR /etc/vote-aggregator
EXPOSE 8001
STOPSIGNAL SIGTERM
# Healthy: votes are being counted or would be. Where a "no" restarts the container (Swarm does),
# ask for livez instead: ["/usr/bin/vote-aggregator", "health-check", "--ask", "livez"].
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["/usr/bin/vote-aggregator", "health-check"]
ENTRYPOINT ["/usr/bin/vote-aggregator"]
CMD ["run"]
