package main

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	sshagent "golang.org/x/crypto/ssh/agent"
)

// TestManyClients checks that the agent serves 63 clients at once while one more
// client sends garbage and another client hangs up before its answer.
func TestManyClients(t *testing.T) {
	t.Parallel()
	public, socket := served(t)
	garbage := connect(t, socket)
	if _, err := io.WriteString(garbage, "GET / HTTP/1.1\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var right atomic.Int32
	for i := range 64 {
		conn := connect(t, socket)
		if i == 32 {
			request := ssh.Marshal(struct {
				Number     byte
				Blob, Data []byte
				Flags      uint32
			}{13, public.Marshal(), []byte{1}, 0})
			if _, err := conn.Write(append([]byte{0, 0, 0, byte(len(request))}, request...)); err != nil {
				t.Fatal(err)
			}
			conn.Close()
			continue
		}
		wg.Go(func() {
			data := []byte{byte(i)}
			sig, err := sshagent.NewClient(conn).Sign(public, data)
			if err == nil {
				err = public.Verify(data, sig)
			}
			if err != nil {
				t.Errorf("client %d: %v", i, err)
				return
			}
			right.Add(1)
		})
	}
	wg.Wait()
	if n := right.Load(); n != 63 {
		t.Errorf("%d clients got a signature, want 63", n)
	}
	if answer, _ := io.ReadAll(garbage); len(answer) > 0 {
		t.Errorf("the agent answered garbage with %x", answer)
	}
}

// connect connects to the agent. It waits until the agent listens.
func connect(t *testing.T, socket string) net.Conn {
	t.Helper()
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			t.Cleanup(func() { conn.Close() })
			return conn
		}
		if time.Since(start) > longEnough {
			t.Fatal(err)
		}
	}
}
