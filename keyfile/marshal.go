package keyfile

import (
	"bytes"
	"encoding/asn1"
	"encoding/pem"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Marshal returns the key file as PEM. It writes the five fields that every reader knows
// in DER, and the other fields only if they are set. It always writes EmptyAuth: without
// it, OpenSSL providers before 1.3 assume that the key has no auth value. The old ways to
// write the owner hierarchy become ParentOwner.
//
// Marshal refuses a key that Parse would not read, and one with Unknown fields, because
// they would be lost.
func (k *TPMKey) Marshal() ([]byte, error) {
	if len(k.Unknown) != 0 {
		return nil, fmt.Errorf("write key file: its unknown fields %d would be lost", k.Unknown)
	}
	if k.Type != Loadable && k.Type != Importable {
		return nil, fmt.Errorf("write key file: %w", malformed("type", 0, "there is no key type %d", int(k.Type)))
	}
	var b cryptobyte.Builder
	b.AddASN1(casn1.SEQUENCE, k.addFields)
	der, err := b.Bytes()
	if err == nil {
		_, err = parseDER(der)
	}
	if err != nil {
		return nil, fmt.Errorf("write key file: %w", err)
	}
	data := pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der})
	if len(data) > maxFile {
		return nil, fmt.Errorf("write key file: %w: %d octets, at most %d are allowed", ErrFormat, len(data), maxFile)
	}
	return data, nil
}

// MarshalInto is [TPMKey.Marshal] for a key that replaces the one in the content of a
// file. It keeps the text around the block.
func (k *TPMKey) MarshalInto(file []byte) ([]byte, error) {
	block, err := k.Marshal()
	if err != nil {
		return nil, err
	}
	_, start, end, err := decodePEM(file)
	if err != nil {
		return nil, fmt.Errorf("write key file: %w", err)
	}
	data := append(append(bytes.Clone(file[:start]), block...), file[end:]...)
	if len(data) > maxFile {
		return nil, fmt.Errorf("write key file: %w: %d octets, at most %d are allowed", ErrFormat, len(data), maxFile)
	}
	return data, nil
}

func (k *TPMKey) addFields(b *cryptobyte.Builder) {
	last := oidLoadable
	if k.Type == Importable {
		last = oidImportable
	}
	b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{2, 23, 133, 10, 1, last})
	b.AddASN1(explicit+tagEmptyAuth, func(b *cryptobyte.Builder) { b.AddASN1Boolean(k.EmptyAuth) })
	if len(k.Policy) != 0 {
		b.AddASN1(explicit+tagPolicy, func(b *cryptobyte.Builder) { addPolicies(b, k.Policy) })
	}
	if len(k.Secret) != 0 {
		b.AddASN1(explicit+tagSecret, func(b *cryptobyte.Builder) { b.AddASN1OctetString(k.Secret) })
	}
	if len(k.AuthPolicy) != 0 {
		b.AddASN1(explicit+tagAuthPolicy, k.addAuthPolicies)
	}
	if k.Description != "" {
		b.AddASN1(explicit+tagDescription, func(b *cryptobyte.Builder) { addUTF8(b, k.Description) })
	}
	if k.RSAParent {
		b.AddASN1(explicit+tagRSAParent, func(b *cryptobyte.Builder) { b.AddASN1Boolean(true) })
	}
	parent := k.Parent
	if parent == 0 || parent&handleTypeMask == handleTransient {
		parent = ParentOwner
	}
	b.AddASN1Int64(int64(parent))
	b.AddASN1OctetString(k.Pubkey)
	b.AddASN1OctetString(k.Privkey)
}

func addUTF8(b *cryptobyte.Builder, s string) {
	b.AddASN1(casn1.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes([]byte(s)) })
}

func addPolicies(b *cryptobyte.Builder, list []Policy) {
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, p := range list {
			b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(explicit, func(b *cryptobyte.Builder) { b.AddASN1Int64(int64(p.CommandCode)) })
				b.AddASN1(explicit+1, func(b *cryptobyte.Builder) { b.AddASN1OctetString(p.CommandPolicy) })
			})
		}
	})
}

func (k *TPMKey) addAuthPolicies(b *cryptobyte.Builder) {
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, p := range k.AuthPolicy {
			b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
				if p.Name != "" {
					b.AddASN1(explicit, func(b *cryptobyte.Builder) { addUTF8(b, p.Name) })
				}
				b.AddASN1(explicit+1, func(b *cryptobyte.Builder) { addPolicies(b, p.Policy) })
			})
		}
	})
}
