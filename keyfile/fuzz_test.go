package keyfile

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/pem"
	"testing"
)

// FuzzParse parses DER in PEM, so that the fuzzer need not learn base64, and the same
// octets as they are.
func FuzzParse(f *testing.F) {
	for _, der := range examples(f) {
		f.Add(der)
		f.Add(encode(der))
	}
	f.Add([]byte("-----BEGIN TSS2 KEY BLOB-----"))
	f.Fuzz(func(t *testing.T, data []byte) {
		checkParsed(t, data)
		k, err := Parse(data)
		if err != nil && !ours(err) {
			t.Fatal(err)
		}
		if err != nil {
			return
		}
		// encoding/pem must agree on what we accept as PEM.
		block := findBlock(data)
		if block == nil {
			t.Fatalf("encoding/pem sees no block in %q", data)
		}
		if again, err := parseDER(block.Bytes); err != nil || !bytes.Equal(again.Pubkey, k.Pubkey) {
			t.Fatalf("encoding/pem sees a different block in %q", data)
		}
		if into, err := k.MarshalInto(data); err == nil {
			if again, err := Parse(into); err != nil || !bytes.Equal(again.Privkey, k.Privkey) {
				t.Fatalf("%q, in place of the key in %q: %v", into, data, err)
			}
		}
	})
}

func findBlock(data []byte) *pem.Block {
	for {
		block, rest := pem.Decode(data)
		if block == nil || block.Type == pemType {
			return block
		}
		data = rest
	}
}

func FuzzParsePublic(f *testing.F) {
	for _, g := range goldens {
		f.Add(goldenKey(f, g.name).Pubkey)
	}
	for id, curve := range map[string]elliptic.Curve{"0004": elliptic.P384(), "0005": elliptic.P521(), "0010": elliptic.P256()} {
		area, _ := eccPublic(f, curve, id)
		f.Add(area.bytes())
		area.scheme, area.kdf = unhex("001a 000b 0001"), unhex("0020 000b")
		area.symmetric = unhex("0006 0080 0043")
		f.Add(area.bytes())
	}
	f.Add(rsaPublic(4096).bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParsePublic(data)
		if err != nil {
			if !ours(err) {
				t.Fatal(err)
			}
			return
		}
		// What was read can be written to a file and read back.
		k, err := NewLoadable(data, []byte{0, 1, 1}, ParentOwner, true)
		if err != nil {
			t.Fatal(err)
		}
		checkKey(t, p)
		if !bytes.Equal(k.Public.Name(), p.Name()) {
			t.Fatal("two names of one object")
		}
		data, err = k.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if k, err = Parse(data); err != nil || !bytes.Equal(k.Public.Name(), p.Name()) {
			t.Fatal(err)
		}
	})
}

// checkKey checks that crypto/… can work with the key.
func checkKey(t *testing.T, p *Public) {
	switch key := p.Key.(type) {
	case *ecdsa.PublicKey:
		if _, err := key.Bytes(); err != nil || key.Curve.Params().BitSize != p.KeyBits {
			t.Fatal(err)
		}
	case *rsa.PublicKey:
		if key.N.BitLen() != p.KeyBits || uint32(key.E) != p.Exponent || key.Size() != p.KeyBits/8 {
			t.Fatalf("%+v", p)
		}
	default:
		t.Fatalf("a key of type %T", p.Key)
	}
}
