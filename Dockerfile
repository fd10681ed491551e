# The image of workers, for TPUs or for NVIDIA GPUs; scaling.launch.launchers.tpu.gke and docs/first-tpu-pod-sweep.md use it.
#
#   docker build --build-arg EXTRA=tpu --tag scaling:tpu .
#   docker build --build-arg EXTRA=cuda --tag scaling:cuda .
#
# CUDA comes from the index as wheels (jax[cuda13]); the machine brings only its driver.
FROM python:3.13-slim

ARG EXTRA
RUN case "$EXTRA" in tpu | cuda) ;; *) echo "say --build-arg EXTRA=tpu or EXTRA=cuda" >&2; exit 1 ;; esac

WORKDIR /opt/scaling
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY scaling scaling
COPY analysis analysis
COPY experiments experiments
COPY configs configs
RUN pip install --no-cache-dir --constraint constraints.txt ".[$EXTRA,gcs,s3]"

RUN useradd --create-home --uid 1000 scaling
USER scaling
WORKDIR /home/scaling
ENTRYPOINT ["scaling"]
