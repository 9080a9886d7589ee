# Training: torch with CUDA, torchrun, not root. Data and runs lie on a volume at /data.
#   docker build -f deploy/docker/train.Dockerfile -t assay/train:0.1.0 .
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
COPY requirements/all.lock requirements/
COPY pyproject.toml README.md LICENSE ./
# Versions and hashes come from the lock file; unlike a laptop, a GPU needs torch's own kernel compiler, so overrides.txt is not used.
RUN python3 -m venv /opt/assay \
 && python3 -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir uv==0.13.9 \
 && /opt/uv/bin/uv pip install --no-cache --python /opt/assay -r pyproject.toml --extra train -c requirements/all.lock
COPY worker worker
COPY train train
COPY triton_models triton_models
RUN /opt/uv/bin/uv pip install --no-cache --python /opt/assay --no-deps .

FROM ${BASE}
COPY --from=build /opt/assay /opt/assay
ENV PATH=/opt/assay/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 10001:10001
WORKDIR /data
# A run is a job: it ends by itself, and says how it goes in its log.
HEALTHCHECK NONE
ENTRYPOINT ["python", "-m", "train.main"]
