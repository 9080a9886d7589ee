# The worker: no torch, no local stack, not root. Built from the root of the repository:
#   docker build -f deploy/docker/worker.Dockerfile -t assay/worker:0.1.0 .
# Any base with Python >= 3.11 and its venv module will do; pin a digest for production.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
COPY requirements/worker.lock requirements/
COPY pyproject.toml README.md LICENSE ./
# Versions and hashes come from the lock file; the extras of the local stack stay out.
RUN python3 -m venv /opt/assay \
 && python3 -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir uv==0.13.9 \
 && /opt/uv/bin/uv pip install --no-cache --python /opt/assay -r pyproject.toml --extra s3 --extra otel --extra console -c requirements/worker.lock
COPY worker worker
COPY train train
COPY triton_models triton_models
RUN /opt/uv/bin/uv pip install --no-cache --python /opt/assay --no-deps . \
 && rm -rf /opt/assay/lib/python3*/site-packages/pip* \
 && find /opt/assay -name tests -type d -prune -exec rm -rf {} +

FROM ${BASE}
COPY --from=build /opt/assay /opt/assay
ENV PATH=/opt/assay/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    ASSAY_HTTP__HOST=0.0.0.0
USER 10001:10001
WORKDIR /tmp
EXPOSE 9464 9470 9471
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9464/livez', timeout=4)"]
ENTRYPOINT ["python", "-m", "worker"]
CMD ["run"]
