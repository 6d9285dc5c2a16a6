# docker build --build-arg REVISION="$(git rev-parse --short=12 HEAD)" -t vote-aggregator:0.1.0 .
#
# The image contains the program, its libraries and the TLS authorities. It runs as an unprivileged account, writes no
# files (--read-only works), and has no shell:
#
#   docker run --read-only --cap-drop=ALL -e RABBITMQ_HOST=... -e POSTGRES_HOST=... vote-aggregator:0.1.0

# Debian 12, like the machines that the tests run on. The image's libraries come from this stage.
FROM rust:1.95.0-bookworm AS build
WORKDIR /src
COPY . .
# The git revision, shown by --version and in the first line of the log.
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
# By number, so that an orchestrator can verify that it is not root.
USER 65532:65532
# The service reads a pipeline.toml that is mounted here.
WORKDIR /etc/vote-aggregator
EXPOSE 8001
STOPSIGNAL SIGTERM
# Healthy means that votes are counted or would be. If a failing check restarts the container (as in Swarm), use livez
# instead: ["/usr/bin/vote-aggregator", "health-check", "--ask", "livez"].
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["/usr/bin/vote-aggregator", "health-check"]
ENTRYPOINT ["/usr/bin/vote-aggregator"]
CMD ["run"]
