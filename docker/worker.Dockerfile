# A worker and its trainings: PyTorch with the CUDA libraries of its ordinary wheels, so that the base needs no CUDA.
# Also everything for `tid demo`, which runs in it.
#
#   docker build -f docker/worker.Dockerfile -t tid-worker:local .
#
# Built as api.Dockerfile is, and explained there.
ARG PYTHON_IMAGE=python:3.13.16-slim-trixie

FROM ${PYTHON_IMAGE} AS packages
ENV UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never UV_COMPILE_BYTECODE=1 PYC_INVALIDATION_MODE=UNCHECKED_HASH
ARG PIP_INDEX_URL
ARG UV_DEFAULT_INDEX
WORKDIR /build
COPY docker/requirements-build.txt docker/
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --only-binary :all: --require-hashes -r docker/requirements-build.txt
ARG SOURCE_DATE_EPOCH
COPY docker/requirements-worker.txt docker/
RUN /opt/build/bin/uv venv --python "$(command -v python3)" /opt/tid \
    && /opt/build/bin/uv pip install --python /opt/tid --only-binary :all: --require-hashes -r docker/requirements-worker.txt \
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
ARG VERSION
ARG SOURCE_DATE_EPOCH
RUN if [ -n "$VERSION" ]; then export SETUPTOOLS_SCM_PRETEND_VERSION="$VERSION"; fi \
    && /opt/build/bin/hatchling build --target wheel --directory /dist \
    && /opt/build/bin/uv pip install --python /opt/tid --target /opt/tid-service --no-deps --no-index --find-links /dist tid-service \
    && rm /opt/tid-service/tid_service-*/uv_cache.json \
    && sed -i '/uv_cache.json/d' /opt/tid-service/tid_service-*/RECORD \
    && if [ -n "$SOURCE_DATE_EPOCH" ]; then find /opt/tid-service -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +; fi

FROM ${PYTHON_IMAGE}
RUN groupadd --gid 10001 tid \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/tid --shell /usr/sbin/nologin tid \
    && install --directory --owner tid --group tid --mode 700 /var/lib/tid /var/lib/tid/uploads
COPY --from=packages /opt/tid /opt/tid
COPY --from=project /opt/tid-service /opt/tid-service
COPY docker/alive/worker.py /opt/alive/
# Weights that are fetched stay with the worker's files; the fonts of pictures and what Triton compiles do not.
ENV PATH=/opt/tid-service/bin:/opt/tid/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/lib/tid \
    TID_HOME=/var/lib/tid \
    TORCH_HOME=/var/lib/tid/torch \
    MPLCONFIGDIR=/tmp/matplotlib \
    TRITON_CACHE_DIR=/tmp/triton \
    TORCHINDUCTOR_CACHE_DIR=/tmp/inductor
USER 10001:10001
WORKDIR /var/lib/tid
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-IS", "/opt/alive/worker.py"]
CMD ["python", "-m", "worker.crew"]

ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="tid-worker" \
      org.opencontainers.image.description="A worker of tid-service: distil an object detector as a job" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
