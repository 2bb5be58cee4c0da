package agent

import (
	"context"
	"crypto"
	"crypto/rsa"
	_ "crypto/sha1" // the hashes of scheme
	_ "crypto/sha512"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/refusal"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// signRequest is SSH_AGENTC_SIGN_REQUEST. OpenSSH's agent accepts more behind the
// flags, too.
type signRequest struct {
	Blob  []byte `sshtype:"13"`
	Data  []byte
	Flags uint32
	Rest  []byte `ssh:"rest"`
}

type signResponse struct {
	Signature []byte `sshtype:"14"`
}

// sign answers SIGN_REQUEST. A success is logged after the client has its answer.
func (a *Agent) sign(ctx context.Context, c *Client, request []byte) reply {
	var m signRequest
	if err := ssh.Unmarshal(request, &m); err != nil {
		a.refuse(c, "sign", nil, nil, refusal.New(refusal.Malformed, err))
		return failed()
	}
	if a.upstreams != nil && a.elsewhere(m.Blob) {
		return a.signUpstream(ctx, c, &m, request)
	}
	var key ssh.PublicKey
	var format string
	sig, refused := a.Sign(ctx, c, m.Blob, func(public ssh.PublicKey) (Message, error) {
		f, hash, err := scheme(public, m.Flags, a.config.AllowSHA1)
		key, format = public, f
		return Message{Data: m.Data, Digest: digest(hash, m.Data), Hash: hash}, err
	})
	if refused != nil {
		return failed()
	}
	blob, err := wireSignature(key, sig.Raw)
	if err != nil {
		a.refuse(c, "sign", nil, m.Blob, refusal.New(refusal.Key, err))
		return failed()
	}
	answer := wire.Frame(ssh.Marshal(signResponse{ssh.Marshal(&ssh.Signature{Format: format, Blob: blob})}))
	return reply{answer, func() { sig.Log(format) }}
}

// digest returns what a key signs: for Ed25519, which has no hash, the data.
func digest(hash crypto.Hash, data []byte) []byte {
	if hash == 0 {
		return data
	}
	h := hash.New()
	h.Write(data)
	return h.Sum(nil)
}

// Flags of a sign request (RFC 9987, section 5.6.1).
const (
	flagRSASHA256 = 2
	flagRSASHA512 = 4
)

// scheme returns the signature format and the hash for a key (RFC 9987, section
// 5.6.1). Like OpenSSH's agent it ignores flags on keys other than RSA and unknown
// bits, and takes both RSA bits for SHA-256: Erlang sends both with every key.
func scheme(key ssh.PublicKey, flags uint32, allowSHA1 bool) (format string, hash crypto.Hash, err error) {
	switch typ := key.Type(); typ {
	case ssh.KeyAlgoECDSA256:
		return typ, crypto.SHA256, nil
	case ssh.KeyAlgoECDSA384:
		return typ, crypto.SHA384, nil
	case ssh.KeyAlgoECDSA521:
		return typ, crypto.SHA512, nil
	case ssh.KeyAlgoED25519:
		return typ, 0, nil
	case ssh.KeyAlgoRSA:
		switch {
		case flags&flagRSASHA256 != 0:
			return ssh.KeyAlgoRSASHA256, crypto.SHA256, nil
		case flags&flagRSASHA512 != 0:
			return ssh.KeyAlgoRSASHA512, crypto.SHA512, nil
		case allowSHA1:
			return ssh.KeyAlgoRSA, crypto.SHA1, nil
		}
		return "", 0, errors.New("the client asked for ssh-rsa, which signs SHA-1; it must ask for rsa-sha2-256 or rsa-sha2-512 (serve --allow-sha1 is for clients that cannot)")
	default:
		return "", 0, fmt.Errorf("keys of type %s are not supported", typ)
	}
}

// wireSignature turns a signature as crypto.Signer encodes it into the blob of an
// SSH signature. For ECDSA that is two mpints (RFC 5656, section 3.1.2).
func wireSignature(key ssh.PublicKey, raw []byte) ([]byte, error) {
	switch key.Type() {
	case ssh.KeyAlgoRSA:
		return raw, checkRSA(key, raw)
	case ssh.KeyAlgoED25519:
		return raw, nil // RFC 8709, section 6: as in RFC 8032
	}
	var sig struct{ R, S *big.Int }
	rest, err := asn1.Unmarshal(raw, &sig)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the key returned a signature that is not ASN.1: %w", err)
	case len(rest) > 0:
		return nil, fmt.Errorf("the key returned a signature with %d bytes behind it", len(rest))
	case sig.R.Sign() <= 0 || sig.S.Sign() <= 0:
		return nil, errors.New("the key returned a signature with a number that is not positive")
	}
	return ssh.Marshal(sig), nil
}

// checkRSA checks the length: RFC 8332, section 3, wants a signature as long as
// the modulus, leading zeros included, and servers differ in what they do with
// others.
func checkRSA(key ssh.PublicKey, raw []byte) error {
	crypt, ok := key.(ssh.CryptoPublicKey)
	if !ok {
		return fmt.Errorf("RSA key of Go type %T", key)
	}
	pub, ok := crypt.CryptoPublicKey().(*rsa.PublicKey)
	if !ok {
		return fmt.Errorf("RSA key of Go type %T", crypt.CryptoPublicKey())
	}
	if len(raw) != pub.Size() {
		return fmt.Errorf("the key returned an RSA signature of %d bytes, not %d", len(raw), pub.Size())
	}
	return nil
}
