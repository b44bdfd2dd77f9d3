"""A mail server on loopback, of the part of SMTP that Django speaks: it keeps what it is given."""

from contextlib import suppress
from email import message_from_bytes, policy
from email.message import EmailMessage
from enum import Enum
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread
from time import sleep
from typing import Any


class ConnectionDrop(Enum):
    """Without a word, when it has been given a message."""

    BEFORE_STORING = "before keeping it"
    AFTER_STORING = "after keeping it"


class Mailbox(ThreadingTCPServer):
    allow_reuse_address = True

    def __init__(self, port: int = 0) -> None:
        self.messages: list[EmailMessage] = []
        self.envelopes: list[tuple[str, list[str]]] = []  # of each message: who sent it, and to whom
        self.refused: set[str] = set()  # recipients that it knows nothing of
        self.is_busy = False
        self.pause = 0.0  # seconds before it answers
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
        with suppress(ConnectionError):  # who lost patience went away
            self.converse()

    def converse(self) -> None:
        self.server.conversations += 1
        if self.server.is_busy:
            self.say("421 busy")
            return
        self.say("220 here")
        sender, recipients = "", list[str]()
        while line := self.rfile.readline().decode().strip():
            match line[:4].upper():
                case "MAIL":
                    sender, recipients = address_in(line), []
                    self.say("250 fine")
                case "RCPT" if address_in(line) in self.server.refused:
                    self.say("550 nobody of this name")
                case "RCPT":
                    recipients.append(address_in(line))
                    self.say("250 fine")
                case "DATA":
                    self.say("354 go on")
                    message = self.read()
                    if self.server.connection_drop is ConnectionDrop.BEFORE_STORING:
                        return
                    self.server.messages.append(message)
                    self.server.envelopes.append((sender, recipients))
                    if self.server.connection_drop is ConnectionDrop.AFTER_STORING:
                        return
                    self.say("250 kept")
                case "QUIT":
                    self.say("221 bye")
                    return
                case _:
                    self.say("250 fine")

    def read(self) -> EmailMessage:
        lines = iter(self.rfile.readline, b".\r\n")
        return message_from_bytes(b"".join(line.removeprefix(b".") for line in lines), policy=policy.default)

    def say(self, words: str) -> None:
        sleep(self.server.pause)
        self.wfile.write(words.encode() + b"\r\n")


def address_in(line: str) -> str:
    return line.partition("<")[2].partition(">")[0]
