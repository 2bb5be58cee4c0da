"""pytss.py: makes and uses key files with tpm2-pytss.

    pytss.py make TCTI TYPE BITS PASSWORD PARENT    writes a key file
    pytss.py sign TCTI FILE PASSWORD DIGEST         writes a signature

An ECDSA signature is written as DER, as OpenSSL verifies it. DIGEST is a file.
"""

import sys

from asn1crypto.core import Integer, Sequence
from tpm2_pytss import ESAPI, ESYS_TR, TPM2B_DIGEST, TPM2_ALG, TPM2_ECC, TPM2_RH, TPM2_ST
from tpm2_pytss import TPMT_SIG_SCHEME, TPMT_TK_HASHCHECK, TPMU_SIG_SCHEME
from tpm2_pytss import TPMS_SCHEME_HASH
from tpm2_pytss.tsskey import TSSPrivKey


class Signature(Sequence):
    _fields = [("r", Integer), ("s", Integer)]


def make(ectx, key_type, bits, password, parent):
    # A password of str would be encoded by the library; bytes are as they are.
    options = {"parent": int(parent, 0), "password": password.encode() or None}
    if key_type == "rsa":
        key = TSSPrivKey.create_rsa(ectx, keyBits=int(bits), **options)
    else:
        curve = {"256": TPM2_ECC.NIST_P256, "384": TPM2_ECC.NIST_P384, "521": TPM2_ECC.NIST_P521}[bits]
        key = TSSPrivKey.create_ecc(ectx, curveID=curve, **options)
    sys.stdout.buffer.write(key.to_pem())


def sign(ectx, file, password, digest_file):
    with open(file, "rb") as f:
        key = TSSPrivKey.from_pem(f.read())
    with open(digest_file, "rb") as f:
        digest = f.read()
    hash_alg = {32: TPM2_ALG.SHA256, 48: TPM2_ALG.SHA384, 64: TPM2_ALG.SHA512}[len(digest)]
    rsa = key.public.publicArea.type == TPM2_ALG.RSA
    handle = key.load(ectx, password.encode() or None)
    scheme = TPMT_SIG_SCHEME(
        scheme=TPM2_ALG.RSASSA if rsa else TPM2_ALG.ECDSA,
        details=TPMU_SIG_SCHEME(any=TPMS_SCHEME_HASH(hashAlg=hash_alg)),
    )
    ticket = TPMT_TK_HASHCHECK(tag=TPM2_ST.HASHCHECK, hierarchy=TPM2_RH.NULL)
    made = ectx.sign(handle, TPM2B_DIGEST(digest), scheme, ticket)
    if rsa:
        sys.stdout.buffer.write(bytes(made.signature.rsassa.sig))
        return
    ecdsa = made.signature.ecdsa
    numbers = [int.from_bytes(bytes(n), "big") for n in (ecdsa.signatureR, ecdsa.signatureS)]
    sys.stdout.buffer.write(Signature({"r": numbers[0], "s": numbers[1]}).dump())


with ESAPI(sys.argv[2]) as esapi:
    {"make": make, "sign": sign}[sys.argv[1]](esapi, *sys.argv[3:])
