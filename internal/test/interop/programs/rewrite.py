"""rewrite.py HOW FILE [SEED PRIVATE]: writes the key file with one thing done differently, as
other tools do or did it.

    old-oid      the object identifier 2.23.133.10.2 (early go-tpm-keyfiles)
    true-is-1    a TRUE of 01 (tpm2-openssl before 1.4, tpm2-tools, tpm2-pytss)
    no-flag      without emptyAuth
    flag-wrong   emptyAuth the other way round (tpm2_encodeobject before 5.8)
    negative     the parent as a negative number (32-bit tpm2-openssl before 1.2)
    zero         the parent as 0 (old tpm2tss-genkey)
    rsa-parent   with rsaParent, as the draft has it for RSA primaries
    described    with a description
    importable   as an importable key, from what tpm2_duplicate has written
"""

import base64
import sys

OBJECT, BOOLEAN, INTEGER, OCTETS, TEXT = 0x06, 0x01, 0x02, 0x04, 0x0C
EMPTY_AUTH, SECRET, DESCRIPTION, RSA_PARENT = 0xA0, 0xA2, 0xA4, 0xA5


def element(tag, content):
    n = len(content)
    if n < 128:
        return bytes([tag, n]) + content
    length = n.to_bytes((n.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def elements(data):
    while data:
        tag, n, head = data[0], data[1], 2
        if n & 0x80:
            head += n & 0x7F
            n = int.from_bytes(data[2:head], "big")
        yield tag, data[head : head + n]
        data = data[head + n :]


def flag(value):
    return EMPTY_AUTH, element(BOOLEAN, value)


def optional(parts, tag, content):
    """puts an optional field where it belongs: before the parent, in order"""
    at = next(i for i, (t, _) in enumerate(parts) if t == INTEGER or t > tag and t >= 0xA0)
    parts.insert(at, (tag, content))


def content_of(file):
    with open(file, "rb") as f:
        return f.read()


def rewrite(how, parts, files):
    at = {tag: i for i, (tag, _) in reversed(list(enumerate(parts)))}
    empty = EMPTY_AUTH in at and parts[at[EMPTY_AUTH]][1][2] != 0
    if how == "old-oid":
        parts[at[OBJECT]] = (OBJECT, bytes.fromhex("6781050a02"))
    elif how == "true-is-1":
        parts[at[EMPTY_AUTH]] = flag(b"\x01")
    elif how == "no-flag":
        del parts[at[EMPTY_AUTH]]
    elif how == "flag-wrong":
        parts[at[EMPTY_AUTH]] = flag(b"\x00" if empty else b"\xff")
    elif how == "negative":
        parts[at[INTEGER]] = (INTEGER, parts[at[INTEGER]][1][-4:])
    elif how == "zero":
        parts[at[INTEGER]] = (INTEGER, b"\x00")
    elif how == "rsa-parent":
        optional(parts, RSA_PARENT, element(BOOLEAN, b"\xff"))
    elif how == "described":
        optional(parts, DESCRIPTION, element(TEXT, b"a key with a name"))
    elif how == "importable":
        seed, private = map(content_of, files)
        parts[at[OBJECT]] = (OBJECT, bytes.fromhex("6781050a0104"))
        parts[-1] = (OCTETS, private)
        optional(parts, SECRET, element(OCTETS, seed))
    else:
        raise SystemExit("rewrite.py: no way " + how)
    return parts


how, path, *files = sys.argv[1:]
with open(path, encoding="ascii") as f:
    body = "".join(line for line in f if not line.startswith("-"))
((_, content),) = elements(base64.b64decode(body))
parts = rewrite(how, list(elements(content)), files)
der = element(0x30, b"".join(element(tag, content) for tag, content in parts))
text = base64.b64encode(der).decode()
print("-----BEGIN TSS2 PRIVATE KEY-----")
print("\n".join(text[i : i + 64] for i in range(0, len(text), 64)))
print("-----END TSS2 PRIVATE KEY-----")
