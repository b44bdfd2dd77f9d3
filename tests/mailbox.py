"""A mail server on loopback that stores messages. It supports the part of SMTP that Django uses."""

from contextlib import suppress
from email import message_from_bytes, policy
from email.message import EmailMessage
from enum import Enum
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread
from time import sleep
from typing import Any


class ConnectionDrop(Enum):
    """When the server closes the connection, without a reply to a message."""

    BEFORE_STORING = "before storing the message"
    AFTER_STORING = "after storing the message"


class Mailbox(ThreadingTCPServer):
    allow_reuse_address = True

    def __init__(self, port: int = 0) -> None:
        self.messages: list[EmailMessage] = []
        self.envelopes: list[tuple[str, list[str]]] = []  # sender and recipients of each message
        self.refused: set[str] = set()  # recipients that the server rejects
        self.is_busy = False
        self.pause = 0.0  # seconds before each reply
        self.connection_drop: ConnectionDrop | None = None
        self.conversations = 0
        super().__init__(("127.0.0.1", port), Conversation)
        self.port = self.server_address[1]

    def __enter__(self) -> "Mailbox":
        Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self.server_close()

    @property
    def recipients(self) -> list[str]:
        return [str(message["To"]) for message in self.messages]


class Conversation(StreamRequestHandler):
    server: Mailbox

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client timed out and closed the connection
            self.converse()

    def converse(self) -> None:
        self.server.conversations += 1
        if self.server.is_busy:
            self.reply("421 busy")
            return
        self.reply("220 ready")
        sender, recipients = "", list[str]()
        while line := self.rfile.readline().decode().strip():
            match line[:4].upper():
                case "MAIL":
                    sender, recipients = address_in(line), []
                    self.reply("250 ok")
                case "RCPT" if address_in(line) in self.server.refused:
                    self.reply("550 no such mailbox")
                case "RCPT":
                    recipients.append(address_in(line))
                    self.reply("250 ok")
                case "DATA":
                    self.reply("354 send the message")
                    message = self.read()
                    if self.server.connection_drop is ConnectionDrop.BEFORE_STORING:
                        return
                    self.server.messages.append(message)
                    self.server.envelopes.append((sender, recipients))
                    if self.server.connection_drop is ConnectionDrop.AFTER_STORING:
                        return
                    self.reply("250 stored")
                case "QUIT":
                    self.reply("221 bye")
                    return
                case _:
                    self.reply("250 ok")

    def read(self) -> EmailMessage:
        lines = iter(self.rfile.readline, b".\r\n")
        return message_from_bytes(b"".join(line.removeprefix(b".") for line in lines), policy=policy.default)

    def reply(self, text: str) -> None:
        sleep(self.server.pause)
        self.wfile.write(text.encode() + b"\r\n")


def address_in(line: str) -> str:
    return line.partition("<")[2].partition(">")[0]
