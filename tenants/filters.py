from django.db.models import Q
from django_filters import rest_framework as filters

from tenants.models import Membership, MembershipQuerySet, check_role


class MemberFilter(filters.FilterSet):
    role = filters.CharFilter(method="filter_role", max_length=40, validators=[check_role])
    search = filters.CharFilter(method="filter_search", max_length=200, label="part of a username or an e-mail address")

    class Meta:
        model = Membership
        fields: list[str] = []

    def filter_role(self, members: MembershipQuerySet, name: str, role: str) -> MembershipQuerySet:
        return members.with_role(role)

    def filter_search(self, members: MembershipQuerySet, name: str, text: str) -> MembershipQuerySet:
        return members.filter(Q(user__username__icontains=text) | Q(user__email__icontains=text))
