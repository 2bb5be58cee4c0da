package tpmkey_test

import (
	"context"
	"crypto"
	"testing"

	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// BenchmarkSign measures a warm signature without an agent.
func BenchmarkSign(b *testing.B) {
	for _, bm := range []struct {
		algorithm tpmkey.Algorithm
		hash      crypto.Hash
		pin       string
	}{
		{tpmkey.ECDSAP256, crypto.SHA256, ""},
		{tpmkey.ECDSAP256, crypto.SHA256, "1234"},
		{tpmkey.ECDSAP384, crypto.SHA384, ""},
		{tpmkey.ECDSAP521, crypto.SHA512, ""},
		{tpmkey.RSA2048, crypto.SHA256, ""},
	} {
		b.Run(bm.algorithm.String()+"/PIN="+bm.pin, func(b *testing.B) {
			f := start(b)
			key := f.create(b, bm.algorithm, bm.pin)
			mustSign(b, key, bm.pin, bm.hash)
			d := digest(bm.hash)
			for b.Loop() {
				if _, err := key.Sign(context.Background(), []byte(bm.pin), d, bm.hash); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
