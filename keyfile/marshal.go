package keyfile

import (
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
// Marshal refuses a key with Unknown fields, because they would be lost.
func (k *TPMKey) Marshal() ([]byte, error) {
	if len(k.Unknown) != 0 {
		return nil, fmt.Errorf("write key file: its unknown fields %d would be lost", k.Unknown)
	}
	checked := *k // check sets Public; do not change the caller's key
	if err := checked.check(); err != nil {
		return nil, fmt.Errorf("write key file: %w", err)
	}
	var b cryptobyte.Builder
	b.AddASN1(casn1.SEQUENCE, k.addFields)
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("write key file: %w", err)
	}
	data := pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der})
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
	b.AddASN1(contextTag(tagEmptyAuth), func(b *cryptobyte.Builder) { b.AddASN1Boolean(k.EmptyAuth) })
	if len(k.Policy) != 0 {
		b.AddASN1(contextTag(tagPolicy), func(b *cryptobyte.Builder) { addPolicies(b, k.Policy) })
	}
	if len(k.Secret) != 0 {
		b.AddASN1(contextTag(tagSecret), func(b *cryptobyte.Builder) { b.AddASN1OctetString(k.Secret) })
	}
	if len(k.AuthPolicy) != 0 {
		b.AddASN1(contextTag(tagAuthPolicy), k.addAuthPolicies)
	}
	if k.Description != "" {
		b.AddASN1(contextTag(tagDescription), func(b *cryptobyte.Builder) { addUTF8(b, k.Description) })
	}
	if k.RSAParent {
		b.AddASN1(contextTag(tagRSAParent), func(b *cryptobyte.Builder) { b.AddASN1Boolean(true) })
	}
	b.AddASN1Int64(int64(writtenParent(k.Parent)))
	b.AddASN1OctetString(k.Pubkey)
	b.AddASN1OctetString(k.Privkey)
}

// writtenParent returns the parent as Marshal writes it.
func writtenParent(parent uint32) uint32 {
	if parent == 0 || parent&handleTypeMask == handleTransient {
		return ParentOwner
	}
	return parent
}

func addUTF8(b *cryptobyte.Builder, s string) {
	b.AddASN1(casn1.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes([]byte(s)) })
}

func addPolicies(b *cryptobyte.Builder, list []Policy) {
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, p := range list {
			b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(contextTag(0), func(b *cryptobyte.Builder) { b.AddASN1Int64(int64(p.CommandCode)) })
				b.AddASN1(contextTag(1), func(b *cryptobyte.Builder) { b.AddASN1OctetString(p.CommandPolicy) })
			})
		}
	})
}

func (k *TPMKey) addAuthPolicies(b *cryptobyte.Builder) {
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, p := range k.AuthPolicy {
			b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
				if p.Name != "" {
					b.AddASN1(contextTag(0), func(b *cryptobyte.Builder) { addUTF8(b, p.Name) })
				}
				b.AddASN1(contextTag(1), func(b *cryptobyte.Builder) { addPolicies(b, p.Policy) })
			})
		}
	})
}
