"""The stock implementation that the object format is proven against: Tink for Python, which is Tink for C++ below."""

import io

import tink
from tink import proto_keyset_format, secret_key_access, streaming_aead
from tink.proto import aes_gcm_hkdf_streaming_pb2, common_pb2, tink_pb2


streaming_aead.register()


class Kept(io.BytesIO):
    """Tink closes the streams it is given, and this one is still to be read."""

    def close(self) -> None:
        pass


def primitive(key_material: bytes, segment_size: int) -> streaming_aead.StreamingAead:
    key = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKey(
        key_value=key_material,
        params=aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingParams(
            ciphertext_segment_size=segment_size, derived_key_size=32, hkdf_hash_type=common_pb2.SHA256
        ),
    )
    data = tink_pb2.KeyData(
        type_url="type.googleapis.com/google.crypto.tink.AesGcmHkdfStreamingKey",
        value=key.SerializeToString(),
        key_material_type=tink_pb2.KeyData.SYMMETRIC,
    )
    only = tink_pb2.Keyset.Key(key_data=data, status=tink_pb2.ENABLED, key_id=1, output_prefix_type=tink_pb2.RAW)
    keyset = tink_pb2.Keyset(primary_key_id=1, key=[only])
    handle = proto_keyset_format.parse(keyset.SerializeToString(), secret_key_access.TOKEN)
    return handle.primitive(streaming_aead.StreamingAead)


def encrypt(plaintext: bytes, *, key_material: bytes, aad: bytes, segment_size: int) -> bytes:
    ciphertext = Kept()
    with primitive(key_material, segment_size).new_encrypting_stream(ciphertext, aad) as stream:
        stream.write(plaintext)
    return ciphertext.getvalue()


def decrypt(ciphertext: bytes, *, key_material: bytes, aad: bytes, segment_size: int) -> bytes:
    """Raises tink.TinkError."""
    with primitive(key_material, segment_size).new_decrypting_stream(io.BytesIO(ciphertext), aad) as stream:
        plaintext: bytes = stream.read()
    return plaintext


Refused = tink.TinkError
