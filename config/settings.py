"""All settings, read from the environment. docs/operations/settings.md lists them, and `config/env.py` rejects bad values."""

from datetime import timedelta
from pathlib import Path
from secrets import token_hex
from typing import Any

import environ
from csp.constants import NONE, SELF

from config import env


BASE_DIR = Path(__file__).resolve().parent.parent
HOME = Path(env.text("STRONGROOM_HOME", str(BASE_DIR / "var"))).resolve()
SECRETS = HOME / "secrets"  # created by the first bin/run; other installations set the environment variables

# --- Secrets: each has one purpose, and none has a default ---
SECRET_KEY = env.secret("SECRET_KEY", file=SECRETS / "secret_key") or token_hex()  # env.OFFLINE_COMMANDS sign nothing with it
JWT_SIGNING_KEY = env.secret("JWT_SIGNING_KEY", file=SECRETS / "jwt_signing_key")
KEYRING = env.secret("KEYRING", file=SECRETS / "keyring")  # lines "name base64", the last is active; see vault.keyring

# --- HTTP ---
DEBUG = False
PUBLIC_URL = env.text("PUBLIC_URL").rstrip("/")  # "" = the URL of each request
ALLOWED_HOSTS = env.words("ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]")
CSRF_FAILURE_VIEW = "config.problems.csrf_failure"
CSRF_TRUSTED_ORIGINS = env.words("CSRF_TRUSTED_ORIGINS")
CORS_ALLOWED_ORIGINS = env.words("CORS_ALLOWED_ORIGINS")
CORS_EXPOSE_HEADERS = [
    "Content-Disposition", "Content-Range", "Accept-Ranges", "ETag", "Location", "Repr-Digest", "Retry-After", "X-Request-ID",
]  # fmt: skip
CORS_ALLOW_HEADERS = [
    "accept", "authorization", "content-type", "content-digest", "if-match", "if-none-match", "if-range", "range", "repr-digest",
]  # fmt: skip
HTTPS = env.flag("HTTPS", default=True)  # bin/run turns it off, because it serves plain HTTP on loopback
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
SECURE_HSTS_SECONDS = 365 * 24 * 3600 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = HTTPS
# The number of trusted proxies. The nearest sets X-Forwarded-Proto, and each appends its client to X-Forwarded-For. Without a
# proxy, a client could forge both headers.
BEHIND_PROXY = env.integer("BEHIND_PROXY", 0)
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if BEHIND_PROXY else None
# W008 (SECURE_SSL_REDIRECT): a proxy terminates TLS. A redirect would come after the plaintext of a PUT has been transmitted.
SILENCED_SYSTEM_CHECKS = ["security.W008"]
# With no-referrer, browsers send `Origin: null` with a form, which the CSRF check refuses. Responses with file content set their
# own policy (files/downloads.py).
SECURE_REFERRER_POLICY = "same-origin"
# The default; responses with file content set their own. Swagger UI's style sheet has images in data: URLs.
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF],
        "style-src": [SELF],
        "img-src": [SELF, "data:"],
        "connect-src": [SELF],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
        "base-uri": [NONE],
    }
}
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_AGE = 8 * 3600
X_FRAME_OPTIONS = "DENY"
PORT = env.integer("PORT", 8000, minimum=1)
WEB_WORKERS = env.integer("WEB_WORKERS", 1, minimum=1)
WEB_DRAIN_SECONDS = env.integer("WEB_DRAIN_SECONDS", 600)  # time for running transfers when the server stops
APPEND_SLASH = False  # clients would follow a redirect of a write with a GET

# --- The application ---
INSTALLED_APPS = [
    "config",
    "purge",
    "egress",
    "files",
    "vault",
    "tenants",
    "tenants.apps.AdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "rest_framework_simplejwt.token_blacklist",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "corsheaders",
    "csp",
]
MIDDLEWARE = [
    "config.logs.RequestLog",
    "config.probes.Probes",
    "django.middleware.security.SecurityMiddleware",
    "csp.middleware.CSPMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "corsheaders.middleware.CorsMiddleware",
    "config.problems.RefuseInvalidUrls",
    "config.problems.RefuseBody",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "config.problems.HandleApiErrors",
]
ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
LANGUAGE_CODE = "en-gb"
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "/static/"
STATIC_ROOT = Path(env.text("STATIC_ROOT", str(HOME / "static")))
WHITENOISE_USE_FINDERS = env.flag("STATIC_FINDERS", default=False)  # on in bin/run, which does not run collectstatic

# --- Database ---
DATABASE_URL = env.text("DATABASE_URL", f"sqlite:///{HOME / 'strongroom.sqlite3'}")
DATABASES: dict[str, dict[str, Any]] = {"default": environ.Env.db_url_config(DATABASE_URL)}
_database = DATABASES["default"]
# Services open short transactions. One transaction per request would stay open while S3 and slow clients are served.
_database["ATOMIC_REQUESTS"] = False
if _database["ENGINE"].endswith("sqlite3"):
    _database["CONN_MAX_AGE"] = None  # a new connection per request would cost 30 % of the time
    _database["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",  # a deferred transaction can fail at its first write instead of waiting for the lock
        "timeout": 20,  # seconds
        # FULL: with NORMAL, a power failure can lose the use of a link or the destruction of a key. secure_delete: overwrites
        # destroyed keys.
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA secure_delete=ON;",
    }
else:
    from config.postgresql import PostgresConnection

    _database["CONN_MAX_AGE"] = 0  # required by the pool, which keeps the connections
    _database["CONN_HEALTH_CHECKS"] = True  # otherwise one request per connection fails after a restart of PostgreSQL
    _timeout = env.integer("DATABASE_TIMEOUT", 10, minimum=2)
    PostgresConnection.timeout = _timeout + 2  # longer than the server's own timeout, which rolls the transaction back
    _database["OPTIONS"] = {
        "connect_timeout": _timeout,
        "options": f"-c lock_timeout={_timeout}s",
        **_database.get("OPTIONS", {}),
        "pool": {
            "min_size": 1,
            "max_size": env.integer("DATABASE_POOL", 16, minimum=1),
            "timeout": _timeout,
            # The delay between attempts doubles up to this time. The default of 300 s would delay the recovery after PostgreSQL
            # has restarted by minutes.
            "reconnect_timeout": _timeout,
            "connection_class": PostgresConnection,
        },
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# --- Buckets ---
S3_BUCKET = env.text("S3_BUCKET")
BUCKETS = {
    "vault": S3_BUCKET,
    "staging": env.text("S3_STAGING_BUCKET", f"{S3_BUCKET}-staging"),
    "release": env.text("S3_RELEASE_BUCKET", f"{S3_BUCKET}-release"),
}
S3_CREATE_BUCKETS = env.flag("S3_CREATE_BUCKETS", default=False)
S3_ENDPOINT_URL = env.text("S3_ENDPOINT_URL") or None
S3_ADDRESSING_STYLE = env.text("S3_ADDRESSING_STYLE", "path" if S3_ENDPOINT_URL else "auto")
# By default, boto3 sends checksums that many S3-compatible servers refuse. Authentication tags protect all content anyway.
S3_CHECKSUMS = env.text("S3_CHECKSUMS", "when_required")
S3_MAX_CONNECTIONS = env.integer("S3_MAX_CONNECTIONS", 64, minimum=1)
# Server-side encryption of plain packages: AES256, aws:kms or none.
S3_RELEASE_SSE = env.text("S3_RELEASE_SSE", "AES256")
if S3_BUCKET:
    STORAGES: dict[str, dict[str, Any]] = {
        alias: {"BACKEND": "vault.stores.s3.S3Store", "OPTIONS": {"bucket_name": bucket}} for alias, bucket in BUCKETS.items()
    }
else:
    STORAGES = {
        alias: {"BACKEND": "vault.stores.local.LocalStore", "OPTIONS": {"location": str(HOME / "objects" / alias)}}
        for alias in BUCKETS
    }
STORAGES["default"] = STORAGES["vault"]  # required by Django, and not used
STORAGES["staticfiles"] = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}

# --- Files ---
FILES_DEFAULT_CIPHER = env.text("FILES_DEFAULT_CIPHER", "AES-GCM")
FILES_SEGMENT_SIZE = env.integer("FILES_SEGMENT_SIZE", 128 * 1024, minimum=57)  # bytes of ciphertext, including the tag
FILES_MAX_UPLOAD_BYTES = env.integer("FILES_MAX_UPLOAD_BYTES", 100 * 1024**3, minimum=1)
FILES_DOWNLOAD_EXPIRY_SECONDS = env.integer("FILES_DOWNLOAD_EXPIRY_SECONDS", 30, minimum=1)
FILES_RESOURCE_POLICY = env.text("FILES_RESOURCE_POLICY", "same-site")  # Cross-Origin-Resource-Policy of byte responses
# Transfers and API requests share the web threads. The limit on transfers keeps some threads free for API requests.
WEB_THREADS = env.integer("WEB_THREADS", 128, minimum=4)
FILES_MAX_TRANSFERS = env.integer("FILES_MAX_TRANSFERS", WEB_THREADS - max(4, WEB_THREADS // 8), minimum=1)
# Reading request.FILES by mistake raises an error instead of writing plaintext to a temporary file. Uploads parse the body.
FILE_UPLOAD_HANDLERS = ["files.uploads.RefuseUpload"]
DATA_UPLOAD_MAX_MEMORY_SIZE = 1024**2  # of JSON

# --- Purge ---
DELETE_GRACE = env.integer("DELETE_GRACE", 24 * 3600)  # seconds in which a deleted collection can be restored
PURGE_CRON = env.schedule("PURGE_CRON", "0 4 * * *")  # in UTC: when expired collections and files are purged
SWEEP_GRACE = env.integer("SWEEP_GRACE", 7 * 24 * 3600, minimum=3600)  # seconds before an object without a row is deleted
# Limits on automatic purges per day. A higher number indicates a wrong clock or a mistake, which an operator must check.
PURGE_DAILY_LIMIT = env.integer("PURGE_DAILY_LIMIT", 200)  # collections
PURGE_DAILY_FILE_LIMIT = env.integer("PURGE_DAILY_FILE_LIMIT", 100_000)  # single files
UNUSED_FILE_DAYS = env.integer("UNUSED_FILE_DAYS", 0, maximum=36_500)  # before a file that was never used is purged; 0 = never

# --- Egress ---
EGRESS_PACKAGES_AT_ONCE = env.integer("EGRESS_PACKAGES_AT_ONCE", 1, minimum=1)  # in all workers together

# --- People ---
AUTH_USER_MODEL = "tenants.User"
AUTHENTICATION_BACKENDS = ["tenants.auth.backends.LimitedBackend"]
PASSWORD_HASHERS = [
    "tenants.auth.hashing.Argon2PasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
    {"NAME": "tenants.auth.service_accounts.NoPasswordValidator"},
]
SIMPLE_JWT = {
    "ACCESS_TOKEN_LIFETIME": timedelta(minutes=5),
    "REFRESH_TOKEN_LIFETIME": timedelta(days=1),
    "ROTATE_REFRESH_TOKENS": True,
    "BLACKLIST_AFTER_ROTATION": True,
    "ALGORITHM": "HS256",
    "SIGNING_KEY": JWT_SIGNING_KEY,
    "ISSUER": "strongroom",
    "AUDIENCE": "strongroom-api",
    "AUTH_HEADER_TYPES": ("Bearer",),
    "UPDATE_LAST_LOGIN": False,
}
API_KEY_MAX_DAYS = env.integer("API_KEY_MAX_DAYS", 366, minimum=1)
LOGIN_FAILURE_LIMIT = env.integer("LOGIN_FAILURE_LIMIT", 5, minimum=1)  # of an account (tenants/auth/sign_in_limits.py)
LOGIN_COOLOFF = timedelta(minutes=env.integer("LOGIN_COOLOFF_MINUTES", 15, minimum=1))
# From one IPv4 address or IPv6 /64, which many users can share.
ANONYMOUS_REQUESTS_PER_MINUTE = env.integer("ANONYMOUS_REQUESTS_PER_MINUTE", 600, minimum=1)
PASSWORD_HASHES_AT_ONCE = env.integer("PASSWORD_HASHES_AT_ONCE", 2, minimum=1)  # in a process; each needs 19 MiB
PASSWORD_RESET_TIMEOUT = 3600  # seconds

# --- Mail (tenants/work/outbox.py) ---
APP_URL = env.text("APP_URL").rstrip("/")
DEFAULT_FROM_EMAIL = env.text("MAIL_FROM", "strongroom@localhost")
EMAIL_BACKEND, EMAIL_FILE_PATH = "config.mail.PrivateFileBackend", str(HOME / "mail")
EMAIL_TIMEOUT = 10  # seconds
globals().update(env.mail_server("EMAIL_URL"))

# --- API ---
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["tenants.auth.tokens.BearerAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["tenants.auth.permissions.Authenticated"],
    "DEFAULT_PARSER_CLASSES": ["config.parsers.StrictJSONParser"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PAGINATION_CLASS": "config.paging.Cursor",
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "config.parsers.IgnoreAccept",
    "DEFAULT_METADATA_CLASS": None,  # the OpenAPI schema describes the API; OPTIONS is for CORS only
    "DEFAULT_FILTER_BACKENDS": ["django_filters.rest_framework.DjangoFilterBackend"],
    "DEFAULT_SCHEMA_CLASS": "config.schema.Schema",
    "EXCEPTION_HANDLER": "config.problems.handle",
    "UNAUTHENTICATED_USER": None,
    "URL_FORMAT_OVERRIDE": None,  # no content negotiation with `?format=`
    "DATETIME_FORMAT": "%Y-%m-%dT%H:%M:%S.%fZ",
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Strongroom",
    "DESCRIPTION": "Stores confidential files encrypted, and releases them only after a review.",
    "VERSION": "1",
    "OAS_VERSION": "3.1.1",
    "SCHEMA_PATH_PREFIX": "/api/v1/",
    "DEFAULT_GENERATOR_CLASS": "config.schema.CachedGenerator",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    "SERVE_AUTHENTICATION": [],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "COMPONENT_SPLIT_REQUEST": True,
    "ENUM_GENERATE_CHOICE_DESCRIPTION": False,
    "ENUM_NAME_OVERRIDES": {  # for fields with the same name and different values
        "EgressStateEnum": "egress.states.State",
        "EgressItemStatusEnum": "egress.models.StagedFile.Status",
        "EgressActionEnum": "egress.access.ACTIONS",
    },
    "POSTPROCESSING_HOOKS": ["drf_spectacular.hooks.postprocess_schema_enums", "config.schema.add_problem"],
}

# --- Background work: beat sends ticks, and rows hold the state ---
BROKER_URL = env.text("BROKER_URL", "filesystem://localhost")
CELERY_BROKER_URL = BROKER_URL
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_STORE_EAGER_RESULT = False
CELERY_TIMEZONE = "UTC"
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BEAT_SCHEDULE_FILENAME = str(HOME / "celerybeat-schedule")
if BROKER_URL.startswith("filesystem:"):
    CELERY_BROKER_TRANSPORT = "config.broker:Transport"
    CELERY_BROKER_TRANSPORT_OPTIONS = {
        "data_folder_in": str(HOME / "broker"),
        "data_folder_out": str(HOME / "broker"),
        "control_folder": str(HOME / "broker-control"),
    }

# --- Logs: one JSON object per line on stderr, without paths, filenames, tokens or keys ---
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "config.logs.JsonFormatter"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"handlers": ["stderr"], "level": env.text("LOG_LEVEL", "INFO")},
    "loggers": {
        # config.logs.RequestLog logs requests. These loggers would log the path, which can contain a filename.
        "django.request": {"level": "CRITICAL"},
        "django.security": {"level": "CRITICAL"},
        "botocore": {"level": "WARNING"},
        "celery": {"level": "WARNING"},  # at INFO, two lines per tick
        "celery.app.trace": {"level": "CRITICAL"},  # config.celery logs failures, without the arguments of the exception
    },
}
