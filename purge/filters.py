from django_filters import rest_framework as filters

from purge.models import Destruction


class CertificateFilter(filters.FilterSet):
    tenant = filters.CharFilter(field_name="tenant__slug", max_length=50)
    collection = filters.CharFilter(field_name="slug", max_length=80)

    class Meta:
        model = Destruction
        fields: list[str] = []


class DestructionFilter(CertificateFilter):
    status = filters.ChoiceFilter(choices=Destruction.Status.choices)
