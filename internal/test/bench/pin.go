package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// pins compares a signature with a key that has no PIN with one whose PIN is
// remembered, and with one whose PIN is read from a file each time.
func (b *bench) pins() error {
	const pin = "12345678"
	file := filepath.Join(b.dir, "pin")
	if err := os.WriteFile(file, []byte(pin), 0o600); err != nil {
		return err
	}
	free, err := b.newSigner("nopin", tpmkey.ECDSAP256)
	if err != nil {
		return err
	}
	defer free.stop()
	remembered, err := b.newSignerOf("remembered", tpmkey.Template{Algorithm: tpmkey.ECDSAP256, Auth: []byte(pin)})
	if err != nil {
		return err
	}
	defer remembered.stop()
	unlock := exec.CommandContext(b.ctx, b.program, "unlock", "--socket", remembered.daemon.socket,
		"--pin-from", "file:"+file, ssh.FingerprintSHA256(remembered.key))
	if out, err := unlock.CombinedOutput(); err != nil {
		return fmt.Errorf("unlock: %w: %s", err, out)
	}
	read, err := b.newSignerOf("read", tpmkey.Template{Algorithm: tpmkey.ECDSAP256, Auth: []byte(pin)}, "--pin-from", "id=file:"+file)
	if err != nil {
		return err
	}
	defer read.stop()
	return b.inTurns([]*signer{free, remembered, read})
}

func (b *bench) inTurns(signers []*signer) error {
	conns := make([]net.Conn, len(signers))
	for i, s := range signers {
		var err error
		if conns[i], err = net.Dial("unix", s.daemon.socket); err != nil {
			return err
		}
		defer conns[i].Close()
	}
	took := make([]times, len(signers))
	for n := 0; n < b.rounds; n += turn {
		for i, s := range signers {
			t, err := b.turn(func() error { return s.sign(conns[i]) })
			if err != nil {
				return err
			}
			took[i] = append(took[i], t...)
		}
	}
	first := took[0].median()
	fmt.Printf("One signature, P-256, median of %d, in turns (ms)\n", b.rounds)
	for i, name := range []string{"without a PIN", "PIN remembered", "PIN from a file"} {
		fmt.Printf("%-18s %10s  ratio %.2f\n", name, ms(took[i].median()), float64(took[i].median())/float64(first))
	}
	fmt.Println()
	return nil
}
