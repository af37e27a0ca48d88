"""A certificate for 127.0.0.1 and localhost, made for one server and trusted by nobody else."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography import x509


def write_certificate(directory: Path, *, vouches_for_itself: bool = False) -> tuple[Path, Path, Path]:
    """Write a certificate, its key, and the authority that vouches for it.

    Args:
        directory: Where to write.
        vouches_for_itself: Whether one certificate is both, as `openssl req -x509` makes it; some TLS libraries refuse
            an authority as a server (RFC 5280, 4.2.1.9).

    Returns:
        The certificate's file, the key's, and the CA bundle to trust, all PEM.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def make(
        name: str, is_authority: bool, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "local S3 test authority")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            # Without this and what vouches for it Python 3.13 and newer refuse a certificate:
            # https://docs.python.org/3/library/ssl.html#ssl.create_default_context
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
            .add_extension(_usage(is_authority), critical=True)
        )

    hosts = [
        x509.DNSName("localhost"),
        x509.DNSName("*.localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = make("local S3 test authority", True, authority_key, authority_key).sign(authority_key, hashes.SHA256())
    name = "local S3 test authority" if vouches_for_itself else "local S3 test server"
    signer = key if vouches_for_itself else authority_key
    certificate = (
        make(name, vouches_for_itself, key, signer)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .sign(signer, hashes.SHA256())
    )
    certificate_file, key_file, bundle = (directory / name for name in ("certificate.pem", "key.pem", "ca.pem"))
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    bundle.write_bytes((certificate if vouches_for_itself else authority).public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_file, key_file, bundle


def _usage(is_authority: bool) -> x509.KeyUsage:
    """What the key of a certificate may do: sign handshakes, and an authority's other certificates too."""
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
