"""Shows people, tenants, keys, mails and the audit trail. Every change goes through a service.

Only memberships and invitations are deleted here.
"""

# mypy: disable-error-code=type-arg
# Outside the stubs, ModelAdmin and ModelForm take no type argument.

from collections.abc import Callable, Iterable
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import Group
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone
from rest_framework.exceptions import APIException
from rest_framework_simplejwt.token_blacklist import admin as _  # noqa: F401  registers what is taken out below
from rest_framework_simplejwt.token_blacklist.models import BlacklistedToken, OutstandingToken

from tenants import people, services
from tenants.admin_site import password_audited
from tenants.auth import api_keys
from tenants.models import ApiKey, AuditEvent, Invitation, Mail, Membership, Role, Tenant, User


# Groups give nothing here. Tokens are ended on the person's page, which is audited.
admin.site.unregister([Group, OutstandingToken, BlacklistedToken])


class Refusable(admin.ModelAdmin):
    """A service refuses what the moment does not allow: here that is a message, not an error page."""

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return self._or_refused(request, super().changeform_view, *args, **kwargs)

    def delete_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return self._or_refused(request, super().delete_view, *args, **kwargs)

    def changelist_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return self._or_refused(request, super().changelist_view, *args, **kwargs)

    def _or_refused(self, request: HttpRequest, view: Callable[..., HttpResponse], *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            return view(request, *args, **kwargs)
        except APIException as error:
            self.message_user(request, str(error.detail), messages.ERROR)
            return HttpResponseRedirect(request.get_full_path())


class ReadOnly(admin.ModelAdmin):
    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class Undeletable(admin.ModelAdmin):
    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(User)
class PersonAdmin(Undeletable, UserAdmin):
    list_display = ("username", "email", "is_active", "is_superuser", "last_login")
    list_filter = ("is_active", "is_superuser")
    fieldsets = (
        (None, {"fields": ("username", "password")}),
        ("Person", {"fields": ("first_name", "last_name", "email")}),
        ("Access", {"fields": ("is_active", "is_staff", "is_superuser", "last_login", "date_joined")}),
    )
    add_fieldsets = ((None, {"fields": ("username", "email", "usable_password", "password1", "password2")}),)
    readonly_fields = ("last_login", "date_joined")
    filter_horizontal = ()
    actions = ("end_sessions", "unlock")

    def save_model(self, request: HttpRequest, obj: User, form: ModelForm, change: bool) -> None:  # noqa: FBT001  Django's
        _save(request, obj, form, change=change)

    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> HttpResponse:  # noqa: A002  Django's
        with password_audited(request, user_id=unquote(id)):
            return super().user_change_password(request, id, form_url)

    @admin.action(description="End all API sessions")
    def end_sessions(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        for user in queryset:
            services.end_sessions(user=user, by=_by(request), now=timezone.now())
        self.message_user(request, f"{len(queryset)} signed out.")

    @admin.action(description="Unlock after failed sign-ins")
    def unlock(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        for user in queryset:
            services.unlock(user=user, by=_by(request), now=timezone.now())
        self.message_user(request, f"{len(queryset)} unlocked.")


@admin.register(Tenant)
class TenantAdmin(Undeletable):
    list_display = ("slug", "name", "is_active", "created_at")
    list_filter = ("is_active",)
    search_fields = ("slug", "name")
    readonly_fields = ("id", "created_at")
    ordering = ("slug",)

    def save_model(self, request: HttpRequest, obj: Tenant, form: ModelForm, change: bool) -> None:  # noqa: FBT001
        if not change:
            obj.created_at = timezone.now()
        _save(request, obj, form, change=change)


@admin.register(Membership)
class MembershipAdmin(Refusable):
    list_display = ("user", "tenant", "roles", "created_at")
    list_filter = ("tenant",)
    list_select_related = ("user", "tenant")
    search_fields = ("user__username", "user__email", "tenant__slug")
    autocomplete_fields = ("user", "tenant")
    ordering = ("tenant__slug", "user__username")

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        return {"roles": [Role.MEMBER]} | super().get_changeform_initial_data(request)  # the field would say "null"

    def get_readonly_fields(self, request: HttpRequest, obj: Membership | None = None) -> tuple[str, ...]:
        return ("created_at",) if obj is None else ("user", "tenant", "created_at")

    def save_model(self, request: HttpRequest, obj: Membership, form: ModelForm, change: bool) -> None:  # noqa: FBT001
        by, now = _by(request), timezone.now()
        if change:
            services.set_roles(membership=obj, roles=obj.roles, by=by, now=now)
        else:
            obj.pk = services.add_member(tenant=obj.tenant, user=obj.user, roles=obj.roles, by=by, now=now).pk

    def delete_model(self, request: HttpRequest, obj: Membership) -> None:
        services.remove_member(membership=obj, by=_by(request), now=timezone.now())

    def delete_queryset(self, request: HttpRequest, queryset: Iterable[Membership]) -> None:
        for membership in queryset:
            self.delete_model(request, membership)


@admin.register(ApiKey)
class ApiKeyAdmin(Undeletable):
    list_display = ("prefix", "name", "owner", "tenant", "created_at", "expires_at", "last_used_at", "revoked_at")
    list_filter = ("tenant",)
    list_select_related = ("owner", "tenant")
    search_fields = ("prefix", "name", "owner__username", "tenant__slug")
    fields = (*list_display, "created_by", "scopes")  # all but the hash
    ordering = ("-created_at",)
    actions = ("revoke",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        return False

    @admin.action(description="Revoke")
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        keys = queryset.filter(revoked_at=None)
        for key in keys:
            api_keys.revoke(key, by=_by(request), now=timezone.now())
        self.message_user(request, f"{len(keys)} revoked.")


@admin.register(Invitation)
class InvitationAdmin(Refusable, ReadOnly):
    list_display = ("email", "tenant", "roles", "invited_by", "created_at", "expires_at")
    list_filter = ("tenant",)
    list_select_related = ("tenant", "invited_by")
    search_fields = ("email", "tenant__slug")
    ordering = ("-created_at",)

    def delete_model(self, request: HttpRequest, obj: Invitation) -> None:
        people.withdraw(obj, by=_by(request), now=timezone.now())

    def delete_queryset(self, request: HttpRequest, queryset: Iterable[Invitation]) -> None:
        for invitation in queryset:
            self.delete_model(request, invitation)


@admin.register(Mail)
class MailAdmin(Undeletable, ReadOnly):
    """What became of each mail. There is no text to show: it is made when the mail is sent."""

    list_display = ("kind", "recipient", "state", "refused_copies", "created_at", "due_at", "sent_at", "attempts", "problem")
    list_filter = ("kind",)
    search_fields = ("recipient", "about__exact")
    ordering = ("-created_at",)
    show_full_result_count = False

    @admin.display
    def refused_copies(self, mail: Mail) -> str:
        return ", ".join(mail.refused)


@admin.register(AuditEvent)
class AuditEventAdmin(Undeletable, ReadOnly):
    list_display = ("at", "action", "actor", "target_kind", "target_id", "tenant_id", "request_id")
    # Whole values, each by its index: looking into each of a million rows would take the database seconds.
    search_fields = ("action__exact", "actor__exact", "target_id__exact", "chain__exact", "request_id__exact")
    search_help_text = "A whole action, username, or id of a target, tenant or request."
    ordering = ("-at",)
    show_full_result_count = False


def _save(request: HttpRequest, thing: Tenant | User, form: ModelForm, *, change: bool) -> None:
    if change:
        services.update(thing, changed=form.changed_data, by=_by(request), now=timezone.now())
    else:
        services.create(thing, by=_by(request), now=timezone.now())


def _by(request: HttpRequest) -> User:
    if not isinstance(request.user, User):
        raise PermissionDenied
    return request.user
