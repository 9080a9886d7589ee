"""Files with marks, made by each format's own description: text chunks, EXIF blocks, XMP packets, signed manifests."""

from __future__ import annotations

import io
import json
import struct
import zlib
from datetime import UTC, datetime, timedelta

import c2pa
import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

from tests.odd_images import png_chunk as chunk

SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
A1111 = (
    "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Version: v1.10.1"
)


def picture(side_px: int = 64) -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(pixels).resize((side_px, side_px), Image.Resampling.BICUBIC)


def encoded(image_format: str = "JPEG", **options) -> bytes:
    out = io.BytesIO()
    picture().save(out, image_format, **options)
    return out.getvalue()


def png(*chunks: bytes) -> bytes:
    """A PNG with these chunks right behind IHDR."""
    plain = encoded("PNG")
    return plain[:33] + b"".join(chunks) + plain[33:]


def text(keyword: str, content: str) -> bytes:
    return chunk(b"tEXt", keyword.encode() + b"\0" + content.encode())


def compressed_text(keyword: str, content: bytes) -> bytes:
    return chunk(b"zTXt", keyword.encode() + b"\0\0" + zlib.compress(content))


def international_text(keyword: str, content: str, *, compressed: bool = False) -> bytes:
    body = content.encode()
    flags = b"\1\0" if compressed else b"\0\0"
    return chunk(b"iTXt", keyword.encode() + b"\0" + flags + b"\0\0" + (zlib.compress(body) if compressed else body))


def exif(fields: dict[int, str], comment: bytes | None = None, order: str = ">") -> bytes:
    """A TIFF block with text fields in its first directory, and a UserComment in the EXIF directory."""
    entries = [(tag, 2, value.encode() + b"\0") for tag, value in sorted(fields.items())]
    count = len(entries) + (comment is not None)
    at = 8 + 2 + 12 * count + 4
    heap = b""
    directory = b""
    for tag, kind, value in entries:
        directory += struct.pack(order + "HHI", tag, kind, len(value))
        if len(value) <= 4:
            directory += value.ljust(4, b"\0")
        else:
            directory += struct.pack(order + "I", at + len(heap))
            heap += value + b"\0" * (len(value) & 1)
    if comment is not None:
        inner = at + len(heap)
        directory += struct.pack(order + "HHII", 0x8769, 4, 1, inner)
        heap += struct.pack(order + "HHHIII", 1, 0x9286, 7, len(comment), inner + 18, 0) + comment
    head = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(order + "I", 8)
    return head + struct.pack(order + "H", count) + directory + struct.pack(order + "I", 0) + heap


def xmp(body: str) -> bytes:
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
        'xmlns:TC260="http://www.tc260.org.cn/ns/AIGC/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/" '
        f'xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/">{body}</rdf:Description></rdf:RDF></x:xmpmeta>'
        '<?xpacket end="w"?>'
    ).encode()


def source_type_xmp(name: str) -> bytes:
    return xmp(f"<Iptc4xmpExt:DigitalSourceType>{SOURCE_TYPES}{name}</Iptc4xmpExt:DigitalSourceType>")


def _name(organisation: str) -> x509.Name:
    common = x509.NameAttribute(NameOID.COMMON_NAME, "signer")
    return x509.Name([common, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation)])


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


class Authority:
    """A root that signs certificates for signers of manifests."""

    def __init__(self, organisation: str = "Test Root") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(organisation)
        now = datetime.now(UTC)
        self._certificate = (
            self._builder(self._name, self._key.public_key(), now + timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = _pem(self._certificate)

    def _builder(self, subject: x509.Name, key, until: datetime) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.now(UTC) - timedelta(days=400))
            .not_valid_after(until)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )

    def signer(
        self, organisation: str = "Test Signer", *, valid_s: float = 86_400, stamps: bool = False
    ) -> tuple[str, str]:
        """Certificate chain and private key as PEM; the certificate ends in `valid_s`. `stamps`: of a time-stamping
        authority.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        until = datetime.now(UTC) + timedelta(seconds=valid_s)
        purpose = ExtendedKeyUsageOID.TIME_STAMPING if stamps else ExtendedKeyUsageOID.EMAIL_PROTECTION
        certificate = (
            self._builder(_name(organisation), key.public_key(), until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=stamps)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return _pem(certificate) + self.pem, private.decode()


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def signed(
    data: bytes,
    image_format: str,
    signer: tuple[str, str],
    *,
    source_type: str | None = "trainedAlgorithmicMedia",
    remote_url: str | None = None,
    embed: bool = True,
    ingredients: int = 0,
    stamped_by: str | None = None,
) -> bytes:
    """`data` with a manifest inside, or only a link to one where it is not to be embedded; `stamped_by`: the
    URL of a time-stamping authority.
    """
    chain, key = signer
    info = c2pa.C2paSignerInfo(alg=b"es256", sign_cert=chain.encode(), private_key=key.encode(), ta_url=None)
    if stamped_by is not None:
        info.ta_url = stamped_by.encode()
    action = {"action": "c2pa.created"}
    if source_type:
        action["digitalSourceType"] = SOURCE_TYPES + source_type
    manifest = {
        "claim_generator_info": [{"name": "Test Camera", "version": "1.0"}],
        "assertions": [{"label": "c2pa.actions", "data": {"actions": [action]}}],
    }
    context = c2pa.Context.from_dict(
        {"verify": {"verify_after_sign": False}, "builder": {"thumbnail": {"enabled": False}}}
    )
    builder = c2pa.Builder(json.dumps(manifest), context=context)
    for number in range(ingredients):
        described = json.dumps({"title": f"part {number}", "relationship": "componentOf"})
        builder.add_ingredient(described, f"image/{image_format}", io.BytesIO(data))
    if remote_url:
        builder.set_remote_url(remote_url)
    if not embed:
        builder.set_no_embed()
    out = io.BytesIO()
    builder.sign(c2pa.Signer.from_info(info), f"image/{image_format}", io.BytesIO(data), out)
    return out.getvalue()
