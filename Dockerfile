FROM python:3.11-slim-bookworm AS packages
COPY requirements.lock .
# The image contains no installers, because it installs nothing at run time.
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --require-hashes --no-deps -r requirements.lock \
    && /venv/bin/pip uninstall --yes setuptools pip

FROM python:3.11-slim-bookworm
RUN pip uninstall --yes --root-user-action ignore wheel setuptools pip \
    && useradd --system --uid 10001 --no-create-home strongroom \
    && install -d -o strongroom -m 0700 /var/lib/strongroom
COPY --from=packages /venv /venv
WORKDIR /app
COPY manage.py .
COPY config config
COPY purge purge
COPY egress egress
COPY files files
COPY vault vault
COPY tenants tenants
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 STRONGROOM_HOME=/var/lib/strongroom STATIC_ROOT=/app/static
# collectstatic reads the settings, which need secrets. These values are not used again and not kept.
RUN SECRET_KEY=none JWT_SIGNING_KEY=none KEYRING=none python manage.py collectstatic --no-input && python -m compileall -q .
USER strongroom
EXPOSE 8000
CMD ["gunicorn", "--config", "config/gunicorn.conf.py", "config.wsgi"]
