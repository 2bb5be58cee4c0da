package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"path/filepath"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// lists shows start-up and "connect and list" by the number of key files.
func (b *bench) lists() error {
	fmt.Println("Key directories (ms)")
	fmt.Printf("%-12s %12s %16s %12s\n", "keys", "start-up", "connect + list", "listed")
	for _, n := range b.sizes {
		if err := b.list(n); err != nil {
			return fmt.Errorf("%d keys: %w", n, err)
		}
	}
	fmt.Println()
	return nil
}

func (b *bench) list(n int) error {
	dir := filepath.Join(b.dir, fmt.Sprintf("keys%d", n))
	for i := range n {
		file, err := listedKey()
		if err != nil {
			return err
		}
		if err := writeKey(dir, fmt.Sprintf("key%05d.tpm", i), file); err != nil {
			return err
		}
	}
	d, err := b.startDaemon("swtpm:path="+filepath.Join(b.dir, "none"), dir)
	if err != nil {
		return err
	}
	defer d.stop()
	var took times
	listed := 0
	for range 50 {
		t, err := measure(func() (err error) { listed, err = d.list(); return err })
		if err != nil {
			return err
		}
		took = append(took, t)
	}
	fmt.Printf("%-12d %12s %16s %12d\n", n, ms(d.startup), ms(took.median()), listed)
	return nil
}

// listedKey returns a key file that no TPM can load: listing asks none.
func listedKey() (*keyfile.TPMKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		return nil, err
	}
	// TPMT_PUBLIC of an unrestricted P-256 signing key.
	public := []byte{
		0x00, 0x23, 0x00, 0x0b, 0x00, 0x04, 0x04, 0x72, 0x00, 0x00,
		0x00, 0x10, 0x00, 0x10, 0x00, 0x03, 0x00, 0x10,
	}
	public = append(append(public, 0, 32), point[1:33]...)
	public = append(append(public, 0, 32), point[33:]...)
	return keyfile.NewLoadable(sized(public), sized(make([]byte, 126)), keyfile.ParentOwner, true)
}

// sized is a TPM2B: two octets of length, then the octets.
func sized(b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
}
