"""A certificate authority for tests, whose certificates are valid for 127.0.0.1, and an issuer of JSON Web Tokens."""

import base64
import datetime
import ipaddress
import json
import time

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID


class Authority:
    def __init__(self):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Authority of a test")])
        certificate = self.builder(self.name, self.key).add_extension(x509.BasicConstraints(True, None), critical=True)
        self.certificate = certificate.sign(self.key, hashes.SHA256())

    @property
    def pem(self):
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def builder(self, subject, key, age=1):
        now = datetime.datetime.now(datetime.timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=age))
            .not_valid_after(now + datetime.timedelta(hours=1))
        )

    def issue(self, dns="localhost", age=1):
        """Returns a certificate and its key, both in PEM. It serves 127.0.0.1, and names a client by its DNS name. It is as many
        hours old as `age` says, and valid for one more.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName(dns), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, dns)])
        builder = self.builder(subject, key, age).add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.BasicConstraints(False, None), critical=True)
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        private = key.private_bytes(encoding, form, serialization.NoEncryption())
        return builder.sign(self.key, hashes.SHA256()).public_bytes(encoding), private


def write(folder, name, pair):
    """Writes a certificate and its key, and returns their paths. Each file is replaced at once, as Kubernetes does it."""
    paths = []
    for suffix, content in zip(("crt", "key"), pair):
        path, new = folder / f"{name}.{suffix}", folder / f"{name}.{suffix}.new"
        new.write_bytes(content)
        new.rename(path)
        paths.append(str(path))
    return paths


class Issuer:
    """Issues JSON Web Tokens that are signed with ES256."""

    NAME, AUDIENCE = "https://issuer.example", "gateway"
    # The clock of the issuer may differ by so many seconds from that of the gateway.
    LEEWAY = 60

    def __init__(self):
        self.key = ec.generate_private_key(ec.SECP256R1())

    def key_set(self):
        point = self.key.public_key().public_numbers()
        key = {"kty": "EC", "crv": "P-256", "kid": "one", "use": "sig", "x": number(point.x), "y": number(point.y)}
        return json.dumps({"keys": [key]})

    def token(self, subject, seconds):
        """A token that the gateway accepts for so many seconds."""
        end = time.time() + seconds - self.LEEWAY
        claims = {"iss": self.NAME, "aud": self.AUDIENCE, "sub": subject, "exp": end, "nbf": end - 3600, "iat": end - 3600}
        parts = [encode(json.dumps(part).encode()) for part in ({"alg": "ES256", "kid": "one"}, claims)]
        signed = ".".join(parts)
        r, s = decode_dss_signature(self.key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{encode(r.to_bytes(32) + s.to_bytes(32))}"


def number(value):
    return encode(value.to_bytes(32))


def encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
