package privkey

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
)

var errOtherPublic = fmt.Errorf("%w: the private key does not match the public key in the file", ErrFormat)

// keep makes key the result, if the library that read it found no error. It adds
// the checks that the libraries leave out.
func (p *parser) keep(format string, key any, err error) error {
	if err != nil {
		return libraryError(format, err)
	}
	switch key := key.(type) {
	case *rsa.PrivateKey:
		if err := checkRSA(key); err != nil {
			return err
		}
		// A second reading refuses negative numbers, which x/crypto/ssh accepts.
		p.key.Private, err = x509.ParsePKCS1PrivateKey(x509.MarshalPKCS1PrivateKey(key))
	case *ecdsa.PrivateKey:
		var raw []byte
		if raw, err = key.Bytes(); err == nil { // as above
			p.key.Private, err = ecdsa.ParseRawPrivateKey(key.Curve, raw)
		}
	}
	if err != nil {
		return libraryError(format, err)
	}
	return nil
}

// checkRSA refuses keys that no TPM takes. The TPM itself decides about the rest.
func checkRSA(key *rsa.PrivateKey) error {
	p, q, bits := key.Primes[0], key.Primes[1], key.N.BitLen()
	switch {
	case bits < 1024 || bits > 8192:
		return useless(fmt.Sprintf("RSA key of %d bits", bits), "TPMs take keys of 2048 bits, some of them 3072 and 4096")
	case len(key.Primes) > 2:
		return useless("RSA key with more than two primes", "a TPM takes RSA keys with two primes only")
	case p.BitLen() != q.BitLen():
		return useless("RSA key with primes of different lengths", "a TPM takes primes of the same length only")
	case !p.ProbablyPrime(0) || !q.ProbablyPrime(0):
		return malformed("RSA: one of the primes is not prime")
	}
	return nil
}

// samePoint reports whether point is the public key in one of the forms of SEC
// 1: uncompressed (4), compressed (2 or 3), or both, which is "hybrid" (6 or 7).
func samePoint(key *ecdsa.PrivateKey, point []byte) bool {
	want, err := key.PublicKey.Bytes()
	if err != nil || len(point) == 0 {
		return false
	}
	xy, odd := want[1:], want[len(want)-1]&1
	switch point[0] {
	case 4, 6 | odd:
		return bytes.Equal(point[1:], xy)
	case 2 | odd:
		return bytes.Equal(point[1:], xy[:len(xy)/2])
	}
	return false
}
