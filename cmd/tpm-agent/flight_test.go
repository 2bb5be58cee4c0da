package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	sshagent "golang.org/x/crypto/ssh/agent"

	"github.com/tpm-agent/tpm-agent/internal/test/tpmtest"
)

// TestManyRequests checks that the agent serves many requests at the same time: 32
// from a client that sends all before it reads an answer, 32 from goroutines that
// share one connection, and 32 from clients with a connection each.
func TestManyRequests(t *testing.T) {
	t.Parallel()
	const n = 32
	public, socket := served(t)
	var all sync.WaitGroup
	shared := sshagent.NewClient(connect(t, socket))
	for i := range n {
		own := sshagent.NewClient(connect(t, socket))
		for name, client := range map[string]sshagent.Agent{"shared": shared, "own": own} {
			all.Go(func() {
				data := fmt.Appendf(nil, "%s %d", name, i)
				sig, err := client.Sign(public, data)
				if err == nil {
					err = public.Verify(data, sig)
				}
				if err != nil {
					t.Errorf("%s: %v", data, err)
				}
			})
		}
	}
	pipeline(t, connect(t, socket), public, n)
	all.Wait()
}

// TestSIGTERMFinishesSignature checks that after SIGTERM the agent removes its socket
// but finishes the signature that the TPM is making.
func TestSIGTERMFinishesSignature(t *testing.T) {
	t.Parallel()
	sw, dir := tpmtest.Start(t), t.TempDir()
	public := keyIn(t, sw.Address(), dir)
	tpm, socket := newGate(t, sw.Socket()), filepath.Join(dir, "run", "s")
	serve := program(t, "--tpm", "swtpm:path="+tpm.path, "serve", "--socket", socket, "--key-dir", dir)
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = serve.Process.Kill(); _ = serve.Wait() })
	conn := connect(t, socket)
	tpm.shut.Store(true)
	requestSignature(t, conn, public)
	<-tpm.reached
	if err := serve.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		if _, err := os.Lstat(socket); errors.Is(err, fs.ErrNotExist) {
			break
		}
		if time.Since(start) > time.Minute {
			t.Fatal("the socket is still there")
		}
	}
	close(tpm.open)
	var signed struct {
		Signature []byte `sshtype:"14"`
	}
	var sig ssh.Signature
	if err := errors.Join(ssh.Unmarshal(answer(t, conn), &signed), ssh.Unmarshal(signed.Signature, &sig)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(public.Verify([]byte("data"), &sig), serve.Wait()); err != nil {
		t.Error(err)
	}
}

// gate is a proxy in front of a TPM. Once it is shut, it holds the next command back
// until it is opened.
type gate struct {
	path    string
	shut    atomic.Bool
	reached chan struct{} // closed when a command waits
	open    chan struct{}
}

// newGate starts a gate in front of the TPM at the socket tpm.
func newGate(t *testing.T, tpm string) *gate {
	t.Helper()
	g := &gate{path: filepath.Join(t.TempDir(), "tpm"), reached: make(chan struct{}), open: make(chan struct{})}
	l := must(net.Listen("unix", g.path))
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go g.pass(client, tpm)
		}
	}()
	return g
}

// pass copies between a client and the TPM.
func (g *gate) pass(client net.Conn, tpm string) {
	defer client.Close()
	server, err := net.Dial("unix", tpm)
	if err != nil {
		return
	}
	defer server.Close()
	go func() { io.Copy(client, server); client.Close() }()
	b := make([]byte, 4096)
	for {
		n, err := client.Read(b)
		if err != nil {
			return
		}
		if g.shut.CompareAndSwap(true, false) {
			close(g.reached)
			<-g.open
		}
		if _, err := server.Write(b[:n]); err != nil {
			return
		}
	}
}

// pipeline sends n sign and n list requests at once, and checks that the answers
// arrive in the order of the requests.
func pipeline(t *testing.T, conn net.Conn, public ssh.PublicKey, n int) {
	t.Helper()
	var requests []byte
	for i := range n {
		requests = append(requests, frame(ssh.Marshal(struct {
			Number     byte
			Blob, Data []byte
			Flags      uint32
		}{13, public.Marshal(), []byte{byte(i)}, 0}))...)
		requests = append(requests, frame([]byte{11})...)
	}
	if _, err := conn.Write(requests); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		var signed struct {
			Blob []byte `sshtype:"14"`
		}
		var sig ssh.Signature
		if err := ssh.Unmarshal(answer(t, conn), &signed); err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
		if err := ssh.Unmarshal(signed.Blob, &sig); err != nil {
			t.Fatalf("signature %d: %v", i, err)
		}
		if err := public.Verify([]byte{byte(i)}, &sig); err != nil {
			t.Errorf("signature %d: %v", i, err)
		}
		if list := answer(t, conn); list[0] != 12 || !bytes.Contains(list, public.Marshal()) {
			t.Errorf("list %d: %x", i, list)
		}
	}
}

// frame returns a message with its length in front.
func frame(message []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(message))), message...)
}

// answer reads the next answer from conn.
func answer(t *testing.T, conn net.Conn) []byte {
	t.Helper()
	var length [4]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		t.Fatal(err)
	}
	message := make([]byte, binary.BigEndian.Uint32(length[:]))
	if _, err := io.ReadFull(conn, message); err != nil || len(message) == 0 {
		t.Fatalf("%d octets: %v", len(message), err)
	}
	return message
}

// served makes a key and starts an agent that has it.
func served(t *testing.T) (public ssh.PublicKey, socket string) {
	t.Helper()
	sw, dir := tpmtest.Start(t), t.TempDir()
	public, socket = keyIn(t, sw.Address(), dir), filepath.Join(dir, "run", "s")
	serve := program(t, "--tpm", sw.Address(), "serve", "--socket", socket, "--key-dir", dir)
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = serve.Process.Signal(syscall.SIGTERM); _ = serve.Wait() })
	return public, socket
}

// keyIn makes a key without a PIN in dir, in the file id.tpm.
func keyIn(t *testing.T, tpm, dir string) ssh.PublicKey {
	t.Helper()
	key := filepath.Join(dir, "id")
	if out, err := program(t, "--tpm", tpm, "keygen", "-q", "-N", "", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("keygen: %v\n%s", err, out)
	}
	public, _, _, _, err := ssh.ParseAuthorizedKey(must(os.ReadFile(key + ".pub")))
	if err != nil {
		t.Fatal(err)
	}
	return public
}
