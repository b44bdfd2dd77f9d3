"""Mail backends: an SMTP server, or files."""

import logging
import smtplib
from collections.abc import Sequence
from email.parser import BytesHeaderParser
from itertools import compress
from pathlib import Path
from typing import Any

from django.core.mail.backends import filebased, smtp


log = logging.getLogger(__name__)


class SMTPConnection(smtplib.SMTP):
    """Treats the first recipient of a mail as its addressee, and the others as copies.

    If the server refuses the addressee, the mail is sent to no recipient; otherwise a delivered copy would count as success. A
    refused copy is only logged.
    """

    refusals: Sequence[bool] = ()  # for each recipient of the last mail, in order: whether the server refused it

    def sendmail(
        self,
        from_addr: str,
        to_addrs: str | Sequence[str],
        msg: Any,
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
    ) -> dict[str, tuple[int, bytes]]:
        self._recipient = to_addrs[0]
        refused = super().sendmail(from_addr, to_addrs, msg, mail_options, rcpt_options)
        self.refusals = [address in refused for address in to_addrs]
        if refused:
            message_id = BytesHeaderParser().parsebytes(msg)["Message-ID"]
            codes = sorted(code for code, _ in refused.values())
            log.warning("copies of a mail were refused", extra={"message_id": message_id, "codes": codes})
        return refused

    def rcpt(self, recip: str, options: Sequence[str] = ()) -> tuple[int, bytes]:
        code, answer = super().rcpt(recip, options)
        if recip == self._recipient and code not in (250, 251):
            raise smtplib.SMTPRecipientsRefused({recip: (code, answer)})
        return code, answer


class SMTPSConnection(SMTPConnection, smtplib.SMTP_SSL):
    pass


class SMTPBackend(smtp.EmailBackend):
    @property
    def connection_class(self) -> type[smtplib.SMTP_SSL | smtplib.SMTP]:
        return SMTPSConnection if self.use_ssl else SMTPConnection

    def _send(self, email_message: Any) -> bool:
        """Sets `refused` on the message: the recipients that the server refused, as the message spells them."""
        is_sent: bool = super()._send(email_message)  # type: ignore[misc]  # missing in its type hints
        if isinstance(self.connection, SMTPConnection):
            email_message.refused = list(compress(email_message.recipients(), self.connection.refusals))
        return is_sent


class PrivateFileBackend(filebased.EmailBackend):
    """Writes mails to files if no mail server is set. Only the owner can read the folder, because mails contain tokens."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        Path(self.file_path).chmod(0o700)
