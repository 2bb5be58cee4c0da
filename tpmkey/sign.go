package tpmkey

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"runtime"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/crypto/cryptobyte"
)

// signing is one call of [Key.Sign].
type signing struct {
	key    *Key
	hash   crypto.Hash
	digest []byte
	value  []byte // the auth value
	sig    []byte // the result
}

// curveHashes are the hashes that SSH fixes for the curves (RFC 5656, 6.2.1).
var curveHashes = map[elliptic.Curve]crypto.Hash{
	elliptic.P256(): crypto.SHA256, elliptic.P384(): crypto.SHA384, elliptic.P521(): crypto.SHA512,
}

// hashAlgs are the TPM's numbers of hashes.
var hashAlgs = map[crypto.Hash]tpm2.TPMAlgID{
	crypto.SHA1: tpm2.TPMAlgSHA1, crypto.SHA256: tpm2.TPMAlgSHA256, crypto.SHA384: tpm2.TPMAlgSHA384, crypto.SHA512: tpm2.TPMAlgSHA512,
}

// Sign signs digest in the TPM. digest is the hash opts.HashFunc() of a message. The
// signature is encoded like that of a [crypto.Signer]: ASN.1 for ECDSA, PKCS #1 v1.5
// for RSA. auth is the PIN as typed, nil for none; Sign does not change it. RSA keys
// sign SHA-1 hashes as well; the caller decides whether to allow it.
//
// Sign waits for its turn at the TPM and gives up when ctx ends, unless the TPM has
// started to sign. It verifies the signature in software, and never returns one that
// does not verify.
//
// Errors: [AuthError], [LockoutError], [PCRError], [ErrWrongTPM], [ErrNoParent],
// [ErrOwnerAuth], [UnsupportedError], a [tpm2.TPMRC] for other refusals of the TPM,
// and the error from opening the TPM.
func (k *Key) Sign(ctx context.Context, auth, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if len(auth) > 0 {
		clearStack() // makes room first: a stack that grows leaves its old copy behind
		defer clearStack()
	}
	s := &signing{key: k, hash: opts.HashFunc(), digest: digest, value: authValue(auth, k.nameHash)}
	defer clear(s.value)
	if err := s.check(); err != nil {
		return nil, err
	}
	verified := make(chan bool, 1)
	err := k.tpm.withTurn(ctx, func(l *link) error {
		return k.withLoaded(l, func(h tpm2.NamedHandle) error {
			err := s.authorize(l, h)
			if err == nil {
				// Verify while the TPM flushes the key and, after
				// that, while it works for the next caller.
				go func() { verified <- s.verify() }()
			}
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	if !<-verified {
		return nil, errors.New("the TPM returned a signature that does not verify; it was dropped")
	}
	return s.sig, nil
}

// check refuses what the key can never sign.
func (s *signing) check() error {
	p, alg := s.key.file.Public, hashAlgs[s.hash]
	_, isRSA := p.Key.(*rsa.PublicKey)
	if alg == 0 || alg == tpm2.TPMAlgSHA1 && !isRSA {
		return &UnsupportedError{What: "signature over " + s.hash.String(), Why: "only SHA-2 is used"}
	}
	if len(s.digest) != s.hash.Size() {
		return fmt.Errorf("digest of %d octets for %v", len(s.digest), s.hash)
	}
	if p.Scheme != uint16(tpm2.TPMAlgNull) && p.SchemeHash != uint16(alg) {
		return &UnsupportedError{What: "signature over " + s.hash.String(), Why: "the key prescribes another hash"}
	}
	return nil
}

// authValue returns a copy of the PIN as the TPM takes it. A PIN that is longer than
// the digests of the key's nameAlg is replaced by its digest, as tpm2-tss does: the
// TPM refuses longer values.
func authValue(pin []byte, nameAlg crypto.Hash) []byte {
	if len(pin) <= nameAlg.Size() {
		return append([]byte(nil), pin...)
	}
	h := nameAlg.New()
	h.Write(pin)
	value := h.Sum(nil)
	// Overwrite the end of the PIN, which the hash keeps in its block buffer.
	h.Reset()
	h.Write(make([]byte, h.BlockSize()-1))
	return value
}

// clearStack overwrites what functions that have returned left on the stack. Copies
// of an auth value in vector registers get there.
//
//go:noinline
func clearStack() {
	var b [16 << 10]byte
	clear(b[:])
	runtime.KeepAlive(&b)
}

// authorize signs with the loaded key h. A key without auth value is authorized by
// an empty password; one with an auth value by an HMAC in a salted session, so that
// the auth value never crosses the bus; and one with a policy by a policy session.
func (s *signing) authorize(l *link, h tpm2.NamedHandle) (err error) {
	k := s.key
	switch {
	case k.policy != nil:
		err = s.byPolicy(l, h)
	case len(s.value) == 0:
		err = s.sign(l, tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: tpm2.PasswordAuth(nil)})
	default:
		err = k.tpm.withSession(l, *k.source, k.Parent().Name, func(ses *session) error {
			return s.sign(l, tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: ses.use(s.value, continueSession)})
		})
	}
	if err != nil {
		return l.authError(err)
	}
	return nil
}

// sign makes the signature by TPM2_Sign where possible. An RSA key that may only
// decrypt, and SHA-512 in a TPM that does not have it, need TPM2_RSA_Decrypt: it is
// the private operation, here on a padded block.
func (s *signing) sign(l *link, key tpm2.AuthHandle) (err error) {
	if err := l.alive(); err != nil {
		return err
	}
	p := s.key.file.Public
	pub, isRSA := p.Key.(*rsa.PublicKey)
	if !isRSA {
		s.sig, err = tpm2Sign(l, key, tpm2.TPMAlgECDSA, s.hash, s.digest)
		return err
	}
	known, err := hasHash(s.key.tpm, l, s.hash)
	switch {
	case err != nil:
	case p.Attributes.Sign() && known:
		s.sig, err = tpm2Sign(l, key, tpm2.TPMAlgRSASSA, s.hash, s.digest)
	case p.Attributes.Decrypt() && p.Scheme == uint16(tpm2.TPMAlgNull):
		s.sig, err = decryptRSA(l, key, pub, s.hash, s.digest)
	default:
		err = &UnsupportedError{
			What:      "RSA signature over " + s.hash.String(),
			Why:       "the TPM does not know the hash, and the key may not decrypt",
			Supported: []string{"rsa-sha2-256"},
		}
	}
	return err
}

// tpm2Sign runs TPM2_Sign (TPM 2.0 Part 3, 20.2) and encodes the TPMT_SIGNATURE (Part
// 2, 11.3.4).
func tpm2Sign(l *link, key tpm2.AuthHandle, alg tpm2.TPMAlgID, hash crypto.Hash, digest []byte) ([]byte, error) {
	p := appendSized(make([]byte, 0, 96), digest)
	p = binary.BigEndian.AppendUint16(p, uint16(alg))
	p = binary.BigEndian.AppendUint16(p, uint16(hashAlgs[hash]))
	// An empty ticket: the digest was not computed by the TPM.
	p = binary.BigEndian.AppendUint16(p, uint16(tpm2.TPMSTHashCheck))
	p = binary.BigEndian.AppendUint32(p, uint32(tpm2.TPMRHNull))
	p = appendSized(p, nil)
	out, err := l.authorized("TPM2_Sign", tpm2.TPMCCSign, key, p)
	if err != nil {
		return nil, err
	}
	in := cryptobyte.String(out)
	var gotAlg, gotHash uint16
	var first, second cryptobyte.String
	ok := in.ReadUint16(&gotAlg) && in.ReadUint16(&gotHash) && in.ReadUint16LengthPrefixed(&first) &&
		gotAlg == uint16(alg) && gotHash == uint16(hashAlgs[hash])
	if ok && alg == tpm2.TPMAlgECDSA {
		ok = in.ReadUint16LengthPrefixed(&second)
	}
	if !ok || !in.Empty() {
		return nil, l.damaged("TPM2_Sign")
	}
	if alg == tpm2.TPMAlgRSASSA {
		return first, nil
	}
	// R and S may be shorter than the curve's order or have leading zeros.
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(first), new(big.Int).SetBytes(second)})
}

// digestInfo has the DER prefixes of a DigestInfo (RFC 8017, 9.2, note 1).
var digestInfo = map[crypto.Hash]string{
	crypto.SHA1:   "\x30\x21\x30\x09\x06\x05\x2b\x0e\x03\x02\x1a\x05\x00\x04\x14",
	crypto.SHA256: "\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20",
	crypto.SHA384: "\x30\x41\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\x04\x30",
	crypto.SHA512: "\x30\x51\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03\x05\x00\x04\x40",
}

// decryptRSA makes an RSASSA-PKCS1-v1_5 signature by TPM2_RSA_Decrypt of the encoded
// message (RFC 8017, 9.2).
func decryptRSA(l *link, key tpm2.AuthHandle, pub *rsa.PublicKey, hash crypto.Hash, digest []byte) ([]byte, error) {
	tail := append([]byte(digestInfo[hash]), digest...)
	pad := pub.Size() - len(tail) - 3
	if pad < 8 {
		return nil, &UnsupportedError{What: "RSA signature over " + hash.String(), Why: "the key is too short for it"}
	}
	block := slices.Concat([]byte{0, 1}, bytes.Repeat([]byte{0xFF}, pad), []byte{0}, tail)
	rsp, err := execute(l, "TPM2_RSA_Decrypt", tpm2.RSADecrypt{
		KeyHandle:  key,
		CipherText: tpm2.TPM2BPublicKeyRSA{Buffer: block},
		InScheme:   tpm2.TPMTRSADecrypt{Scheme: tpm2.TPMAlgNull},
	})
	if err != nil {
		return nil, err
	}
	if len(rsp.Message.Buffer) > pub.Size() {
		return nil, l.damaged("TPM2_RSA_Decrypt")
	}
	return append(make([]byte, pub.Size()-len(rsp.Message.Buffer)), rsp.Message.Buffer...), nil
}

// verify checks a signature in software. A fault in the chip or on the bus can
// produce a wrong signature, which may reveal the private key.
func (s *signing) verify() bool {
	switch pub := s.key.file.Public.Key.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(pub, s.digest, s.sig)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(pub, s.hash, s.digest, s.sig) == nil
	default:
		return false
	}
}

// CheckAuth lets the TPM check an auth value, by a signature over a random digest. A
// wrong one costs one try. The errors are those of [Key.Sign].
func (k *Key) CheckAuth(ctx context.Context, auth []byte) error {
	hash := crypto.SHA256
	if pub, ok := k.Public().(*ecdsa.PublicKey); ok {
		hash = curveHashes[pub.Curve]
	} else if k.file.Public.SchemeHash == uint16(tpm2.TPMAlgSHA512) {
		hash = crypto.SHA512
	}
	digest := make([]byte, hash.Size())
	rand.Read(digest)
	_, err := k.Sign(ctx, auth, digest, hash)
	return err
}
