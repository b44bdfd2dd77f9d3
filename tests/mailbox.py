"""A mail server on loopback, of the part of SMTP that Django speaks: it keeps what it is given."""

from email import message_from_bytes, policy
from email.message import EmailMessage
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import Any


class Mailbox(ThreadingTCPServer):
    allow_reuse_address = True

    def __init__(self, port: int = 0) -> None:
        self.messages: list[EmailMessage] = []
        self.refused: set[str] = set()  # recipients that it knows nothing of
        self.is_busy = False
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
        self.server.conversations += 1
        if self.server.is_busy:
            self.say("421 busy")
            return
        self.say("220 here")
        while line := self.rfile.readline().decode().strip():
            match line[:4].upper():
                case "DATA":
                    self.say("354 go on")
                    self.server.messages.append(self.read())
                    self.say("250 kept")
                case "RCPT" if any(f"<{refused}>" in line for refused in self.server.refused):
                    self.say("550 nobody of this name")
                case "QUIT":
                    self.say("221 bye")
                    return
                case _:
                    self.say("250 fine")

    def read(self) -> EmailMessage:
        lines = iter(self.rfile.readline, b".\r\n")
        return message_from_bytes(b"".join(line.removeprefix(b".") for line in lines), policy=policy.default)

    def say(self, words: str) -> None:
        self.wfile.write(words.encode() + b"\r\n")
