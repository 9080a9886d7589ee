# Triton with what builds and verifies the model repository inside it: a plan fits the TensorRT that built it, and no other.
#   docker build -f deploy/docker/triton.Dockerfile -t assay/triton:0.1.0 .
# Weights of your own: copy the folder to triton_models/weights/mine, --build-arg WEIGHTS=triton_models/weights/mine. Pin a digest of the base for production.
ARG BASE=nvcr.io/nvidia/tritonserver:26.06-py3
FROM ${BASE}
ARG WEIGHTS=triton_models/weights/demo
USER 0
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/opt/assay
COPY requirements/triton.txt /opt/assay/requirements/triton.txt
COPY deploy/docker/models.txt /opt/assay/requirements/models.txt
# Of the local server's environment everything but the server, which this image is. TRT_VERSION is set by the base.
RUN grep -v '^nvidia-pytriton' /opt/assay/requirements/triton.txt > /tmp/server.txt \
 && pip install --no-cache-dir -r /tmp/server.txt -r /opt/assay/requirements/models.txt ${TRT_VERSION:+"tensorrt==${TRT_VERSION%%+*}"} \
 && rm /tmp/server.txt
COPY triton_models /opt/assay/triton_models
COPY deploy/docker/prepare_models.py /opt/assay/prepare_models.py
COPY --chmod=0755 ${WEIGHTS} /opt/assay/weights
# git keeps no modes: whoever runs this may read it, nobody may write it. A volume that is new takes owner and mode of /models.
RUN chmod -R a+rX,go-w /opt/assay && install -d -o 10001 -g 10001 /models
USER 10001:10001
ENV HOME=/tmp
WORKDIR /tmp
# HTTP stays inside of the container, for the health check. Loading a model runs its code: over HTTP nobody may, over gRPC whoever has
# ASSAY_TRITON__CONTROL_KEY (the worker's setting of the same name), and nobody where that is not set: then a model whose process has
# died is served again once the container is restarted.
EXPOSE 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s \
  CMD ["curl", "--fail", "--silent", "http://127.0.0.1:8000/v2/health/ready"]
CMD ["/bin/sh", "-c", "exec tritonserver --model-repository=/models/repository --model-control-mode=explicit --load-model=code --disable-auto-complete-config --http-address=127.0.0.1 --http-restricted-api=model-repository,shared-memory,trace,logging:key=$(od -An -tx1 -N16 /dev/urandom | tr -d ' \\n') --grpc-restricted-protocol=model-repository,trace,logging:assay-control-key=${ASSAY_TRITON__CONTROL_KEY:-$(od -An -tx1 -N16 /dev/urandom | tr -d ' \\n')}"]
