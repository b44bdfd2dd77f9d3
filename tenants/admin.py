"""Admin pages of users, tenants, API keys, mails and the audit trail. All changes call services.

Only memberships and invitations can be deleted here.
"""

# mypy: disable-error-code=type-arg
# At run time, ModelAdmin and ModelForm accept no type arguments.

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
from rest_framework_simplejwt.token_blacklist import admin as _  # noqa: F401  registers the models that are unregistered below
from rest_framework_simplejwt.token_blacklist.models import BlacklistedToken, OutstandingToken

from tenants import people, services
from tenants.admin_site import audit_password_change
from tenants.auth import api_keys
from tenants.models import ApiKey, AuditEvent, Invitation, Mail, Membership, Role, Tenant, User


# Groups grant no rights here. The page of a user revokes tokens, with an audit event.
admin.site.unregister([Group, OutstandingToken, BlacklistedToken])


class ServiceErrorAdmin(admin.ModelAdmin):
    """Shows the errors of services as messages instead of error pages."""

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return self._show_service_errors(request, super().changeform_view, *args, **kwargs)

    def delete_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return self._show_service_errors(request, super().delete_view, *args, **kwargs)

    def changelist_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return self._show_service_errors(request, super().changelist_view, *args, **kwargs)

    def _show_service_errors(
        self, request: HttpRequest, view: Callable[..., HttpResponse], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        try:
            return view(request, *args, **kwargs)
        except APIException as error:
            self.message_user(request, str(error.detail), messages.ERROR)
            return HttpResponseRedirect(request.get_full_path())


class ReadOnlyAdmin(admin.ModelAdmin):
    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class NoDeleteAdmin(admin.ModelAdmin):
    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(User)
class AccountAdmin(NoDeleteAdmin, UserAdmin):
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
        with audit_password_change(request, user_id=unquote(id)):
            return super().user_change_password(request, id, form_url)

    @admin.action(description="End all API sessions")
    def end_sessions(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        for user in queryset:
            services.end_sessions(user=user, by=_actor(request), now=timezone.now())
        self.message_user(request, f"Users whose API sessions were ended: {len(queryset)}.")

    @admin.action(description="Unlock after failed sign-ins")
    def unlock(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        for user in queryset:
            services.unlock(user=user, by=_actor(request), now=timezone.now())
        self.message_user(request, f"Users unlocked: {len(queryset)}.")


@admin.register(Tenant)
class TenantAdmin(NoDeleteAdmin):
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
class MembershipAdmin(ServiceErrorAdmin):
    list_display = ("user", "tenant", "roles", "created_at")
    list_filter = ("tenant",)
    list_select_related = ("user", "tenant")
    search_fields = ("user__username", "user__email", "tenant__slug")
    autocomplete_fields = ("user", "tenant")
    ordering = ("tenant__slug", "user__username")

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        return {"roles": [Role.MEMBER]} | super().get_changeform_initial_data(request)  # otherwise the field shows "null"

    def get_readonly_fields(self, request: HttpRequest, obj: Membership | None = None) -> tuple[str, ...]:
        return ("created_at",) if obj is None else ("user", "tenant", "created_at")

    def save_model(self, request: HttpRequest, obj: Membership, form: ModelForm, change: bool) -> None:  # noqa: FBT001
        by, now = _actor(request), timezone.now()
        if change:
            services.set_roles(membership=obj, roles=obj.roles, by=by, now=now)
        else:
            obj.pk = services.add_member(tenant=obj.tenant, user=obj.user, roles=obj.roles, by=by, now=now).pk

    def delete_model(self, request: HttpRequest, obj: Membership) -> None:
        services.remove_member(membership=obj, by=_actor(request), now=timezone.now())

    def delete_queryset(self, request: HttpRequest, queryset: Iterable[Membership]) -> None:
        for membership in queryset:
            self.delete_model(request, membership)


@admin.register(ApiKey)
class ApiKeyAdmin(NoDeleteAdmin):
    list_display = ("prefix", "name", "owner", "tenant", "created_at", "expires_at", "last_used_at", "revoked_at")
    list_filter = ("tenant",)
    list_select_related = ("owner", "tenant")
    search_fields = ("prefix", "name", "owner__username", "tenant__slug")
    fields = (*list_display, "created_by", "scopes")  # all except the hash
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
            api_keys.revoke(key, by=_actor(request), now=timezone.now())
        self.message_user(request, f"API keys revoked: {len(keys)}.")


@admin.register(Invitation)
class InvitationAdmin(ServiceErrorAdmin, ReadOnlyAdmin):
    list_display = ("email", "tenant", "roles", "invited_by", "created_at", "expires_at")
    list_filter = ("tenant",)
    list_select_related = ("tenant", "invited_by")
    search_fields = ("email", "tenant__slug")
    ordering = ("-created_at",)

    def delete_model(self, request: HttpRequest, obj: Invitation) -> None:
        people.withdraw(obj, by=_actor(request), now=timezone.now())

    def delete_queryset(self, request: HttpRequest, queryset: Iterable[Invitation]) -> None:
        for invitation in queryset:
            self.delete_model(request, invitation)


@admin.register(Mail)
class MailAdmin(NoDeleteAdmin, ReadOnlyAdmin):
    """Shows the state of each mail. The text is not stored: it is created when the mail is sent."""

    list_display = ("kind", "recipient", "state", "refused_copies", "created_at", "due_at", "sent_at", "attempts", "problem")
    list_filter = ("kind",)
    search_fields = ("recipient", "about__exact")
    ordering = ("-created_at",)
    show_full_result_count = False

    @admin.display
    def refused_copies(self, mail: Mail) -> str:
        return ", ".join(mail.refused)


@admin.register(AuditEvent)
class AuditEventAdmin(NoDeleteAdmin, ReadOnlyAdmin):
    list_display = ("at", "action", "actor", "target_kind", "target_id", "tenant_id", "request_id")
    # Exact matches use indexes. A substring search would read all rows, which takes seconds for a million rows.
    search_fields = ("action__exact", "actor__exact", "target_id__exact", "chain__exact", "request_id__exact")
    search_help_text = "Enter a complete action, username, or id of a target, tenant or request."
    ordering = ("-at",)
    show_full_result_count = False


def _save(request: HttpRequest, instance: Tenant | User, form: ModelForm, *, change: bool) -> None:
    if change:
        services.update(instance, changed=form.changed_data, by=_actor(request), now=timezone.now())
    else:
        services.create(instance, by=_actor(request), now=timezone.now())


def _actor(request: HttpRequest) -> User:
    if not isinstance(request.user, User):
        raise PermissionDenied
    return request.user
