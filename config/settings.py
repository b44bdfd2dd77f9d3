"""All settings, read once from the environment. docs/operations/settings.md has the table; `config/env.py` reports bad values."""

from datetime import timedelta
from pathlib import Path
from secrets import token_hex
from typing import Any

import environ
from csp.constants import NONE, SELF

from config import env


BASE_DIR = Path(__file__).resolve().parent.parent
HOME = Path(env.text("STRONGROOM_HOME", str(BASE_DIR / "var"))).resolve()
SECRETS = HOME / "secrets"  # bin/run writes these on its first run; elsewhere they come from the environment

# --- Secrets: each has one purpose, none has a default ---
SECRET_KEY = env.secret("SECRET_KEY", file=SECRETS / "secret_key") or token_hex()  # an env.OFFLINE command signs nothing with it
JWT_SIGNING_KEY = env.secret("JWT_SIGNING_KEY", file=SECRETS / "jwt_signing_key")
KEYRING = env.secret("KEYRING", file=SECRETS / "keyring")  # parsed by vault.keyring: one "name base64" a line, the last is active

# --- Where it is served ---
DEBUG = False
PUBLIC_URL = env.text("PUBLIC_URL").rstrip("/")  # "" = as the request came in
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
HTTPS = env.flag("HTTPS", default=True)  # bin/run serves plain HTTP on loopback and turns it off
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
SECURE_HSTS_SECONDS = 365 * 24 * 3600 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = HTTPS
# The number of trusted proxies. The nearest sets X-Forwarded-Proto, and each appends its client to X-Forwarded-For. Without them,
# the client itself can write both.
BEHIND_PROXY = env.integer("BEHIND_PROXY", 0)
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if BEHIND_PROXY else None
# W008: TLS ends in front of gunicorn. A redirect would answer a PUT whose plaintext has already crossed the wire.
SILENCED_SYSTEM_CHECKS = ["security.W008"]
# With no-referrer, browsers send `Origin: null` with a form, which the CSRF check refuses. Responses that carry bytes set it
# themselves (files/downloads.py).
SECURE_REFERRER_POLICY = "same-origin"
# Of every response that has none of its own. The images in data: are those of Swagger UI's style sheet.
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
PORT = env.integer("PORT", 8000, least=1)
WEB_WORKERS = env.integer("WEB_WORKERS", 1, least=1)
WEB_DRAIN_SECONDS = env.integer("WEB_DRAIN_SECONDS", 600)  # how long a stopping server lets its streams go on
APPEND_SLASH = False  # a redirect would turn a write into a GET

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
    "config.problems.RefuseUnstorableText",
    "config.problems.RefuseUnannouncedBody",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "config.problems.AnswerRefusals",
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
WHITENOISE_USE_FINDERS = env.flag("STATIC_FINDERS", default=False)  # bin/run serves the admin's files without collectstatic

# --- Database ---
DATABASE_URL = env.text("DATABASE_URL", f"sqlite:///{HOME / 'strongroom.sqlite3'}")
DATABASES: dict[str, dict[str, Any]] = {"default": environ.Env.db_url_config(DATABASE_URL)}
_database = DATABASES["default"]
# Services open their own short transactions. One round a request would hold S3 and slow clients inside it.
_database["ATOMIC_REQUESTS"] = False
if _database["ENGINE"].endswith("sqlite3"):
    _database["CONN_MAX_AGE"] = None  # opening one per request costs 30 %
    _database["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",  # a deferred transaction fails at its first write instead of waiting for its turn
        "timeout": 20,
        # FULL: NORMAL may forget a claimed link or a destroyed key at power loss. secure_delete: no keys in free pages.
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA secure_delete=ON;",
    }
else:
    from config.postgresql import Connection

    _database["CONN_MAX_AGE"] = 0  # the pool keeps the connections, and refuses to start with anything else
    _database["CONN_HEALTH_CHECKS"] = True  # a restart of PostgreSQL costs a round trip, not a request for each connection
    _timeout = env.integer("DATABASE_TIMEOUT", 10, least=2)
    Connection.timeout = _timeout + 2  # the server's own word comes first: it rolls back what it gives up
    _database["OPTIONS"] = {
        "connect_timeout": _timeout,
        "options": f"-c lock_timeout={_timeout}s",
        **_database.get("OPTIONS", {}),
        "pool": {
            "min_size": 1,
            "max_size": env.integer("DATABASE_POOL", 16, least=1),
            "timeout": _timeout,
            # The pauses between attempts double until then. Its 300 s would leave us without a connection for minutes after
            # PostgreSQL is back.
            "reconnect_timeout": _timeout,
            "connection_class": Connection,
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
# boto3 sends checksums that many S3-compatible servers refuse; our own authentication tags cover every byte.
S3_CHECKSUMS = env.text("S3_CHECKSUMS", "when_required")
S3_MAX_CONNECTIONS = env.integer("S3_MAX_CONNECTIONS", 64, least=1)
# What S3 is asked to encrypt a package with that is plain: AES256, aws:kms, or none.
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
STORAGES["default"] = STORAGES["vault"]  # Django wants one; nothing uses it by that name
STORAGES["staticfiles"] = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}

# --- Files ---
FILES_DEFAULT_CIPHER = env.text("FILES_DEFAULT_CIPHER", "AES-GCM")
FILES_SEGMENT_SIZE = env.integer("FILES_SEGMENT_SIZE", 128 * 1024, least=57)  # ciphertext bytes, with the tag
FILES_MAX_UPLOAD_BYTES = env.integer("FILES_MAX_UPLOAD_BYTES", 100 * 1024**3, least=1)
FILES_DOWNLOAD_EXPIRY_SECONDS = env.integer("FILES_DOWNLOAD_EXPIRY_SECONDS", 30, least=1)
FILES_RESOURCE_POLICY = env.text("FILES_RESOURCE_POLICY", "same-site")  # Cross-Origin-Resource-Policy of byte responses
# Web threads are shared by transfers and the API: transfers stop short of all of them, so that the API always answers.
WEB_THREADS = env.integer("WEB_THREADS", 128, least=4)
FILES_MAX_TRANSFERS = env.integer("FILES_MAX_TRANSFERS", WEB_THREADS - max(4, WEB_THREADS // 8), least=1)
# Whoever reads request.FILES by accident gets a refusal, never a plaintext temp file. Uploads read the body themselves.
FILE_UPLOAD_HANDLERS = ["files.uploads.RefuseUpload"]
DATA_UPLOAD_MAX_MEMORY_SIZE = 1024**2  # JSON bodies

# --- Purge ---
DELETE_GRACE = env.integer("DELETE_GRACE", 24 * 3600)  # seconds in which a deleted collection can be restored
PURGE_CRON = env.schedule("PURGE_CRON", "0 4 * * *")  # UTC: when what has expired is destroyed
SWEEP_GRACE = env.integer("SWEEP_GRACE", 7 * 24 * 3600, least=3600)  # seconds for which an object may be without a row
# How much of it begins by itself in a day. More than that is a clock that jumped, or a mistake: somebody has to look.
PURGE_DAILY_LIMIT = env.integer("PURGE_DAILY_LIMIT", 200)  # collections
PURGE_DAILY_FILE_LIMIT = env.integer("PURGE_DAILY_FILE_LIMIT", 100_000)  # single files
UNUSED_FILE_DAYS = env.integer("UNUSED_FILE_DAYS", 0, most=36_500)  # after which a file that nobody ever used goes; 0: never

# --- Egress ---
EGRESS_PACKAGES_AT_ONCE = env.integer("EGRESS_PACKAGES_AT_ONCE", 1, least=1)  # by all workers together

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
API_KEY_MAX_DAYS = env.integer("API_KEY_MAX_DAYS", 366, least=1)
LOGIN_FAILURE_LIMIT = env.integer("LOGIN_FAILURE_LIMIT", 5, least=1)  # of an account (tenants/auth/sign_in_limits.py)
LOGIN_COOLOFF = timedelta(minutes=env.integer("LOGIN_COOLOFF_MINUTES", 15, least=1))
# From one address or IPv6 /64. Many people may share an address.
ANONYMOUS_REQUESTS_PER_MINUTE = env.integer("ANONYMOUS_REQUESTS_PER_MINUTE", 600, least=1)
PASSWORD_HASHES_AT_ONCE = env.integer("PASSWORD_HASHES_AT_ONCE", 2, least=1)  # in a process; each needs 19 MiB

PASSWORD_RESET_TIMEOUT = 3600  # seconds

# --- Mail: rows of the outbox, which the tick sends ---
APP_URL = env.text("APP_URL").rstrip("/")
DEFAULT_FROM_EMAIL = env.text("MAIL_FROM", "strongroom@localhost")
EMAIL_BACKEND, EMAIL_FILE_PATH = "config.mail.PrivateFiles", str(HOME / "mail")
EMAIL_TIMEOUT = 10  # seconds; a tick waits no longer for a server that says nothing
globals().update(env.mail_server("EMAIL_URL"))

# --- API ---
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["tenants.auth.tokens.BearerAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["tenants.auth.permissions.Authenticated"],
    "DEFAULT_PARSER_CLASSES": ["config.parsers.StrictJSONParser"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PAGINATION_CLASS": "config.paging.Cursor",
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "config.parsers.IgnoreAccept",
    "DEFAULT_METADATA_CLASS": None,  # the schema says what there is; OPTIONS belongs to CORS
    "DEFAULT_FILTER_BACKENDS": ["django_filters.rest_framework.DjangoFilterBackend"],
    "DEFAULT_SCHEMA_CLASS": "config.schema.Schema",
    "EXCEPTION_HANDLER": "config.problems.handle",
    "UNAUTHENTICATED_USER": None,
    "URL_FORMAT_OVERRIDE": None,  # `?format=` is nobody's content negotiation here
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
    "ENUM_NAME_OVERRIDES": {  # of fields that have the same name, and other values
        "EgressStateEnum": "egress.states.State",
        "EgressItemStatusEnum": "egress.models.StagedFile.Status",
        "EgressActionEnum": "egress.access.ACTIONS",
    },
    "POSTPROCESSING_HOOKS": ["drf_spectacular.hooks.postprocess_schema_enums", "config.schema.add_problem"],
}

# --- Background work: beat ticks, rows carry the state ---
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

# --- Logs: one JSON object a line on stderr; never a path, a filename, a token or a key ---
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "config.logs.JsonFormatter"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"handlers": ["stderr"], "level": env.text("LOG_LEVEL", "INFO")},
    "loggers": {
        # config.logs.RequestLog writes the request line; these would add the path, which may hold a filename.
        "django.request": {"level": "CRITICAL"},
        "django.security": {"level": "CRITICAL"},
        "botocore": {"level": "WARNING"},
        "celery": {"level": "WARNING"},  # two lines for each tick otherwise
        "celery.app.trace": {"level": "CRITICAL"},  # config.celery tells of failures, without the exception's arguments
    },
}
