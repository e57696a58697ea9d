"""A signature by an identity of Sigstore, checked offline: by the package `sigstore`, and a trust root in a file."""

from __future__ import annotations

from pathlib import Path

from registry.errors import BadSignature
from registry.signatures.attaching import FoundSignature

_HINT = "give the `trusted_root.json` of the Sigstore that they signed with"


class Identity:
    """An identity, such as an address, that a provider vouched for, by the trust root in a file. Asks nobody."""

    def __init__(self, identity: str, provider: str, trust_root: Path) -> None:
        """Raises BadSignature where the trust root cannot be used, or the package `sigstore` is not installed."""
        try:
            from sigstore.errors import Error
            from sigstore.models import ClientTrustConfig, TrustedRoot
            from sigstore.verify import Verifier, policy
        except ImportError:
            what = "the package `sigstore` is not installed, so no identity can be checked"
            raise BadSignature(what, "install the extra `signing`: `pip install 'lm[signing]'`") from None
        try:
            try:
                root = TrustedRoot.from_file(str(trust_root))
            except (Error, ValueError, KeyError, TypeError):  # a whole configuration for clients has the root within
                root = ClientTrustConfig.from_json(trust_root.read_text("utf-8")).trusted_root
            self._verifier = Verifier(trusted_root=root)
        except OSError as error:
            raise BadSignature(f"the trust root `{trust_root}` cannot be read: {error.strerror}", _HINT) from None
        except (Error, ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise BadSignature(f"`{trust_root}` is no trust root", _HINT) from None
        self._policy = policy.Identity(identity=identity, issuer=provider)
        self._name = f"`{identity}` of `{provider}`"

    def verify(self, found: FoundSignature) -> None:
        """Raise BadSignature unless the identity made the signature; its files are another question."""
        from cryptography.hazmat.primitives.asymmetric import ec
        from sigstore.errors import Error
        from sigstore.models import Bundle

        if found.signed is None or found.signed.by != "identity":
            raise BadSignature(f"it is not signed by an identity of Sigstore: {found.sentence}")
        try:
            bundle = Bundle.from_json(found.data)
            # The package takes every key for an elliptic one.
            if not isinstance(bundle.signing_certificate.public_key(), ec.EllipticCurvePublicKey):
                raise ValueError("it was made by another kind of key than an elliptic one")
            _, payload = self._verifier.verify_dsse(bundle, self._policy)
        except (Error, ValueError) as error:
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise BadSignature(f"the signature is not one of {self._name}: {reason}") from None
        if payload != found.signed.payload:
            raise BadSignature("the signature is for another statement")
