"""Read access to destructions and certificates: for the tenant's admins and auditors, and for superusers."""

from django.db.models import Count, Q, QuerySet, Sum

from purge.models import Destruction
from tenants import access as people
from tenants.errors import NotFound
from tenants.models import Role, User


def visible_destructions(user: User) -> QuerySet[Destruction]:
    """Destructions that the user may see, annotated with their progress: `erased`, `shards_count`, `shards_done`."""
    principal = people.principal_of(user)
    destructions = Destruction.objects.select_related("tenant")
    if not principal.is_superuser:
        destructions = destructions.filter(tenant__in=principal.tenants_with_role(Role.ADMIN, Role.AUDITOR))
    return destructions.annotate(
        erased=Sum("shards__erased", default=0),
        shards_count=Count("shards"),
        shards_done=Count("shards", filter=Q(shards__verified_at__isnull=False)),
    )


def get_destruction(user: User, destruction_id: str) -> Destruction:
    """A destruction with its progress, if the user may see it.

    Raises: NotFound.
    """
    destruction = visible_destructions(user).filter(pk=people.parse_uuid(destruction_id)).first()
    if destruction is None:
        raise NotFound
    return destruction


def get_certificate(user: User, destruction_id: str) -> Destruction:
    """A completed destruction, which has a certificate, if the user may see it.

    Raises: NotFound.
    """
    destruction = get_destruction(user, destruction_id)
    if destruction.status != Destruction.Status.DONE:
        raise NotFound
    return destruction


def visible_certificates(user: User) -> QuerySet[Destruction]:
    """Completed destructions that the user may see."""
    return visible_destructions(user).filter(status=Destruction.Status.DONE)
