"""Contents of files that nothing compresses or repeats, the same in each run."""

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


def random_bytes(length: int, *, seed: int = 1) -> bytes:
    """A fifth of the time of `random.randbytes`: modules make megabytes of it when they are imported, by every process."""
    keystream = Cipher(algorithms.AES(seed.to_bytes(16)), modes.CTR(bytes(16))).encryptor()
    return keystream.update(bytes(length))
