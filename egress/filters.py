from typing import Any

from django.db.models import QuerySet
from django_filters import rest_framework as filters

from egress import access
from egress.models import EgressRequest
from egress.states import State
from files.filters import TrueFalseFilter
from tenants.auth.permissions import user_of


class RequestFilter(filters.FilterSet):
    tenant = filters.CharFilter(field_name="tenant__slug", max_length=50)
    collection = filters.CharFilter(field_name="collection_slug", max_length=80)
    status = filters.MultipleChoiceFilter(choices=State.choices, distinct=False)
    requester = filters.CharFilter(method="by_requester", max_length=150, help_text="a username, or `me`")
    awaiting_me = TrueFalseFilter(method="by_awaiting_me", help_text="whether you can decide on it now")

    class Meta:
        model = EgressRequest
        fields: list[str] = []

    def by_requester(self, requests: QuerySet[EgressRequest], name: str, value: str) -> QuerySet[EgressRequest]:
        if value == "me":
            return requests.filter(requester=user_of(self.request).pk)
        return requests.filter(requester_name=value)

    def by_awaiting_me(self, requests: QuerySet[EgressRequest], name: str, value: Any) -> QuerySet[EgressRequest]:
        awaiting = access.awaiting_decision_by(requests, user_of(self.request))
        return awaiting if value else requests.exclude(pk__in=awaiting.values("pk"))
