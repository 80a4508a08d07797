# For valkey/valkey:*: the server of Debian, started as the official image is.
ARG DEBIAN
FROM ${DEBIAN}
RUN groupadd --system --gid 999 valkey \
    && useradd --system --uid 999 --gid valkey --home-dir /data valkey \
    && apt-get update \
    && apt-get install --yes --no-install-recommends valkey-server valkey-tools \
    && rm -rf /var/lib/apt/lists/* \
    && install --directory --owner valkey --group valkey /data
COPY valkey-entrypoint.sh /usr/local/bin/docker-entrypoint.sh
WORKDIR /data
VOLUME /data
EXPOSE 6379
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["valkey-server"]
