package tpmkey

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/crypto/cryptobyte"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// Sign signs digest, the hash opts.HashFunc() of a message, in the TPM. The
// signature is encoded as by a [crypto.Signer]: ASN.1 for ECDSA, PKCS #1 v1.5
// for RSA. auth is the PIN as typed, nil for none; it is not changed. RSA keys
// sign SHA-1 too: whether that is wanted is the caller's to know.
//
// The caller waits in line for the TPM, and leaves it when ctx ends; a
// signature that has not been started by then is not made. No signature is
// returned that does not verify.
//
// Errors: [AuthError], [LockoutError], [PCRError], [ErrWrongTPM], [ErrNoParent],
// [ErrOwnerAuth], [UnsupportedError], [ErrBadSignature], [CommandError], and
// what opening the TPM gave.
func (k *Key) Sign(ctx context.Context, auth, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	hash := opts.HashFunc()
	if err := k.checkHash(hash, digest); err != nil {
		return nil, err
	}
	value := k.authValue(auth)
	defer clear(value)
	var sig []byte
	verified := make(chan bool, 1)
	err := k.tpm.withTurn(ctx, func(l *link) error {
		return k.withLoaded(l, func(h tpm2.NamedHandle) (err error) {
			sig, err = k.authorized(l, h, value, func(key tpm2.AuthHandle) ([]byte, error) {
				if err := l.alive(); err != nil {
					return nil, err
				}
				return k.sign(l, key, hash, digest)
			})
			if err == nil {
				// While the TPM flushes the key.
				go func() { verified <- k.verify(hash, digest, sig) }()
			}
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	if !<-verified {
		return nil, ErrBadSignature
	}
	return sig, nil
}

// checkHash refuses what the key can never sign.
func (k *Key) checkHash(hash crypto.Hash, digest []byte) error {
	p := k.file.Public
	_, isRSA := k.Public().(*rsa.PublicKey)
	if hashAlg(hash) == tpm2.TPMAlgNull || hash == crypto.SHA1 && !isRSA {
		return &UnsupportedError{What: "signature over " + hash.String(), Why: "only SHA-2 is used"}
	}
	if len(digest) != hash.Size() {
		return fmt.Errorf("digest of %d octets for %v", len(digest), hash)
	}
	if p.Scheme != uint16(tpm2.TPMAlgNull) && p.SchemeHash != uint16(hashAlg(hash)) {
		return &UnsupportedError{What: "signature over " + hash.String(), Why: "the key prescribes another hash"}
	}
	return nil
}

// authValue returns a copy of the PIN as the TPM takes it: one that is longer
// than the digest of the key's nameAlg is replaced by its digest, as tpm2-tss
// does (the TPM itself refuses it).
func (k *Key) authValue(pin []byte) []byte { return authValue(pin, nameHash(k.file.Public.NameAlg)) }

func authValue(pin []byte, hash crypto.Hash) []byte {
	if len(pin) <= hash.Size() {
		return append([]byte(nil), pin...)
	}
	h := hash.New()
	h.Write(pin)
	value := h.Sum(nil)
	// A hash keeps what does not fill a block, and Reset leaves it there.
	h.Reset()
	h.Write(make([]byte, h.BlockSize()-1))
	return value
}

// nameHash is the hash of a nameAlg; the key file's parser knows these only.
func nameHash(alg uint16) crypto.Hash {
	switch tpm2.TPMAlgID(alg) {
	case tpm2.TPMAlgSHA384:
		return crypto.SHA384
	case tpm2.TPMAlgSHA512:
		return crypto.SHA512
	default:
		return crypto.SHA256
	}
}

// authorized calls fn with the loaded key and its authorization: a plain empty
// password where there is no auth value, else an HMAC in a salted session, so
// that the auth value never crosses the bus; or a policy session.
func (k *Key) authorized(l *link, h tpm2.NamedHandle, value []byte, fn func(tpm2.AuthHandle) ([]byte, error)) (sig []byte, err error) {
	if k.policy != nil {
		sig, err = k.byPolicy(l, h, value, fn)
		return sig, l.authError(err)
	}
	if len(value) == 0 {
		sig, err = fn(tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: tpm2.PasswordAuth(nil)})
		return sig, l.authError(err)
	}
	err = k.tpm.withSession(l, *k.source, k.ParentName(), func(s *session) (err error) {
		sig, err = fn(tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: s.use(value, false)})
		return err
	})
	return sig, l.authError(err)
}

// sign makes the signature, by TPM2_Sign where it can. RSA keys of others that
// may only decrypt, and SHA-512 on a TPM that does not know it, go by
// TPM2_RSA_Decrypt: the private operation over a block that was padded here.
func (k *Key) sign(l *link, key tpm2.AuthHandle, hash crypto.Hash, digest []byte) ([]byte, error) {
	pub, isRSA := k.Public().(*rsa.PublicKey)
	if !isRSA {
		return signECDSA(l, key, hash, digest)
	}
	a := k.file.Public.Attributes
	known, err := k.tpm.hasHash(l, hash)
	if err != nil {
		return nil, err
	}
	switch {
	case a.Has(keyfile.AttrSign) && known:
		return signRSA(l, key, hash, digest)
	case a.Has(keyfile.AttrDecrypt) && k.file.Public.Scheme == uint16(tpm2.TPMAlgNull):
		return decryptRSA(l, key, pub, hash, digest)
	default:
		return nil, &UnsupportedError{
			What:      "RSA signature over " + hash.String(),
			Why:       "the TPM does not know the hash, and the key may not decrypt",
			Supported: []string{"rsa-sha2-256"},
		}
	}
}

func signECDSA(l *link, key tpm2.AuthHandle, hash crypto.Hash, digest []byte) ([]byte, error) {
	sig, err := tpm2Sign(l, key, tpm2.TPMAlgECDSA, hash, digest)
	if err != nil {
		return nil, err
	}
	var r, s cryptobyte.String
	if !sig.ReadUint16LengthPrefixed(&r) || !sig.ReadUint16LengthPrefixed(&s) || !sig.Empty() {
		return nil, l.damaged("TPM2_Sign")
	}
	// R and S may be shorter than the curve's order or have leading zeros.
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(r), new(big.Int).SetBytes(s)})
}

func signRSA(l *link, key tpm2.AuthHandle, hash crypto.Hash, digest []byte) ([]byte, error) {
	sig, err := tpm2Sign(l, key, tpm2.TPMAlgRSASSA, hash, digest)
	if err != nil {
		return nil, err
	}
	var octets cryptobyte.String
	if !sig.ReadUint16LengthPrefixed(&octets) || !sig.Empty() {
		return nil, l.damaged("TPM2_Sign")
	}
	return octets, nil
}

// tpm2Sign runs TPM2_Sign (TPM 2.0 Part 3, 20.2) and returns the part of the
// TPMT_SIGNATURE (Part 2, 11.3.4) that depends on the algorithm.
func tpm2Sign(l *link, key tpm2.AuthHandle, alg tpm2.TPMAlgID, hash crypto.Hash, digest []byte) (sig cryptobyte.String, err error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, 96))
	addSized(b, digest)
	b.AddUint16(uint16(alg))
	b.AddUint16(uint16(hashAlg(hash)))
	b.AddUint16(uint16(tpm2.TPMSTHashCheck)) // no ticket: the digest is from outside
	b.AddUint32(uint32(tpm2.TPMRHNull))
	addSized(b, nil)
	parameters, err := b.Bytes()
	if err != nil {
		return nil, err
	}
	out, err := l.authorized("TPM2_Sign", tpm2.TPMCCSign, key, parameters)
	if err != nil {
		return nil, err
	}
	sig = out
	var gotAlg, gotHash uint16
	if !sig.ReadUint16(&gotAlg) || !sig.ReadUint16(&gotHash) || gotAlg != uint16(alg) || gotHash != uint16(hashAlg(hash)) {
		return nil, l.damaged("TPM2_Sign")
	}
	return sig, nil
}

// digestInfo is the DER prefix of a DigestInfo (RFC 8017, 9.2, note 1).
func digestInfo(hash crypto.Hash) []byte {
	if hash == crypto.SHA1 {
		return []byte{0x30, 0x21, 0x30, 0x09, 0x06, 0x05, 0x2b, 0x0e, 0x03, 0x02, 0x1a, 0x05, 0x00, 0x04, 0x14}
	}
	oid := map[crypto.Hash]byte{crypto.SHA256: 1, crypto.SHA384: 2, crypto.SHA512: 3}[hash]
	n := byte(hash.Size())
	return []byte{0x30, 17 + n, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, oid, 0x05, 0x00, 0x04, n}
}

// decryptRSA makes an RSASSA-PKCS1-v1_5 signature by TPM2_RSA_Decrypt over the
// encoded message of RFC 8017, 9.2.
func decryptRSA(l *link, key tpm2.AuthHandle, pub *rsa.PublicKey, hash crypto.Hash, digest []byte) ([]byte, error) {
	tail := append(digestInfo(hash), digest...)
	block := make([]byte, pub.Size())
	pad := len(block) - len(tail) - 3
	if pad < 8 {
		return nil, &UnsupportedError{What: "RSA signature over " + hash.String(), Why: "the key is too short for it"}
	}
	block[1] = 1
	for i := range pad {
		block[2+i] = 0xFF
	}
	copy(block[3+pad:], tail)
	rsp, err := tpm2.RSADecrypt{
		KeyHandle:  key,
		CipherText: tpm2.TPM2BPublicKeyRSA{Buffer: block},
		InScheme:   tpm2.TPMTRSADecrypt{Scheme: tpm2.TPMAlgNull},
	}.Execute(l)
	if err != nil {
		return nil, l.command("TPM2_RSA_Decrypt", err)
	}
	sig := make([]byte, pub.Size())
	if len(rsp.Message.Buffer) > len(sig) {
		return nil, l.command("TPM2_RSA_Decrypt", errors.New("the result is longer than the modulus"))
	}
	copy(sig[len(sig)-len(rsp.Message.Buffer):], rsp.Message.Buffer)
	return sig, nil
}

// verify checks a signature in software: a fault in the chip or on the bus can
// give away the private key through a wrong one.
func (k *Key) verify(hash crypto.Hash, digest, sig []byte) bool {
	switch pub := k.Public().(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(pub, digest, sig)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(pub, hash, digest, sig) == nil
	default:
		return false
	}
}
