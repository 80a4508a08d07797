# The API, and beside it what looks after the service: `tid migrate`, `tid keys`, `tid backup`, `tid gc`. No PyTorch.
#
#   docker build -f docker/api.Dockerfile -t tid-api:local .
#
# Both images are built the same way (docs/decisions/019): pinned and hashed packages go into /opt/tid, the project's own
# wheel into /opt/tid-service, and these two onto a fresh base, so that another version of the project is one small
# layer. Index, proxy and certificates are the builder's and the base image's; nothing of them stays.
ARG PYTHON_IMAGE=python:3.13.16-slim-trixie

FROM ${PYTHON_IMAGE} AS packages
ENV UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never UV_COMPILE_BYTECODE=1 PYC_INVALIDATION_MODE=UNCHECKED_HASH
# The builder's index, for those who have their own; arguments leave no trace in the last stage.
ARG PIP_INDEX_URL
ARG UV_DEFAULT_INDEX
WORKDIR /build
COPY docker/requirements-build.txt docker/
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --only-binary :all: --require-hashes -r docker/requirements-build.txt
# SOURCE_DATE_EPOCH, where given, is the time of all files.
ARG SOURCE_DATE_EPOCH
COPY docker/requirements-api.txt docker/
RUN /opt/build/bin/uv venv --python "$(command -v python3)" /opt/tid \
    && /opt/build/bin/uv pip install --python /opt/tid --only-binary :all: --require-hashes -r docker/requirements-api.txt \
    && for folder in /opt/tid/lib/python3*/site-packages; do echo /opt/tid-service > "$folder/tid-service.pth"; done \
    && if [ -n "$SOURCE_DATE_EPOCH" ]; then find /opt/tid -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +; fi

FROM packages AS project
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY examples/ examples/
COPY tid_core/ tid_core/
COPY store/ store/
COPY worker/ worker/
COPY api/ api/
COPY client/ client/
# There is no .git here: the version comes from outside.
ARG VERSION
ARG SOURCE_DATE_EPOCH
RUN if [ -n "$VERSION" ]; then export SETUPTOOLS_SCM_PRETEND_VERSION="$VERSION"; fi \
    && /opt/build/bin/hatchling build --target wheel --directory /dist \
    && /opt/build/bin/uv pip install --python /opt/tid --target /opt/tid-service --no-deps --no-index --find-links /dist tid-service \
    && rm /opt/tid-service/tid_service-*/uv_cache.json \
    && sed -i '/uv_cache.json/d' /opt/tid-service/tid_service-*/RECORD \
    && if [ -n "$SOURCE_DATE_EPOCH" ]; then find /opt/tid-service -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +; fi

FROM ${PYTHON_IMAGE}
# `tid backup` needs a pg_dump that is not older than the server: empty where the base image has one.
ARG DEBIAN_PACKAGES=postgresql-client
# Versions of Debian's packages are the mirror's: it keeps one of each, and takes the old one away with each security fix.
# hadolint ignore=DL3008,SC2086
RUN if [ -n "$DEBIAN_PACKAGES" ]; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends $DEBIAN_PACKAGES \
        && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log /var/cache/ldconfig/aux-cache; \
    fi \
    && groupadd --gid 10001 tid \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/tid --shell /usr/sbin/nologin tid \
    && install --directory --owner tid --group tid --mode 700 /var/lib/tid /var/lib/tid/uploads
COPY --from=packages /opt/tid /opt/tid
COPY --from=project /opt/tid-service /opt/tid-service
COPY docker/alive/api.py /opt/alive/
ENV PATH=/opt/tid-service/bin:/opt/tid/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/lib/tid \
    TID_HOME=/var/lib/tid \
    TID_HOST=0.0.0.0
USER 10001:10001
WORKDIR /var/lib/tid
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-IS", "/opt/alive/api.py"]
CMD ["python", "-m", "api"]

ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="tid-api" \
      org.opencontainers.image.description="The API of tid-service: distil an object detector as a job" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
