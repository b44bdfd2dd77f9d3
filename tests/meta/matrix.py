"""The access matrix: the response to every request by every kind of user.

`test_access_matrix.py` compares the server with this table, and docs/access.md is generated from it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final


PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "access.md"
EMPTY: Final = "empty"  # 200 with an empty list

COLUMNS: Final = {
    "admin": "admin of the tenant",
    "manager": "member of the tenant with a `manager` grant on the collection",
    "editor": "member of the tenant with an `editor` grant on the collection",
    "viewer": "member of the tenant with a `viewer` grant on the collection",
    "member": "member of the tenant without a grant",
    "file": "member of the tenant with a `viewer` grant on the file only",
    "requester": "member of the tenant with a `viewer` grant on the collection, who submitted the egress request for it",
    "external": "member of another tenant with a `viewer` grant on the collection, which its tenant allows",
    "auditor": "user whose only role in the tenant is `auditor`",
    "stage": "user whose only role in the tenant is that of the first egress stage, `information_governance`",
    "last": "user whose only role in the tenant is that of the last egress stage, `research_it`",
    "other": "admin of another tenant",
    "root": "superuser without a tenant",
    "inactive": "deactivated member with a `manager` grant and a token from before the deactivation",
    "suspended": "member with a `manager` grant, while the tenant is suspended",
    "anonymous": "user without a token",
}

# Each row is a request that succeeds for a user with all rights. `collection` is the state of the collection or the egress
# request. `scope` is what an API key needs: `-` if no key is accepted, `public` if the request needs no authentication.
TABLE: Final = """
collection method path                                                           scope      admin manager editor viewer member file  requester external auditor stage last  other root  inactive suspended anonymous
-          POST   /api/v1/auth/token/                                            public     200   200     200    200    200    200   200       200      200     200   200   200   200   401      200       401
-          POST   /api/v1/auth/token/refresh/                                    public     200   200     200    200    200    200   200       200      200     200   200   200   200   401      200       401
-          POST   /api/v1/auth/token/revoke/                                     public     204   204     204    204    204    204   204       204      204     204   204   204   204   204      204       204
-          GET    /api/v1/me/                                                    read       200   200     200    200    200    200   200       200      200     200   200   200   200   401      200       401
-          POST   /api/v1/collections/                                           write      201   201     201    201    201    201   201       400      403     403   403   400   403   401      400       401

open       GET    /api/v1/collections/                                           read       200   200     200    200    empty  200   200       200      200     empty empty empty empty 401      empty     401
open       GET    /api/v1/collections/{slug}/                                    read       200   200     200    200    404    200   200       200      200     404   404   404   404   401      404       401
open       PATCH  /api/v1/collections/{slug}/                                    write      200   200     403    403    404    403   403       403      403     404   404   404   404   401      404       401
open       DELETE /api/v1/collections/{slug}/                                    write      202   202     403    403    404    403   403       403      403     404   404   404   404   401      404       401
open       POST   /api/v1/collections/{slug}/restore/                            write      409   409     403    403    404    403   403       403      403     404   404   404   404   401      404       401
open       GET    /api/v1/collections/{slug}/archive.zip                         read       200   200     200    200    404    200   200       200      403     404   404   404   404   401      404       401
open       POST   /api/v1/collections/{slug}/archive/                            read       201   201     201    201    404    201   201       201      403     404   404   404   404   401      404       401
open       GET    /api/v1/collections/{slug}/files/                              read       200   200     200    200    404    200   200       200      200     404   404   404   404   401      404       401
open       POST   /api/v1/collections/{slug}/files/                              write      201   201     201    403    404    403   403       403      403     404   404   404   404   401      404       401
open       POST   /api/v1/files/                                                 write      201   201     201    403    400    403   403       403      403     400   400   400   400   401      400       401
open       GET    /api/v1/collections/{slug}/files/{filename}/                   read       200   200     200    200    404    200   200       200      200     404   404   404   404   401      404       401
open       PUT    /api/v1/collections/{slug}/files/{filename}/                   write      200   200     200    403    404    403   403       403      403     404   404   404   404   401      404       401
open       PATCH  /api/v1/collections/{slug}/files/{filename}/                   write      200   200     200    403    404    403   403       403      403     404   404   404   404   401      404       401
open       DELETE /api/v1/collections/{slug}/files/{filename}/                   write      204   204     204    403    404    403   403       403      403     404   404   404   404   401      404       401
open       GET    /api/v1/collections/{slug}/files/{filename}/preview/           read       200   200     200    200    404    200   200       200      403     404   404   404   404   401      404       401
open       GET    /api/v1/collections/{slug}/files/{filename}/download/          read       303   303     303    303    404    303   303       303      403     404   404   404   404   401      404       401
open       POST   /api/v1/collections/{slug}/files/{filename}/download/          read       201   201     201    201    404    201   201       201      403     404   404   404   404   401      404       401
open       GET    /api/v1/collections/{slug}/content/{filename}                  read       200   200     200    200    404    200   200       200      403     404   404   404   404   401      404       401
open       PUT    /api/v1/collections/{slug}/content/{filename}                  write      200   200     200    403    404    403   403       403      403     404   404   404   404   401      404       401
open       GET    /downloads/{token}                                             public     200   200     200    200    200    200   200       200      200     200   200   200   200   200      404       200
open       GET    /api/v1/collections/{slug}/grants/                             share      200   200     403    403    404    403   403       403      200     404   404   404   404   401      404       401
open       POST   /api/v1/collections/{slug}/grants/                             share      201   201     403    403    404    403   403       403      403     404   404   404   404   401      404       401
open       GET    /api/v1/collections/{slug}/grants/{grant_id}/                  share      200   200     403    403    404    403   403       403      200     404   404   404   404   401      404       401
open       DELETE /api/v1/collections/{slug}/grants/{grant_id}/                  share      204   204     403    403    404    403   403       403      403     404   404   404   404   401      404       401
open       GET    /api/v1/collections/{slug}/files/{filename}/grants/            share      200   200     403    403    404    403   403       403      200     404   404   404   404   401      404       401
open       POST   /api/v1/collections/{slug}/files/{filename}/grants/            share      201   201     403    403    404    403   403       403      403     404   404   404   404   401      404       401
open       GET    /api/v1/collections/{slug}/files/{filename}/grants/{grant_id}/ share      200   200     403    403    404    403   403       403      200     404   404   404   404   401      404       401
open       DELETE /api/v1/collections/{slug}/files/{filename}/grants/{grant_id}/ share      204   204     403    403    404    403   403       403      403     404   404   404   404   401      404       401
open       GET    /api/v1/collections/{slug}/holds/                              read       200   200     403    403    404    403   403       403      200     404   404   404   404   401      404       401
open       POST   /api/v1/collections/{slug}/holds/                              administer 201   403     403    403    404    403   403       403      403     404   404   404   404   401      404       401
open       GET    /api/v1/collections/{slug}/holds/{hold_id}/                    read       200   200     403    403    404    403   403       403      200     404   404   404   404   401      404       401
open       DELETE /api/v1/collections/{slug}/holds/{hold_id}/                    administer 204   403     403    403    404    403   403       403      403     404   404   404   404   401      404       401

deleted    GET    /api/v1/collections/                                           read       empty empty   empty  empty  empty  empty empty     empty    empty   empty empty empty empty 401      empty     401
deleted    GET    /api/v1/collections/{slug}/                                    read       200   200     404    404    404    404   404       404      404     404   404   404   404   401      404       401
deleted    PATCH  /api/v1/collections/{slug}/                                    write      409   409     404    404    404    404   404       404      404     404   404   404   404   401      404       401
deleted    DELETE /api/v1/collections/{slug}/                                    write      409   409     404    404    404    404   404       404      404     404   404   404   404   401      404       401
deleted    POST   /api/v1/collections/{slug}/restore/                            write      200   200     404    404    404    404   404       404      404     404   404   404   404   401      404       401
deleted    GET    /api/v1/collections/{slug}/archive.zip                         read       404   404     404    404    404    404   404       404      404     404   404   404   404   401      404       401
deleted    POST   /api/v1/collections/{slug}/archive/                            read       404   404     404    404    404    404   404       404      404     404   404   404   404   401      404       401
deleted    GET    /api/v1/collections/{slug}/files/                              read       404   404     404    404    404    404   404       404      404     404   404   404   404   401      404       401
deleted    POST   /api/v1/collections/{slug}/files/                              write      404   404     404    404    404    404   404       404      404     404   404   404   404   401      404       401
deleted    POST   /api/v1/files/                                                 write      400   400     400    400    400    400   400       400      400     400   400   400   400   401      400       401
deleted    GET    /api/v1/collections/{slug}/files/{filename}/                   read       404   404     404    404    404    404   404       404      404     404   404   404   404   401      404       401
deleted    PUT    /api/v1/collections/{slug}/files/{filename}/                   write      404   404     404    404    404    404   404       404      404     404   404   404   404   401      404       401
deleted    PATCH  /api/v1/collections/{slug}/files/{filename}/                   write      404   404     404    404    404    404   404       404      404     404   404   404   404   401      404       401
deleted    DELETE /api/v1/collections/{slug}/files/{filename}/                   write      404   404     404    404    404    404   404       404      404     404   404   404   404   401      404       401
deleted    GET    /api/v1/collections/{slug}/files/{filename}/preview/           read       404   404     404    404    404    404   404       404      404     404   404   404   404   401      404       401
deleted    GET    /api/v1/collections/{slug}/files/{filename}/download/          read       404   404     404    404    404    404   404       404      404     404   404   404   404   401      404       401
deleted    POST   /api/v1/collections/{slug}/files/{filename}/download/          read       404   404     404    404    404    404   404       404      404     404   404   404   404   401      404       401
deleted    GET    /api/v1/collections/{slug}/content/{filename}                  read       404   404     404    404    404    404   404       404      404     404   404   404   404   401      404       401
deleted    PUT    /api/v1/collections/{slug}/content/{filename}                  write      404   404     404    404    404    404   404       404      404     404   404   404   404   401      404       401
deleted    GET    /downloads/{token}                                             public     404   404     404    404    404    404   404       404      404     404   404   404   404   404      404       404
deleted    GET    /api/v1/collections/{slug}/grants/                             share      404   404     404    404    404    404   404       404      404     404   404   404   404   401      404       401
deleted    POST   /api/v1/collections/{slug}/grants/                             share      404   404     404    404    404    404   404       404      404     404   404   404   404   401      404       401
deleted    GET    /api/v1/collections/{slug}/grants/{grant_id}/                  share      404   404     404    404    404    404   404       404      404     404   404   404   404   401      404       401
deleted    DELETE /api/v1/collections/{slug}/grants/{grant_id}/                  share      404   404     404    404    404    404   404       404      404     404   404   404   404   401      404       401
deleted    GET    /api/v1/collections/{slug}/files/{filename}/grants/            share      404   404     404    404    404    404   404       404      404     404   404   404   404   401      404       401
deleted    POST   /api/v1/collections/{slug}/files/{filename}/grants/            share      404   404     404    404    404    404   404       404      404     404   404   404   404   401      404       401
deleted    GET    /api/v1/collections/{slug}/files/{filename}/grants/{grant_id}/ share      404   404     404    404    404    404   404       404      404     404   404   404   404   401      404       401
deleted    DELETE /api/v1/collections/{slug}/files/{filename}/grants/{grant_id}/ share      404   404     404    404    404    404   404       404      404     404   404   404   404   401      404       401
deleted    GET    /api/v1/collections/{slug}/holds/                              read       200   200     404    404    404    404   404       404      404     404   404   404   404   401      404       401
deleted    POST   /api/v1/collections/{slug}/holds/                              administer 201   403     404    404    404    404   404       404      404     404   404   404   404   401      404       401
deleted    GET    /api/v1/collections/{slug}/holds/{hold_id}/                    read       200   200     404    404    404    404   404       404      404     404   404   404   404   401      404       401
deleted    DELETE /api/v1/collections/{slug}/holds/{hold_id}/                    administer 204   403     404    404    404    404   404       404      404     404   404   404   404   401      404       401

held       DELETE /api/v1/collections/{slug}/                                    write      409   409     403    403    404    403   403       403      403     404   404   404   404   401      404       401
held       PUT    /api/v1/collections/{slug}/files/{filename}/                   write      409   409     409    403    404    403   403       403      403     404   404   404   404   401      404       401
held       PATCH  /api/v1/collections/{slug}/files/{filename}/                   write      409   409     409    403    404    403   403       403      403     404   404   404   404   401      404       401
held       DELETE /api/v1/collections/{slug}/files/{filename}/                   write      409   409     409    403    404    403   403       403      403     404   404   404   404   401      404       401
held       PUT    /api/v1/collections/{slug}/content/{filename}                  write      409   409     409    403    404    403   403       403      403     404   404   404   404   401      404       401

-          GET    /api/v1/tenants/{tenant}/grants/                               audit      200   403     403    403    403    403   403       404      200     403   403   404   200   401      404       401

-          GET    /api/v1/tenants/{tenant}/api-keys/                             -          200   empty   empty  empty  empty  empty empty     404      200     empty empty 404   200   401      404       401
-          POST   /api/v1/tenants/{tenant}/api-keys/                             -          201   201     201    201    201    201   201       404      201     201   201   404   403   401      404       401
-          GET    /api/v1/tenants/{tenant}/api-keys/{prefix}/                    -          200   404     404    404    404    404   404       404      200     404   404   404   200   401      404       401
-          DELETE /api/v1/tenants/{tenant}/api-keys/{prefix}/                    -          204   404     404    404    404    404   404       404      403     404   404   404   204   401      404       401
-          GET    /api/v1/tenants/{tenant}/service-accounts/                     -          200   403     403    403    403    403   403       404      200     403   403   404   200   401      404       401
-          POST   /api/v1/tenants/{tenant}/service-accounts/                     -          201   403     403    403    403    403   403       404      403     403   403   404   201   401      404       401
-          GET    /api/v1/tenants/{tenant}/service-accounts/{account}/           -          200   403     403    403    403    403   403       404      200     403   403   404   200   401      404       401
-          DELETE /api/v1/tenants/{tenant}/service-accounts/{account}/           -          204   403     403    403    403    403   403       404      403     403   403   404   204   401      404       401
-          POST   /api/v1/auth/password/change/                                  -          200   200     200    200    200    200   200       200      200     200   200   200   200   401      200       401
-          POST   /api/v1/auth/password/reset/                                   public     202   202     202    202    202    202   202       202      202     202   202   202   202   202      202       202
-          POST   /api/v1/auth/password/reset/confirm/                           public     204   204     204    204    204    204   204       204      204     204   204   204   204   400      204       400
-          POST   /api/v1/auth/invitations/accept/                               public     201   201     201    201    201    201   201       201      201     201   201   201   201   201      400       201
-          GET    /api/v1/tenants/                                               read       200   200     200    200    200    200   200       200      200     200   200   200   200   401      empty     401
-          POST   /api/v1/tenants/                                               -          403   403     403    403    403    403   403       403      403     403   403   403   201   401      403       401
-          GET    /api/v1/tenants/{tenant}/                                      read       200   200     200    200    200    200   200       404      200     200   200   404   200   401      404       401
-          PATCH  /api/v1/tenants/{tenant}/                                      administer 200   403     403    403    403    403   403       404      403     403   403   404   200   401      404       401
-          GET    /api/v1/tenants/{tenant}/usage/                                administer 200   403     403    403    403    403   403       404      200     403   403   404   200   401      404       401
-          GET    /api/v1/tenants/{tenant}/members/                              administer 200   403     403    403    403    403   403       404      200     403   403   404   200   401      404       401
-          POST   /api/v1/tenants/{tenant}/members/                              administer 202   403     403    403    403    403   403       404      403     403   403   404   202   401      404       401
-          PATCH  /api/v1/tenants/{tenant}/members/{username}/                   administer 200   403     403    403    403    403   403       404      403     403   403   404   200   401      404       401
-          DELETE /api/v1/tenants/{tenant}/members/{username}/                   administer 204   403     403    403    403    403   403       404      403     403   403   404   204   401      404       401
-          GET    /api/v1/tenants/{tenant}/invitations/                          administer 200   403     403    403    403    403   403       404      200     403   403   404   200   401      404       401
-          DELETE /api/v1/tenants/{tenant}/invitations/{invitation}/             administer 204   403     403    403    403    403   403       404      403     403   403   404   204   401      404       401

-          GET    /api/v1/tenants/{tenant}/audit/                                audit      200   403     403    403    403    403   403       404      200     403   403   404   200   401      404       401
-          GET    /api/v1/tenants/{tenant}/audit.csv                             audit      200   403     403    403    403    403   403       404      200     403   403   404   200   401      404       401
-          GET    /api/v1/audit/                                                 -          403   403     403    403    403    403   403       403      403     403   403   403   200   401      403       401
-          GET    /api/v1/audit.csv                                              -          403   403     403    403    403    403   403       403      403     403   403   403   200   401      403       401

-          GET    /api/v1/purge/destructions/                                    audit      200   empty   empty  empty  empty  empty empty     empty    200     empty empty empty 200   401      empty     401
-          GET    /api/v1/purge/destructions/{destruction}/                      audit      200   404     404    404    404    404   404       404      200     404   404   404   200   401      404       401
-          GET    /api/v1/purge/certificates/                                    audit      200   empty   empty  empty  empty  empty empty     empty    200     empty empty empty 200   401      empty     401
-          GET    /api/v1/purge/certificates/{destruction}/                      audit      200   404     404    404    404    404   404       404      200     404   404   404   200   401      404       401

open       POST   /api/v1/egress/requests/                                       write      201   201     201    201    400    201   201       403      403     400   400   400   400   401      400       401
deleted    POST   /api/v1/egress/requests/                                       write      400   400     400    400    400    400   400       400      400     400   400   400   400   401      400       401

in_review  GET    /api/v1/egress/requests/                                       read       200   empty   empty  empty  empty  empty 200       empty    200     200   200   empty 200   401      empty     401
in_review  GET    /api/v1/egress/requests/{request_id}/                          read       200   404     404    404    404    404   200       404      200     200   200   404   200   401      404       401
in_review  GET    /api/v1/egress/requests/{request_id}/items/{number}/content    read       403   404     404    404    404    404   403       404      403     200   200   404   403   401      404       401
in_review  POST   /api/v1/egress/requests/{request_id}/decisions/                -          403   404     404    404    404    404   403       404      403     201   409   404   403   401      404       401
in_review  POST   /api/v1/egress/requests/{request_id}/withdraw/                 write      403   404     404    404    404    404   200       404      403     403   403   404   403   401      404       401
in_review  DELETE /api/v1/collections/{slug}/                                    write      409   409     403    403    404    403   403       403      403     404   404   404   404   401      404       401
in_review  PUT    /api/v1/collections/{slug}/files/{filename}/                   write      409   409     409    403    404    403   403       403      403     404   404   404   404   401      404       401
in_review  PATCH  /api/v1/collections/{slug}/files/{filename}/                   write      409   409     409    403    404    403   403       403      403     404   404   404   404   401      404       401
in_review  DELETE /api/v1/collections/{slug}/files/{filename}/                   write      409   409     409    403    404    403   403       403      403     404   404   404   404   401      404       401
in_review  PUT    /api/v1/collections/{slug}/content/{filename}                  write      409   409     409    403    404    403   403       403      403     404   404   404   404   401      404       401

returned   GET    /api/v1/egress/requests/{request_id}/                          read       200   404     404    404    404    404   200       404      200     200   200   404   200   401      404       401
returned   GET    /api/v1/egress/requests/{request_id}/items/{number}/content    read       403   404     404    404    404    404   403       404      403     409   409   404   403   401      404       401
returned   POST   /api/v1/egress/requests/{request_id}/resubmit/                 write      403   404     404    404    404    404   200       404      403     403   403   404   403   401      404       401
returned   POST   /api/v1/egress/requests/{request_id}/withdraw/                 write      403   404     404    404    404    404   200       404      403     403   403   404   403   401      404       401

failed     GET    /api/v1/egress/requests/{request_id}/                          read       200   404     404    404    404    404   200       404      200     200   200   404   200   401      404       401
failed     POST   /api/v1/egress/requests/{request_id}/decisions/                -          403   404     404    404    404    404   403       404      403     403   201   404   403   401      404       401
failed     POST   /api/v1/egress/requests/{request_id}/retry/                    -          403   404     404    404    404    404   403       404      403     403   403   404   200   401      404       401

released   GET    /api/v1/egress/requests/{request_id}/                          read       200   404     404    404    404    404   200       404      200     200   200   404   200   401      404       401
released   GET    /api/v1/egress/requests/{request_id}/items/{number}/content    read       403   404     404    404    404    404   403       404      403     409   409   404   403   401      404       401
released   GET    /api/v1/egress/requests/{request_id}/package.zip               read       403   404     404    404    404    404   200       404      403     403   403   404   403   401      404       401
released   POST   /api/v1/egress/requests/{request_id}/downloads/                read       403   404     404    404    404    404   201       404      403     403   403   404   403   401      404       401
released   GET    /api/v1/egress/requests/{request_id}/manifest/                 read       200   404     404    404    404    404   200       404      200     200   200   404   200   401      404       401
released   POST   /api/v1/egress/requests/{request_id}/extend/                   -          403   404     404    404    404    404   403       404      403     403   200   404   403   401      404       401
released   POST   /api/v1/egress/requests/{request_id}/revoke/                   -          200   404     404    404    404    404   403       404      403     200   200   404   200   401      404       401

-          GET    /api/v1/tenants/{tenant}/egress-policy/                        read       200   200     200    200    200    200   200       404      200     200   200   404   200   401      404       401
-          PUT    /api/v1/tenants/{tenant}/egress-policy/                        administer 200   403     403    403    403    403   403       404      403     403   403   404   200   401      404       401
-          GET    /api/v1/egress/signing-keys/                                   public     200   200     200    200    200    200   200       200      200     200   200   200   200   200      200       200

-          GET    /api/schema/                                                   public     200   200     200    200    200    200   200       200      200     200   200   200   200   200      200       200
-          GET    /api/docs/                                                     public     200   200     200    200    200    200   200       200      200     200   200   200   200   200      200       200
-          GET    /                                                              public     303   303     303    303    303    303   303       303      303     303   303   303   303   303      303       303
"""  # noqa: E501  a table is read by its columns


@dataclass(frozen=True)
class Row:
    state: str
    method: str
    path: str
    scope: str
    answers: dict[str, str]

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.state}"


def _rows() -> list[Row]:
    (_, _, _, _, *names), *lines = [line.split() for line in TABLE.splitlines() if line]
    assert names == list(COLUMNS)
    return [
        Row(state, method, path, scope, dict(zip(names, answers, strict=True))) for state, method, path, scope, *answers in lines
    ]


ROWS: Final = _rows()


def page() -> str:
    """Returns the content of docs/access.md."""
    sections = {
        "-": "Independent of the state of a collection",
        "open": "An open collection",
        "deleted": "A deleted collection before its destruction",
        "held": "A collection under a legal hold: differences from an open one",
        "in_review": "An egress request in review, at its first stage, and its collection",
        "returned": "An egress request that was returned for changes",
        "failed": "An egress request whose package could not be built",
        "released": "An egress request whose package is available",
    }
    tables = []
    for state, title in sections.items():
        head = f"| request | scope | {' | '.join(COLUMNS)} |\n|---|---|{'---|' * len(COLUMNS)}"
        body = [
            f"| {row.method} `{row.path}` | {row.scope} | {' | '.join(row.answers.values())} |"
            for row in ROWS
            if row.state == state
        ]
        tables.append(f"## {title}\n\n{head}\n" + "\n".join(body))
    people = "\n".join(f"* **{name}**: {meaning}" for name, meaning in COLUMNS.items())
    return INTRODUCTION.format(people=people, tables="\n\n".join(tables))


INTRODUCTION: Final = """\
<!-- Generated. To update it: .venv/bin/python -m tests.meta.matrix > docs/access.md -->

# Who may do what

These tables show the response of every API endpoint to every kind of user, for a request that would succeed for a user with all
rights. The tests send each of these requests. They fail if a response differs, if the server has a path or a method that is not
in the tables, or if one in the tables no longer exists. The tables are in `tests/meta/matrix.py`.

{people}

Responses:

* **2xx, 303**: success. **empty**: an empty list.
* **401**: no valid token. **403**: the user may know of the object, but not do this. **404**: the object does not exist or the
  user may not know of it; both responses are the same, byte for byte. **400** has the same meaning as 404 where the body names
  a tenant or a collection. **409**: not in this state.

Rules:

* An API key gets the responses of its owner if it has the **scope**, otherwise 403. **-**: no key is accepted. **public**: no
  authentication is needed.
* HEAD gets the response of GET without its body. Every other method gets 405, or 401 without a valid token, whether or not the
  collection in the path exists.
* `/downloads/{{token}}` is a one-off link: the token in the path is the credential. It becomes invalid when the member who
  created it loses access. The table shows a link that was created while the collection was open.
* A session of the admin site has no effect on the API, and a token has no effect on the admin site, whose pages redirect
  everyone who is not staff to the login.

{tables}
"""


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201
