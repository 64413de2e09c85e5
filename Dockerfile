# syntax=docker/dockerfile:1
# One image for all roles: docker run sentstream run | read | work | reconcile | serve | setup | doctor ...
# Runs as user 10001, writes nothing but /tmp (a read-only root file system is fine with a tmpfs there), and needs no
# capability. Build from the root of the repository: docker build -t sentstream .

FROM python:3.13-slim AS build
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/sentstream
COPY pyproject.toml README.md LICENSE ./
COPY locks/run.txt locks/run.txt
COPY sentstream sentstream
COPY stream stream
COPY connectors connectors
# the locked versions; of what the lock lists only what sentstream itself needs, no private servers
RUN sed -e '/^ *--hash/d' -e 's/ *\\$//' locks/run.txt > constraints.txt \
    && /opt/sentstream/bin/pip install --constraint constraints.txt '.[kafka]'

FROM python:3.13-slim
COPY --from=build /opt/sentstream /opt/sentstream
ENV PATH=/opt/sentstream/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SENTSTREAM_LOG_FORMAT=json
USER 10001:10001
WORKDIR /tmp
EXPOSE 8087 9087
STOPSIGNAL SIGTERM
# asks /livez of METRICS_LISTEN, or of HTTP_LISTEN where that is off: progress, not "the process is up"
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=3 CMD ["python", "-m", "stream.metrics.probe"]
ENTRYPOINT ["sentstream"]
CMD ["run", "--no-view"]
