package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// signer is a key behind a running daemon on a software TPM of its own.
type signer struct {
	tpm     *swtpm
	daemon  *daemon
	key     ssh.PublicKey
	request []byte // a SIGN_REQUEST, framed
}

func (b *bench) newSigner(name string, a tpmkey.Algorithm) (*signer, error) {
	return b.newSignerOf(name, tpmkey.Template{Algorithm: a})
}

// newSignerOf is newSigner for a key of any kind, and with options for the
// daemon.
func (b *bench) newSignerOf(name string, tm tpmkey.Template, options ...string) (*signer, error) {
	tpm, err := b.startTPM(name)
	if err != nil {
		return nil, err
	}
	s := &signer{tpm: tpm}
	if err := s.serve(b, name, tm, options); err != nil {
		return nil, errors.Join(err, tpm.stop())
	}
	return s, nil
}

// serve makes the key, and starts the daemon that has it.
func (s *signer) serve(b *bench, name string, tm tpmkey.Template, options []string) error {
	file, err := createKey(b.ctx, s.tpm, tm)
	if err != nil {
		return err
	}
	keys := filepath.Join(b.dir, name+".keys")
	if err := writeKey(keys, "id.tpm", file); err != nil {
		return err
	}
	if s.key, err = ssh.NewPublicKey(file.Public.Key); err != nil {
		return err
	}
	s.request = signRequest(s.key)
	s.daemon, err = b.startDaemon(s.tpm.address(), keys, options...)
	return err
}

// signRequest is the request that a client sends to log in: SSH_AGENTC_SIGN_REQUEST over
// some 300 octets, for RSA with SHA-256 (RFC 9987, 5.6).
func signRequest(key ssh.PublicKey) []byte {
	body := ssh.Marshal(struct {
		Number byte
		Blob   []byte
		Data   []byte
		Flags  uint32
	}{13, key.Marshal(), make([]byte, 300), uint32(agent.SignatureFlagRsaSha256)})
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

func (s *signer) stop() error { return errors.Join(s.daemon.stop(), s.tpm.stop()) }

// sign asks for a signature as OpenSSH's clients do: one write, and reads until
// the answer is whole.
func (s *signer) sign(c net.Conn) error {
	_, err := s.signature(c)
	return err
}

// ping asks for the list of keys, which takes the daemon no work.
func ping(c net.Conn) error {
	if _, err := c.Write([]byte{0, 0, 0, 1, 11}); err != nil { // REQUEST_IDENTITIES
		return err
	}
	_, err := answer(c)
	return err
}

// answer reads one message.
func answer(c net.Conn) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return nil, err
	}
	body := make([]byte, binary.BigEndian.Uint32(head[:]))
	_, err := io.ReadFull(c, body)
	return body, err
}

// signature returns the signature of one request.
func (s *signer) signature(c net.Conn) (*ssh.Signature, error) {
	if _, err := c.Write(s.request); err != nil {
		return nil, err
	}
	body, err := answer(c)
	if err != nil {
		return nil, err
	}
	if len(body) < 5 || body[0] != 14 { // SSH_AGENT_SIGN_RESPONSE
		return nil, errors.New("the agent refused")
	}
	sig := new(ssh.Signature)
	return sig, ssh.Unmarshal(body[5:], sig)
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
// turns, each side on a software TPM of its own. Two parts of tpm-agent's side
// are shown beside: verifying in software, and the way through the socket and
// back to a process that was idle for as long as a signature takes.
func (b *bench) signatures() error {
	fmt.Printf("One signature, median of %d, in turns of %d (ms)\n", b.rounds, turn)
	fmt.Printf("%-12s %12s %12s %8s %12s %10s\n", "key", "bare TPM", "tpm-agent", "ratio", "verifying", "socket")
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
	c, err := net.Dial("unix", s.daemon.socket)
	if err != nil {
		return err
	}
	defer c.Close()
	sig, err := s.signature(c)
	if err != nil {
		return err
	}
	verify := func() error { return s.key.Verify(make([]byte, 300), sig) }
	var ours, theirs, verifying, socket times
	for n := 0; n < b.rounds; n += turn {
		t1, err1 := b.turn(bareSide.signature)
		t2, err2 := b.turn(func() error { return s.sign(c) })
		t3, err3 := b.turn(verify)
		t4, err4 := b.turnAfter(t1.median(), func() error { return ping(c) })
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			return err
		}
		theirs, ours = append(theirs, t1...), append(ours, t2...)
		verifying, socket = append(verifying, t3...), append(socket, t4...)
	}
	fmt.Printf("%-12v %12s %12s %8.2f %12s %10s\n", a, ms(theirs.median()), ms(ours.median()),
		float64(ours.median())/float64(theirs.median()), ms(verifying.median()), ms(socket.median()))
	return nil
}

// turn is how many signatures one side makes before it is the other's turn.
const turn = 20

// turn measures one side's turn. The first few, which find the caches filled
// with the other side's things or have to load the key, do not count.
func (b *bench) turn(signature func() error) (times, error) { return b.turnAfter(0, signature) }

// turnAfter pauses before each.
func (b *bench) turnAfter(pause time.Duration, signature func() error) (times, error) {
	var took times
	for i := range turn + 5 {
		time.Sleep(pause)
		t, err := measure(signature)
		if err != nil {
			return nil, err
		}
		if i >= 5 {
			took = append(took, t)
		}
	}
	return took, nil
}

// throughput compares concurrent clients with the serial limit, which is the same
// number of signatures by bare commands in sequence. The two measurements alternate.
func (b *bench) throughput() error {
	other, err := b.startTPM("limit")
	if err != nil {
		return err
	}
	defer other.stop()
	if err := persistParent(b.ctx, other); err != nil {
		return err
	}
	bareSide, err := newBare(b.ctx, other, tpmkey.ECDSAP256)
	if err != nil {
		return err
	}
	defer bareSide.conn.Close()
	s, err := b.newSigner("many", tpmkey.ECDSAP256)
	if err != nil {
		return err
	}
	defer s.stop()
	fmt.Println("Signatures per second, P-256, by clients at once")
	fmt.Printf("%-12s %12s %12s %8s\n", "clients", "serial limit", "tpm-agent", "ratio")
	for _, clients := range []int{1, 4, 16, 64} {
		var limits, rates []float64
		for range 5 {
			limit, err1 := bareSide.rate(b.rounds)
			rate, err2 := s.rate(clients, b.rounds)
			if err := errors.Join(err1, err2); err != nil {
				return fmt.Errorf("%d clients: %w", clients, err)
			}
			limits, rates = append(limits, limit), append(rates, rate)
		}
		slices.Sort(limits)
		slices.Sort(rates)
		fmt.Printf("%-12d %12.0f %12.0f %8.2f\n", clients, limits[2], rates[2], rates[2]/limits[2])
	}
	fmt.Println()
	return nil
}

// rate is how many signatures per second the bare commands make.
func (b *bare) rate(total int) (float64, error) {
	start := time.Now()
	for range total {
		if err := b.signature(); err != nil {
			return 0, err
		}
	}
	return float64(total) / time.Since(start).Seconds(), nil
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
	c, err := net.Dial("unix", s.daemon.socket)
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
