"""What a service encrypts its connections with: a certificate and its key."""

import os
import ssl
import stat

from ntkpipe.configs.errors import ConfigError


def check_certificate(certificate: str, key: str) -> None:
    """Refuse files that no connection could be encrypted with, before anything listens.

    Args:
        certificate: File of the certificate, and of those of who has signed it, in PEM.
        key: File of its private key, in PEM, without a password: nobody is there to be asked for one.

    Raises:
        ConfigError: One of them is not given, cannot be read or used, or the key can be read or changed by every user of the
            machine.
    """
    if not (certificate and key):
        missing = "--tls-key" if certificate else "--tls-cert"
        raise ConfigError(f"a certificate and its key belong together; give {missing} FILE, too.")
    for file in (certificate, key):
        try:
            open(file, "rb").close()
        except OSError as error:
            raise ConfigError(f"{file} cannot be read: {error.strerror}.") from None
    if os.stat(key).st_mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ConfigError(f"the key {key} can be read or changed by every user here. Try: chmod 600 {key}")
    try:
        # An empty password is wrong for every key that has one; without it, OpenSSL would ask the terminal.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"connections cannot be encrypted with the certificate {certificate} and the key {key} ({error}). Expected a "
            "certificate in PEM, with those of who has signed it, and the key that belongs to it, without a password."
        ) from None
