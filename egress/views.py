"""The API of egress: load through `access`, call one service, serialize."""

from typing import Any

from django.http import HttpResponseBase
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import generics, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from egress import access, downloads, services
from egress.filters import RequestFilter
from egress.models import EgressRequest
from egress.package import manifest
from egress.serializers import (
    DecisionInput,
    ExtendInput,
    ManifestOutput,
    OptionalReasonInput,
    PolicyInput,
    PolicyOutput,
    ReasonInput,
    RequestDetail,
    RequestOutput,
    ResubmitInput,
    RoundInput,
    SigningKeysOutput,
    SubmitInput,
)
from files import access as file_access
from files.http.responses import (
    BYTE_REQUEST_HEADERS,
    BYTES_RESPONSE,
    CONTENT_RESPONSES,
    byte_request_of,
    link_created,
    render,
    respond,
)
from files.serializers import LinkOutput
from tenants.absolute_urls import absolute_url
from tenants.auth.permissions import ADMINISTER, PEOPLE_ONLY, user_of
from tenants.models import Scope, User


PACKAGE = {(200, "application/zip"): BYTES_RESPONSE, (206, "application/zip"): BYTES_RESPONSE, 304: CONTENT_RESPONSES[304]}


def detail(view: APIView, user: User, request_id: str, *, round_number: int | None = None, **kwargs: Any) -> Response:
    """Responds with the current request and all its details."""
    found = access.get_detail(user, request_id, round_number=round_number)
    context = {"request": view.request, "view": view, "viewer": access.actor_of(user)}
    return Response(RequestDetail(found, context=context).data, **kwargs)


def validated(serializer: type[Any], request: Request) -> dict[str, Any]:
    """The validated fields of the request body."""
    given = serializer(data=request.data)
    given.is_valid(raise_exception=True)
    fields: dict[str, Any] = given.validated_data
    return fields


class RequestsView(generics.GenericAPIView[EgressRequest]):
    filterset_class = RequestFilter
    queryset = EgressRequest.objects.none()  # for the schema: what is served comes from `access`
    serializer_class = RequestOutput

    def get_serializer_context(self) -> dict[str, Any]:
        return {**super().get_serializer_context(), "viewer": access.actor_of(user_of(self.request))}

    @extend_schema(operation_id="egress_requests_list", responses=RequestOutput(many=True))
    def get(self, request: Request) -> Response:
        """Egress requests that you made, that you have a say in, or of tenants that you administer or audit."""
        page = self.paginate_queryset(self.filter_queryset(access.visible_requests(user_of(request))))
        return self.get_paginated_response(self.get_serializer(page, many=True).data)

    @extend_schema(operation_id="egress_requests_submit", request=SubmitInput, responses={201: RequestDetail})
    def post(self, request: Request) -> Response:
        """Asks for files of a collection to be let out. They stay as they are until it is decided."""
        user, fields = user_of(request), validated(SubmitInput, request)
        made = services.submit(
            collection=file_access.find_collection(user, fields["collection"], tenant=fields.get("tenant")),
            filenames=fields.get("files"),
            justification=fields["justification"],
            by=user,
            now=timezone.now(),
        )
        location = absolute_url(request, "egress-request", request_id=str(made.pk))
        return detail(self, user, str(made.pk), status=status.HTTP_201_CREATED, headers={"Location": location})


class RequestView(APIView):
    @extend_schema(operation_id="egress_requests_retrieve", parameters=[RoundInput], responses=RequestDetail)
    def get(self, request: Request, request_id: str) -> Response:
        wanted = RoundInput(data=request.query_params)
        wanted.is_valid(raise_exception=True)
        return detail(self, user_of(request), request_id, round_number=wanted.validated_data.get("round"))


class DecisionsView(APIView):
    scopes = PEOPLE_ONLY

    @extend_schema(operation_id="egress_decide", request=DecisionInput, responses={201: RequestDetail})
    def post(self, request: Request, request_id: str) -> Response:
        """Approve, reject or return it, at the stage that it is at. A request that failed can be returned."""
        user, now = user_of(request), timezone.now()
        found = access.get_request(user, request_id)
        fields = validated(DecisionInput, request)
        services.decide(
            found,
            verdict=fields["verdict"],
            reason=fields["reason"],
            by=user,
            now=now,
            round_number=fields.get("round"),
            stage_number=fields.get("stage"),
        )
        return detail(self, user, request_id, status=status.HTTP_201_CREATED)


class ResubmitView(APIView):
    @extend_schema(operation_id="egress_resubmit", request=ResubmitInput, responses=RequestDetail)
    def post(self, request: Request, request_id: str) -> Response:
        """A new round of a request that was returned: everything is decided anew."""
        user = user_of(request)
        found = access.get_request(user, request_id)
        fields = validated(ResubmitInput, request)
        services.resubmit(
            found, filenames=fields.get("files"), justification=fields.get("justification"), by=user, now=timezone.now()
        )
        return detail(self, user, request_id)


class WithdrawView(APIView):
    @extend_schema(operation_id="egress_withdraw", request=OptionalReasonInput, responses=RequestDetail)
    def post(self, request: Request, request_id: str) -> Response:
        """The requester thinks better of it."""
        user = user_of(request)
        found = access.get_request(user, request_id)
        services.withdraw(found, reason=validated(OptionalReasonInput, request)["reason"], by=user, now=timezone.now())
        return detail(self, user, request_id)


class RevokeView(APIView):
    scopes = PEOPLE_ONLY

    @extend_schema(operation_id="egress_revoke", request=ReasonInput, responses=RequestDetail)
    def post(self, request: Request, request_id: str) -> Response:
        """Ends a release: nobody fetches the package any more. `downloads` says who has it already."""
        user = user_of(request)
        found = access.get_request(user, request_id)
        services.revoke(found, reason=validated(ReasonInput, request)["reason"], by=user, now=timezone.now())
        return detail(self, user, request_id)


class RetryView(APIView):
    scopes = PEOPLE_ONLY

    @extend_schema(operation_id="egress_retry", request=OptionalReasonInput, responses=RequestDetail)
    def post(self, request: Request, request_id: str) -> Response:
        """Builds the package of a request that failed once more. For operators."""
        user = user_of(request)
        found = access.get_request(user, request_id)
        services.retry(found, reason=validated(OptionalReasonInput, request)["reason"], by=user, now=timezone.now())
        return detail(self, user, request_id)


class ExtendView(APIView):
    scopes = PEOPLE_ONLY

    @extend_schema(operation_id="egress_extend", request=ExtendInput, responses=RequestDetail)
    def post(self, request: Request, request_id: str) -> Response:
        """More downloads, or more days. For whoever decides last."""
        user = user_of(request)
        found = access.get_request(user, request_id)
        fields = validated(ExtendInput, request)
        services.extend(
            found, downloads=fields["downloads"], days=fields["days"], reason=fields["reason"], by=user, now=timezone.now()
        )
        return detail(self, user, request_id)


# --- Bytes ---


class StagedFileView(APIView):
    @extend_schema(operation_id="egress_item_content", parameters=BYTE_REQUEST_HEADERS, responses=CONTENT_RESPONSES)
    def get(self, request: Request, request_id: str, number: int) -> HttpResponseBase:
        """A staged file, for whoever has a say in the request. Who opened it is on record."""
        user = user_of(request)
        item = access.get_staged_file(user, request_id, number)
        return respond(downloads.open_staged_file(item, by=user, byte_request=byte_request_of(request), now=timezone.now()))

    @extend_schema(operation_id="egress_item_head", responses={200: None})
    def head(self, request: Request, request_id: str, number: int) -> HttpResponseBase:
        return self.get(request, request_id, number)


class PackageView(APIView):
    @extend_schema(operation_id="egress_package", parameters=BYTE_REQUEST_HEADERS, responses=PACKAGE)
    def get(self, request: Request, request_id: str) -> HttpResponseBase:
        """The released package, so often as was approved. A transfer that broke is resumed with Range, and not counted again."""
        user = user_of(request)
        found = access.get_request(user, request_id)
        return respond(downloads.open_package(found, by=user, byte_request=byte_request_of(request), now=timezone.now()))

    @extend_schema(operation_id="egress_package_head", responses={200: None})
    def head(self, request: Request, request_id: str) -> HttpResponseBase:
        """Counts as nothing."""
        return self.get(request, request_id)


class DownloadsView(APIView):
    scopes = {"POST": Scope.READ}

    @extend_schema(operation_id="egress_package_mint", request=None, responses={201: LinkOutput})
    def post(self, request: Request, request_id: str) -> Response:
        """A one-off link to the package. It counts as a download when it is used."""
        user = user_of(request)
        found = access.get_request(user, request_id)
        return link_created(self, request, downloads.mint_link(found, by=user, now=timezone.now()))


class ManifestView(APIView):
    @extend_schema(operation_id="egress_manifest", responses=ManifestOutput)
    def get(self, request: Request, request_id: str) -> Response:
        """What was released, who asked for it and who let it out, signed. 404 until then."""
        return render(self, ManifestOutput, access.get_released(user_of(request), request_id))


class SigningKeysView(APIView):
    """Whoever has a package can verify it: no account is needed for that."""

    authentication_classes = ()
    permission_classes = ()

    @extend_schema(operation_id="egress_signing_keys", auth=[], responses=SigningKeysOutput)
    def get(self, request: Request) -> Response:
        """Public keys that manifests are verified with."""
        return render(self, SigningKeysOutput, {"results": manifest.signing_keys()})


class PolicyView(APIView):
    scopes = ADMINISTER | {"GET": Scope.READ}

    @extend_schema(operation_id="egress_policy_retrieve", responses=PolicyOutput)
    def get(self, request: Request, tenant: str) -> Response:
        """The rules that requests in this tenant are submitted under."""
        return render(self, PolicyOutput, access.get_policy(user_of(request), tenant))

    @extend_schema(operation_id="egress_policy_replace", request=PolicyInput, responses=PolicyOutput)
    def put(self, request: Request, tenant: str) -> Response:
        """Replaces them, for requests that are submitted from now on."""
        user = user_of(request)
        policy = access.get_policy(user, tenant)
        fields = validated(PolicyInput, request)
        return render(self, PolicyOutput, services.set_policy(policy.tenant, by=user, now=timezone.now(), **fields))
