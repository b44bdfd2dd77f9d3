"""How mails leave: to a mail server, or as files."""

import logging
import smtplib
from collections.abc import Sequence
from email.parser import BytesHeaderParser
from itertools import compress
from pathlib import Path
from typing import Any

from django.core.mail.backends import filebased, smtp


log = logging.getLogger(__name__)


class Conversation(smtplib.SMTP):
    """One whose first recipient is who the mail is for: refused that one, it goes to nobody, or a copy would count as the mail.

    A copy that is refused is logged, and keeps the mail from nobody.
    """

    refusals: Sequence[bool] = ()  # of each recipient of the last mail, in their order: whether it was refused

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


class SecureConversation(Conversation, smtplib.SMTP_SSL):
    pass


class Server(smtp.EmailBackend):
    @property
    def connection_class(self) -> type[smtplib.SMTP_SSL | smtplib.SMTP]:
        return SecureConversation if self.use_ssl else Conversation

    def _send(self, email_message: Any) -> bool:
        """Leaves on the message what Django forgets: which of its recipients were refused, as the message writes them."""
        is_sent: bool = super()._send(email_message)  # type: ignore[misc]  # which its hints do not know
        if isinstance(self.connection, Conversation):
            email_message.refused = list(compress(email_message.recipients(), self.connection.refusals))
        return is_sent


class PrivateFiles(filebased.EmailBackend):
    """Mails as files, for an installation without a mail server. They carry tokens, so that the folder is its owner's alone."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        Path(self.file_path).chmod(0o700)
