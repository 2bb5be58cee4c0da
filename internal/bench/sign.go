package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// login is as long as what a client signs to log in.
var login = make([]byte, 300)

// signer is a key behind a running daemon on a software TPM of its own.
type signer struct {
	tpm    *swtpm
	daemon *daemon
	key    ssh.PublicKey
}

func (b *bench) newSigner(name string, a tpmkey.Algorithm) (*signer, error) {
	tpm, err := b.startTPM(name)
	if err != nil {
		return nil, err
	}
	s := &signer{tpm: tpm}
	file, err := createKey(b.ctx, tpm, tpmkey.Template{Algorithm: a})
	if err != nil {
		return nil, errors.Join(err, tpm.stop())
	}
	keys := filepath.Join(b.dir, name+".keys")
	if err := writeKey(keys, "id.tpm", file); err != nil {
		return nil, errors.Join(err, tpm.stop())
	}
	if s.key, err = ssh.NewPublicKey(file.Public.Key); err != nil {
		return nil, errors.Join(err, tpm.stop())
	}
	if s.daemon, err = b.startDaemon(tpm.address(), keys); err != nil {
		return nil, errors.Join(err, tpm.stop())
	}
	return s, nil
}

func (s *signer) stop() error { return errors.Join(s.daemon.stop(), s.tpm.stop()) }

func (s *signer) sign(c *client) error {
	_, err := c.SignWithFlags(s.key, login, agent.SignatureFlagRsaSha256)
	return err
}

func writeKey(dir, name string, file *keyfile.TPMKey) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	data, err := file.Marshal()
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name), data, 0o600)
}

// signatures compares a signature through the socket with the bare commands, in
// turns, each side on a software TPM of its own.
func (b *bench) signatures() error {
	fmt.Printf("One signature, median of %d in turns (ms)\n", b.rounds)
	fmt.Printf("%-12s %12s %12s %8s\n", "key", "bare TPM", "tpm-agent", "ratio")
	other, err := b.startTPM("bare")
	if err != nil {
		return err
	}
	defer other.stop()
	if err := persistParent(b.ctx, other); err != nil {
		return err
	}
	for _, a := range []tpmkey.Algorithm{tpmkey.ECDSAP256, tpmkey.ECDSAP384, tpmkey.ECDSAP521, tpmkey.RSA2048} {
		if err := b.compare(other, a); err != nil {
			return fmt.Errorf("%v: %w", a, err)
		}
	}
	fmt.Println()
	return nil
}

func (b *bench) compare(other *swtpm, a tpmkey.Algorithm) error {
	bareSide, err := newBare(b.ctx, other, a)
	if err != nil {
		return err
	}
	defer bareSide.conn.Close()
	s, err := b.newSigner(fmt.Sprintf("sign%d", a), a)
	if err != nil {
		return err
	}
	defer s.stop()
	c, err := s.daemon.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	var ours, theirs times
	for i := range b.rounds + 10 {
		t1, err1 := measure(bareSide.signature)
		t2, err2 := measure(func() error { return s.sign(c) })
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		if i >= 10 { // the first ones load the key and warm up
			theirs, ours = append(theirs, t1), append(ours, t2)
		}
	}
	fmt.Printf("%-12v %12s %12s %8.2f\n", a, ms(theirs.median()), ms(ours.median()), float64(ours.median())/float64(theirs.median()))
	return nil
}

// throughput compares many clients with one.
func (b *bench) throughput() error {
	s, err := b.newSigner("many", tpmkey.ECDSAP256)
	if err != nil {
		return err
	}
	defer s.stop()
	fmt.Println("Signatures per second, P-256, by clients at once")
	fmt.Printf("%-12s %12s %8s\n", "clients", "per second", "ratio")
	var one float64
	for _, clients := range []int{1, 4, 16, 64} {
		rate, err := s.rate(clients, 2*b.rounds)
		if err != nil {
			return fmt.Errorf("%d clients: %w", clients, err)
		}
		if clients == 1 {
			one = rate
		}
		fmt.Printf("%-12d %12.0f %8.2f\n", clients, rate, rate/one)
	}
	fmt.Println()
	return nil
}

// rate is how many signatures per second clients get, total signatures made.
func (s *signer) rate(clients, total int) (float64, error) {
	each := max(total/clients, 1)
	var wg sync.WaitGroup
	errs := make([]error, clients)
	start := time.Now()
	for i := range clients {
		wg.Go(func() { errs[i] = s.signMany(each) })
	}
	wg.Wait()
	return float64(each*clients) / time.Since(start).Seconds(), errors.Join(errs...)
}

func (s *signer) signMany(n int) error {
	c, err := s.daemon.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	for range n {
		if err := s.sign(c); err != nil {
			return err
		}
	}
	return nil
}

// residentMemory shows the daemon's memory idle and after many signatures.
func (b *bench) residentMemory() error {
	s, err := b.newSigner("memory", tpmkey.ECDSAP256)
	if err != nil {
		return err
	}
	defer s.stop()
	fmt.Println("Resident memory (KiB)")
	for _, n := range []int{0, b.memory / 10, b.memory} {
		if err := s.signMany(n); err != nil {
			return err
		}
		kib, err := s.daemon.resident()
		if err != nil {
			return err
		}
		fmt.Printf("after %6d more signatures %10d\n", n, kib)
	}
	return nil
}
