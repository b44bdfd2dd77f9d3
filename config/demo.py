"""The demo tenant and users that the first `bin/run` creates, and examples with curl."""

import json
import secrets
from datetime import datetime
from pathlib import Path
from shlex import quote

from django.conf import settings
from django.db import transaction
from rest_framework_simplejwt.settings import api_settings

from config.install import write_private
from tenants import services
from tenants.models import Role, User


TENANT = "demo"
# The superuser has no membership, because operators need no access to files.
ROLES = {
    "superuser": [],
    "admin": [Role.ADMIN],
    "member": [Role.MEMBER],
    "member2": [Role.MEMBER],
    "information_governance": [Role.INFORMATION_GOVERNANCE],
    "research_it": [Role.RESEARCH_IT],
    "auditor": [Role.AUDITOR],
}


def path() -> Path:
    return Path(settings.HOME) / "demo.json"


def create(*, url: str, now: datetime) -> None:
    """Creates the demo tenant, unless the database has users.

    Passwords are written to `path()` before the users are created, so that a kill in between cannot lose them.
    """
    if User.objects.exists():
        return
    if not path().exists():
        users = {role: {"username": role, "password": secrets.token_urlsafe(18)} for role in ROLES}
        draft = path().with_suffix(".new")
        draft.unlink(missing_ok=True)
        write_private(draft, json.dumps({"url": url, "tenant": TENANT, "users": users}, indent=2))
        draft.rename(path())
    users = json.loads(path().read_text())["users"]
    with transaction.atomic():
        tenant = services.create_tenant(slug=TENANT, name="Demo", by=None, now=now)
        for role, roles in ROLES.items():
            user = services.create_user(
                username=users[role]["username"],
                password=users[role]["password"],
                email=f"{role}@demo.invalid",
                is_superuser=role == "superuser",
                by=None,
                now=now,
            )
            if roles:
                services.add_member(tenant=tenant, user=user, roles=roles, by=None, now=now)


def first_steps(*, url: str) -> str:
    """Returns examples for a shell with curl and python3."""
    auth = '-H "Authorization: Bearer $TOKEN"'
    typed = "-H 'Content-Type: application/json'"
    login = 'import json, sys; print(json.dumps(json.load(open(sys.argv[1]))["users"]["member"]))'
    named = f"""'{{"tenant": "{TENANT}", "display_name": "First steps '$(date +%s)'"}}'"""
    minutes = api_settings.ACCESS_TOKEN_LIFETIME.seconds // 60
    lines = [
        f"The users of the tenant {TENANT} and their passwords are in {path()}.",
        f"Run these commands in another terminal to act as one of them (the token is valid for {minutes} minutes):",
        "",
        f"API={url}/api/v1",
        """field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }""",
        f"TOKEN=$(python3 -c '{login}' {quote(str(path()))} | curl -sS {typed} -d @- $API/auth/token/ | field access)",
        f"COLLECTION=$(curl -sS {auth} {typed} -d {named} $API/collections/ | field id)",
        "date > hello.txt",
        f"curl -sS -w '\\n' {auth} -T hello.txt $API/collections/$COLLECTION/content/",
        f"curl -sS -w '\\n' {auth} $API/collections/$COLLECTION/files/",
        f"curl -sS {auth} -o hello-again.txt $API/collections/$COLLECTION/content/hello.txt",
        "cmp hello.txt hello-again.txt && echo the same bytes",
        f"MINT=$(curl -sS {auth} -X POST -o /dev/null -D - $API/collections/$COLLECTION/files/hello.txt/download/)",
        """LINK=$(echo "$MINT" | tr -d '\\r' | sed -n 's/^[Ll]ocation: //p')""",
        'curl -sS "$LINK"',
        """curl -sS -w '\\n' "$LINK\"""",
        "",
        "The last command is refused, because a link needs no token and works once.",
    ]
    return "\n".join(lines)
