package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"
	sshagent "golang.org/x/crypto/ssh/agent"

	"github.com/tpm-agent/tpm-agent/internal/tpmtest"
)

// TestInFlight: 32 requests of one client before it reads an answer, 32
// goroutines that share x/crypto's client on one connection, and 32 clients
// with a connection each, all at the same time.
func TestInFlight(t *testing.T) {
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

// pipeline sends n requests to sign and as many to list at once, and checks
// that each answer is that of the request in its place.
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

func frame(message []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(message))), message...)
}

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

// served makes a key and runs the daemon that has it.
func served(t *testing.T) (public ssh.PublicKey, socket string) {
	t.Helper()
	sw, dir := tpmtest.Start(t), t.TempDir()
	key, socket := filepath.Join(dir, "id"), filepath.Join(dir, "run", "s")
	if out, err := program(t, "--tpm", sw.Address(), "keygen", "-q", "-N", "", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("keygen: %v\n%s", err, out)
	}
	line, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	if public, _, _, _, err = ssh.ParseAuthorizedKey(line); err != nil {
		t.Fatal(err)
	}
	serve := program(t, "--tpm", sw.Address(), "serve", "--socket", socket, "--key-dir", dir)
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = serve.Process.Signal(syscall.SIGTERM); _ = serve.Wait() })
	return public, socket
}
