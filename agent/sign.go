package agent

import (
	"context"
	"crypto"
	"crypto/rsa"
	_ "crypto/sha1" // the hashes of scheme
	"crypto/sha256"
	_ "crypto/sha512"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"time"

	"golang.org/x/crypto/ssh"
)

// sign answers SIGN_REQUEST. A success is logged when the client has its answer
// already; who it was is looked up before, for it may be gone by then.
func (a *Agent) sign(ctx context.Context, c *conn, request []byte) reply {
	begun := time.Now()
	by := c.asker()
	var m signRequest
	if err := ssh.Unmarshal(request, &m); err != nil {
		a.refuse(by, "sign", nil, &refusal{CauseMalformed, err})
		return reply{answer: failure()}
	}
	id, refused := a.lookup(string(m.Blob))
	if refused != nil && refused.elsewhere() && a.upstreams.any() {
		return a.signUpstream(ctx, c, &m, request, by)
	}
	var sig *ssh.Signature
	if refused == nil {
		sig, refused = a.signature(ctx, c, id, &m)
	}
	took := slog.Duration("duration", time.Since(begun))
	if refused != nil {
		more := []any{took}
		if id == nil {
			more = append(more, slog.String("fingerprint", fingerprintOf(m.Blob)))
		}
		a.refuse(by, "sign", id, refused, more...)
		return reply{answer: failure()}
	}
	return reply{signed(sig), func() {
		a.log.Info("signed", "key", id.name(), "fingerprint", id.fingerprint(), "algorithm", sig.Format, "peer", by, took)
	}}
}

// signUpstream has an upstream agent sign.
func (a *Agent) signUpstream(ctx context.Context, c *conn, m *signRequest, request []byte, by asker) reply {
	begun := time.Now()
	answer, r := a.relayFor(ctx, c, m.Blob, request)
	took := slog.Duration("duration", time.Since(begun))
	print := slog.String("fingerprint", fingerprintOf(m.Blob))
	if r != nil {
		a.refuse(by, "sign", nil, r, print, took)
		return reply{answer: failure()}
	}
	return reply{answer, func() { a.log.Info("signed by an upstream agent", print, "peer", by, took) }}
}

// relayFor passes on a request about a key that may be an upstream's.
func (a *Agent) relayFor(ctx context.Context, c *conn, blob, request []byte) ([]byte, *refusal) {
	if !a.upstreams.any() {
		return nil, &refusal{cause: CauseUnknownKey}
	}
	answer, ok, err := c.relay.forKey(ctx, string(blob), request)
	switch {
	case err != nil:
		return nil, because(ctx, CauseUpstream, err)
	case !ok:
		return nil, &refusal{CauseUnknownKey, errors.New("or no upstream agent does it")}
	}
	return answer, nil
}

// fingerprintOf a key that may be of a type that is not known.
func fingerprintOf(blob []byte) string {
	sum := sha256.Sum256(blob)
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// signature makes a signature with one of our own keys, if its constraints
// and its owner let it.
func (a *Agent) signature(ctx context.Context, c *conn, id *identity, m *signRequest) (*ssh.Signature, *refusal) {
	format, hash, err := scheme(id.plain, m.Flags, a.allowSHA1)
	if err != nil {
		return nil, &refusal{CauseAlgorithm, err}
	}
	if ctx.Err() != nil {
		return nil, &refusal{CauseHungUp, ctx.Err()}
	}
	use, r := a.permit(ctx, c, id, m.Data)
	if r != nil {
		return nil, r
	}
	t := try{
		a: a, id: id, limits: id.limits, peer: c.peer, use: use, origin: c.origin(),
		digest: digest(hash, m.Data), hash: hash,
	}
	raw, err := t.sign(ctx)
	if err != nil {
		return nil, because(ctx, signCause(err), err)
	}
	blob, err := wireSignature(id.plain, raw)
	if err != nil {
		return nil, &refusal{CauseKey, err}
	}
	return &ssh.Signature{Format: format, Blob: blob}, nil
}

func signCause(err error) Cause {
	var l lockedOut
	if errors.As(err, &l) {
		return CauseLockout
	}
	return CauseKey
}

// origin is where the requests of a connection come from: "" for a process of
// this machine, and else the hosts that it was forwarded through.
func (c *conn) origin() string {
	var b []byte
	for _, hop := range c.bindings.hops {
		if hop.forwarding {
			b = appendString(b, string(hop.host.Marshal()))
		}
	}
	if c.bindings.failed {
		b = append(b, '!')
	}
	return string(b)
}

// digest is what a key signs: for Ed25519, which has no hash, the data.
func digest(hash crypto.Hash, data []byte) []byte {
	if hash == 0 {
		return data
	}
	h := hash.New()
	h.Write(data)
	return h.Sum(nil)
}

// scheme is the signature format and the hash for a key, RFC 9987, section
// 5.6.1. Like OpenSSH's agent it ignores flags on keys other than RSA and bits
// that it does not know, and takes both RSA bits for SHA-256: Erlang sends
// both of them with every key.
func scheme(key ssh.PublicKey, flags uint32, allowSHA1 bool) (format string, hash crypto.Hash, err error) {
	switch key.Type() {
	case ssh.KeyAlgoECDSA256:
		return ssh.KeyAlgoECDSA256, crypto.SHA256, nil
	case ssh.KeyAlgoECDSA384:
		return ssh.KeyAlgoECDSA384, crypto.SHA384, nil
	case ssh.KeyAlgoECDSA521:
		return ssh.KeyAlgoECDSA521, crypto.SHA512, nil
	case ssh.KeyAlgoED25519:
		return ssh.KeyAlgoED25519, 0, nil
	case ssh.KeyAlgoRSA:
		return rsaScheme(flags, allowSHA1)
	}
	return "", 0, fmt.Errorf("keys of type %s are not supported", key.Type())
}

func rsaScheme(flags uint32, allowSHA1 bool) (format string, hash crypto.Hash, err error) {
	switch {
	case flags&flagRSASHA256 != 0:
		return ssh.KeyAlgoRSASHA256, crypto.SHA256, nil
	case flags&flagRSASHA512 != 0:
		return ssh.KeyAlgoRSASHA512, crypto.SHA512, nil
	case allowSHA1:
		return ssh.KeyAlgoRSA, crypto.SHA1, nil
	}
	return "", 0, errors.New("the client asked for ssh-rsa, which signs SHA-1; it must ask for rsa-sha2-256 or rsa-sha2-512 (serve --allow-sha1 is for clients that cannot)")
}

// wireSignature turns a signature as crypto.Signer makes them into the blob of
// an SSH signature.
func wireSignature(key ssh.PublicKey, raw []byte) ([]byte, error) {
	switch key.Type() {
	case ssh.KeyAlgoRSA:
		return wireRSA(key, raw)
	case ssh.KeyAlgoED25519:
		return raw, nil // RFC 8709, section 6: as RFC 8032 has it
	}
	return wireECDSA(raw)
}

// wireRSA checks the length: RFC 8332, section 3, wants a signature as long as
// the modulus, leading zeros included, and servers differ in what they do with
// another.
func wireRSA(key ssh.PublicKey, raw []byte) ([]byte, error) {
	crypt, ok := key.(ssh.CryptoPublicKey)
	if !ok {
		return nil, fmt.Errorf("RSA key of Go type %T", key)
	}
	pub, ok := crypt.CryptoPublicKey().(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("RSA key of Go type %T", crypt.CryptoPublicKey())
	}
	if len(raw) != pub.Size() {
		return nil, fmt.Errorf("the key gave an RSA signature of %d bytes, not %d", len(raw), pub.Size())
	}
	return raw, nil
}

// wireECDSA turns ASN.1 into two mpints, RFC 5656, section 3.1.2.
func wireECDSA(raw []byte) ([]byte, error) {
	var sig struct{ R, S *big.Int }
	rest, err := asn1.Unmarshal(raw, &sig)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the key gave a signature that is no ASN.1: %w", err)
	case len(rest) > 0:
		return nil, fmt.Errorf("the key gave a signature with %d bytes behind it", len(rest))
	case sig.R.Sign() <= 0 || sig.S.Sign() <= 0:
		return nil, errors.New("the key gave a signature with a number that is not positive")
	}
	return ssh.Marshal(sig), nil
}
