# Stands in for docker.io/library/postgres where no registry can be reached: Debian's server behind the same variables.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm
FROM ${PYTHON_IMAGE}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends postgresql-15=15.* \
    && rm -rf /var/lib/apt/lists/* \
    && install --directory --mode 1777 /var/lib/postgresql/data /docker-entrypoint-initdb.d
# the socket lies in /tmp, since Podman lays a tmpfs of its own over /run
ENV PATH=/usr/lib/postgresql/15/bin:$PATH PGHOST=/tmp
COPY postgres.sh /usr/local/bin/docker-entrypoint.sh
VOLUME /var/lib/postgresql/data
STOPSIGNAL SIGINT
RUN useradd --uid 10001 --no-create-home database
USER 10001:10001
ENTRYPOINT ["sh", "/usr/local/bin/docker-entrypoint.sh"]
CMD ["postgres"]
