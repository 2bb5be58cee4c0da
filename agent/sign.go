package agent

import (
	"context"
	"crypto"
	"crypto/rsa"
	_ "crypto/sha256" // the hashes of scheme
	_ "crypto/sha512"
	"encoding/asn1"
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
	peer := slog.Attr{Key: "peer", Value: c.peer.LogValue()}
	id, sig, err := a.signature(ctx, c, request)
	took := slog.Duration("duration", time.Since(begun))
	if err != nil {
		a.refuse(peer, "sign", id, err, took)
		return reply{answer: failure()}
	}
	return reply{signed(sig), func() {
		a.log.Info("signed", "key", id.Name, "fingerprint", id.fingerprint(), "algorithm", sig.Format, peer, took)
	}}
}

// signature returns the identity also with an error, if it is known by then.
func (a *Agent) signature(ctx context.Context, c *conn, request []byte) (*identity, *ssh.Signature, *refusal) {
	var m signRequest
	if err := ssh.Unmarshal(request, &m); err != nil {
		return nil, nil, &refusal{causeMalformed, err}
	}
	id, refused := a.lookup(string(m.Blob))
	if refused != nil {
		return id, nil, refused
	}
	format, hash, err := scheme(id.plain, m.Flags)
	if err != nil {
		return id, nil, &refusal{causeAlgorithm, err}
	}
	if ctx.Err() != nil {
		return id, nil, &refusal{causeHungUp, ctx.Err()}
	}
	h := hash.New()
	h.Write(m.Data)
	t := try{a: a, id: id, peer: c.peer, digest: h.Sum(nil), hash: hash}
	raw, err := t.sign(ctx)
	if err != nil {
		return id, nil, because(ctx, causeKey, err)
	}
	blob, err := wireSignature(id.plain, raw)
	if err != nil {
		return id, nil, &refusal{causeKey, err}
	}
	return id, &ssh.Signature{Format: format, Blob: blob}, nil
}

// scheme is the signature format and the hash for a key, RFC 9987, section
// 5.6.1. Like OpenSSH's agent it ignores flags on keys other than RSA and bits
// that it does not know, and takes both RSA bits for SHA-256: Erlang sends
// both of them with every key.
func scheme(key ssh.PublicKey, flags uint32) (format string, hash crypto.Hash, err error) {
	switch key.Type() {
	case ssh.KeyAlgoECDSA256:
		return ssh.KeyAlgoECDSA256, crypto.SHA256, nil
	case ssh.KeyAlgoECDSA384:
		return ssh.KeyAlgoECDSA384, crypto.SHA384, nil
	case ssh.KeyAlgoECDSA521:
		return ssh.KeyAlgoECDSA521, crypto.SHA512, nil
	case ssh.KeyAlgoRSA:
		return rsaScheme(flags)
	}
	return "", 0, fmt.Errorf("keys of type %s are not supported", key.Type())
}

func rsaScheme(flags uint32) (format string, hash crypto.Hash, err error) {
	switch {
	case flags&flagRSASHA256 != 0:
		return ssh.KeyAlgoRSASHA256, crypto.SHA256, nil
	case flags&flagRSASHA512 != 0:
		return ssh.KeyAlgoRSASHA512, crypto.SHA512, nil
	}
	return "", 0, errors.New("the client asked for ssh-rsa, which signs SHA-1; it must ask for rsa-sha2-256 or rsa-sha2-512")
}

// wireSignature turns a signature as crypto.Signer makes them into the blob of
// an SSH signature.
func wireSignature(key ssh.PublicKey, raw []byte) ([]byte, error) {
	if key.Type() == ssh.KeyAlgoRSA {
		return wireRSA(key, raw)
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

// refuse logs why a request gets a failure; id may be nil. That a client does
// not wait any longer is nothing that somebody should look into.
func (a *Agent) refuse(peer slog.Attr, what string, id *identity, r *refusal, more ...any) {
	level := slog.LevelWarn
	if r.cause == causeHungUp {
		level = slog.LevelInfo
	}
	attrs := []any{slog.String("request", what)}
	if id != nil {
		attrs = append(attrs, "key", id.Name, "fingerprint", id.fingerprint())
	}
	attrs = append(append(attrs, r.attrs()...), peer)
	a.log.Log(context.Background(), level, "refused", append(attrs, more...)...)
}
