package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/tcti"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// kind is a type and size of key, in the words of keygen's -t and -b.
type kind struct {
	Type string `json:"type"`
	Bits int    `json:"bits"`
}

// String is how OpenSSH shows it: "ECDSA 256".
func (k kind) String() string { return fmt.Sprintf("%s %d", strings.ToUpper(k.Type), k.Bits) }

// algRSA is TPM_ALG_RSA (TPM 2.0 Part 2, 6.3).
const algRSA = 0x0001

// kindOf is the kind of a key that the TPM knows by its public area.
func kindOf(p *keyfile.Public) kind {
	if p.Type == algRSA {
		return kind{"rsa", p.KeyBits}
	}
	return kind{"ecdsa", p.KeyBits}
}

// kindOfBlob is the kind of a public key, or of a certificate, that need not be of
// a TPM, in the words of ssh-keygen -t. One that is not known has the name that SSH
// gives it, and no size.
func kindOfBlob(blob []byte) (k kind) {
	var head struct {
		Name string
		Rest []byte `ssh:"rest"`
	}
	if ssh.Unmarshal(blob, &head) != nil {
		return kind{}
	}
	k.Type = plain(head.Name)
	for word, prefix := range map[string]string{
		"ed25519": "ssh-ed25519", "ecdsa": "ecdsa-sha2-", "rsa": "ssh-rsa", "dsa": "ssh-dss",
		"ed25519-sk": "sk-ssh-ed25519", "ecdsa-sk": "sk-ecdsa-sha2-",
	} {
		if strings.HasPrefix(head.Name, prefix) {
			k.Type = word
		}
	}
	public, _ := ssh.ParsePublicKey(blob)
	if cert, ok := public.(*ssh.Certificate); ok {
		k.Type += "-cert"
		public = cert.Key
	}
	if p, ok := public.(ssh.CryptoPublicKey); ok {
		k.Bits = bitsOf(p.CryptoPublicKey())
	}
	return k
}

// bitsOf is the size of a key as ssh-keygen -l has it; 0 of types without one here.
func bitsOf(public crypto.PublicKey) int {
	switch key := public.(type) {
	case *rsa.PublicKey:
		return key.N.BitLen()
	case *ecdsa.PublicKey:
		return key.Curve.Params().BitSize
	case ed25519.PublicKey:
		return 8 * len(key)
	}
	return 0
}

// kinds are the keys that can be asked for, by -t and -b; the first size of a
// type is its default.
var kinds = []struct {
	keyType   string
	bits      int
	algorithm tpmkey.Algorithm
}{
	{"ecdsa", 256, tpmkey.ECDSAP256},
	{"ecdsa", 384, tpmkey.ECDSAP384},
	{"ecdsa", 521, tpmkey.ECDSAP521},
	{"rsa", 2048, tpmkey.RSA2048},
	{"rsa", 3072, tpmkey.RSA3072},
	{"rsa", 4096, tpmkey.RSA4096},
}

// algorithm is the kind of key asked for.
func (o *keygenOptions) algorithm() (tpmkey.Algorithm, error) {
	var sizes []string
	for _, kind := range kinds {
		if kind.keyType == o.keyType && (o.bits == 0 || kind.bits == o.bits) {
			return kind.algorithm, nil
		}
		if kind.keyType == o.keyType {
			sizes = append(sizes, strconv.Itoa(kind.bits))
		}
	}
	if len(sizes) > 0 {
		return 0, usage("-b %d: an %s key has %s bits", o.bits, o.keyType, strings.Join(sizes, ", "))
	}
	return 0, noSuchType(o.keyType)
}

// notInTPMError is a type of key that ssh-keygen makes and no TPM has.
type notInTPMError struct{ why string }

func (e *notInTPMError) Error() string { return e.why }

// noSuchType says why a type that ssh-keygen knows cannot be had in a TPM.
func noSuchType(keyType string) error {
	const instead = "use -t ecdsa, which servers since OpenSSH 5.7 (2011) take; an ed25519 key made by ssh-keygen can be used beside it, from its file"
	switch {
	case strings.HasSuffix(keyType, "-sk"):
		return withHint(&notInTPMError{fmt.Sprintf("-t %s: that is a key of a FIDO token, not of the TPM", plain(keyType))}, "ssh-keygen -t %s makes it", shQuote(keyType))
	case keyType == "ed25519":
		return withHint(&notInTPMError{"-t ed25519: no TPM has Ed25519"}, instead)
	case keyType == "dsa":
		return withHint(&notInTPMError{"-t dsa: no TPM has DSA, and OpenSSH has given it up"}, instead)
	}
	return usage("-t %s: the types are ecdsa and rsa", plain(keyType))
}

// makeable is what `keygen --list` shows.
type makeable struct {
	TPM          string `json:"tpm"`
	Protected    bool   `json:"protected"` // false for the software TPM
	Manufacturer string `json:"manufacturer"`
	Vendor       string `json:"vendor,omitempty"`
	Firmware     string `json:"firmware"`
	Keys         []kind `json:"keys"`
}

// runKeygenList shows what this TPM can make, in the words of -t and -b.
func runKeygenList(ctx context.Context, g *global, asJSON bool) error {
	addr, err := g.address()
	if err != nil {
		return err
	}
	tpm := openTPM(addr)
	c, err := tpm.Capabilities(ctx)
	if err := errors.Join(orInterrupted(ctx, err), tpm.Close()); err != nil {
		return fmt.Errorf("asking the TPM what it can make: %w", err)
	}
	if !asJSON {
		return printMakeable(g.sys.stdout, addr, c)
	}
	m := makeable{addr.String(), !addr.Software(), words(c.Manufacturer), words(c.Vendor), words(c.Firmware), []kind{}}
	for _, k := range kinds {
		if slices.Contains(c.Algorithms, k.algorithm) {
			m.Keys = append(m.Keys, kind{k.keyType, k.bits})
		}
	}
	return writeJSON(g.sys.stdout, m)
}

func printMakeable(w io.Writer, addr tcti.Address, c tpmkey.Capabilities) error {
	var b strings.Builder
	mark := ""
	if addr.Software() {
		mark = " (" + notProtected + ")"
	}
	fmt.Fprintf(&b, "TPM: %s, %s%s\n", addr, chipName(c), mark)
	for _, k := range kinds {
		answer := "no"
		if slices.Contains(c.Algorithms, k.algorithm) {
			answer = "yes"
		}
		fmt.Fprintf(&b, "-t %-5s -b %-4d  %s\n", k.keyType, k.bits, answer)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
