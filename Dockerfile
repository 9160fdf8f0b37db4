# The image holds the service and what it imports, nothing that builds or tests it, and no secret.

FROM python:3.11-slim-trixie AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build

# Every file is checked against its hash here; the installation below takes from these files alone.
COPY constraints.txt ./
RUN pip download --quiet --require-hashes -r constraints.txt -d wheels

COPY pyproject.toml README.md LICENSE alembic.ini ./
COPY migrations ./migrations
COPY app ./app
RUN python -m venv /opt/snose && /opt/snose/bin/pip install --quiet --no-index --find-links wheels .

FROM python:3.11-slim-trixie
# pg_dump and pg_restore of the server in compose.yaml, for `snose backup` and `snose restore`.
RUN apt-get update && apt-get install --yes --no-install-recommends postgresql-client-17 \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin snose \
    && install --directory --owner=snose --group=snose --mode=0700 /var/lib/snose
COPY --from=build /opt/snose /opt/snose
ENV PATH=/opt/snose/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 SNOSE_HOST=0.0.0.0 SNOSE_PORT=8000

USER snose
WORKDIR /var/lib/snose
VOLUME /var/lib/snose
EXPOSE 8000

# Alive means that the process answers; whether it is ready (database, keys, sinks) is /readyz, for the load balancer.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/livez', timeout=2)"]

STOPSIGNAL SIGTERM
ENTRYPOINT ["snose"]
CMD ["serve"]
