//go:build vmtest

package vm

import (
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"
)

// onEach runs a test on the resource manager's device, and then on the raw one.
func onEach(t *testing.T, test func(t *testing.T, device string)) {
	for _, device := range []string{managed, raw} {
		t.Run(strings.TrimPrefix(device, "/dev/"), func(t *testing.T) { test(t, device) })
	}
}

// TestLogin creates a key, finds it in the agent's list and logs in with it.
func TestLogin(t *testing.T) {
	onEach(t, func(t *testing.T, device string) {
		for name, flags := range map[string][]string{"ecdsa": nil, "rsa": {"-t", "rsa", "-b", "2048"}} {
			t.Run(name, func(t *testing.T) {
				h := newHome(t, device)
				key := h.keygen(t, "id_"+name, "", flags...)
				d := h.serve(t, "run")
				checkList(t, d, key)
				for n := range 2 {
					if err := login(d.client(t), key, n); err != nil {
						t.Error(err)
					}
				}
				d.leavesNothing(t)
			})
		}
	})
}

// checkList checks that the agent lists exactly these keys.
func checkList(t *testing.T, d *daemon, want ...ssh.PublicKey) {
	t.Helper()
	got, err := d.client(t).List()
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, k := range got {
		listed[string(k.Blob)] = true
	}
	for _, k := range want {
		if !listed[string(k.Marshal())] {
			t.Errorf("key %s is not listed", ssh.FingerprintSHA256(k))
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d keys listed, want %d", len(got), len(want))
	}
}

// TestPIN signs with a key that has a PIN. The authorization session is kept from
// one signature to the next, swapped in and out by the resource manager, and gone
// when the agent is idle.
func TestPIN(t *testing.T) {
	onEach(t, func(t *testing.T, device string) {
		h := newHome(t, device)
		h.askpass(t, "correct horse")
		key := h.keygen(t, "id_ecdsa", "correct horse")
		d := h.serve(t, "run")
		c := d.client(t)
		for n := range 10 {
			if err := login(c, key, n); err != nil {
				t.Fatal(err)
			}
		}
		d.leavesNothing(t)
		if err := login(c, key, 10); err != nil {
			t.Errorf("after the session was given up: %v", err)
		}
	})
}

// TestTwoAgents has two agents with one key each sign at the same time, as for two
// users of a machine. The resource manager keeps them apart.
func TestTwoAgents(t *testing.T) {
	var agents [2]*daemon
	var keys [2]ssh.PublicKey
	for i := range agents {
		h := newHome(t, managed)
		keys[i] = h.keygen(t, "id_ecdsa", "")
		agents[i] = h.serve(t, "run")
	}
	var wg sync.WaitGroup
	for i, d := range agents {
		sign(t, &wg, d, keys[i], 2, 20)
	}
	wg.Wait()
	for _, d := range agents {
		d.leavesNothing(t)
	}
}

// TestManyClients makes 200 signatures for 8 clients.
func TestManyClients(t *testing.T) {
	onEach(t, func(t *testing.T, device string) {
		h := newHome(t, device)
		key := h.keygen(t, "id_ecdsa", "")
		d := h.serve(t, "run")
		var wg sync.WaitGroup
		sign(t, &wg, d, key, 8, 25)
		wg.Wait()
		d.leavesNothing(t)
	})
}

// sign starts clients that make a number of signatures each.
func sign(t *testing.T, wg *sync.WaitGroup, d *daemon, key ssh.PublicKey, clients, each int) {
	t.Helper()
	for i := range clients {
		c := d.client(t)
		wg.Go(func() {
			for n := range each {
				if err := login(c, key, i*each+n); err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
			}
		})
	}
}

// TestSignalStorm signs while the agent gets SIGURG without a pause. Go's runtime
// preempts its threads with this signal, which interrupts system calls on the
// device.
func TestSignalStorm(t *testing.T) {
	onEach(t, func(t *testing.T, device string) {
		h := newHome(t, device)
		key := h.keygen(t, "id_ecdsa", "")
		d := h.serve(t, "run")

		var storm, work sync.WaitGroup
		var over atomic.Bool
		var sent int
		storm.Go(func() {
			for !over.Load() {
				if err := syscall.Kill(d.cmd.Process.Pid, syscall.SIGURG); err != nil {
					t.Errorf("sending SIGURG: %v", err)
					return
				}
				sent++
			}
		})
		sign(t, &work, d, key, 4, 10)
		work.Wait()
		over.Store(true)
		storm.Wait()
		t.Logf("40 signatures under %d signals", sent)
		d.leavesNothing(t)
	})
}

// TestBusyDevice holds the raw device, which only one program can open at a time.
// The agent fails to sign after a while, still lists its keys, and signs once the
// device is free.
func TestBusyDevice(t *testing.T) {
	h := newHome(t, raw)
	key := h.keygen(t, "id_ecdsa", "")
	d := h.serve(t, "run")
	eventually(t, "the device", d.idle)
	f, err := open(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	refused := make(chan error, 1)
	c := d.client(t)
	go func() { refused <- login(c, key, 1) }()
	checkList(t, d, key)
	if err := <-refused; err == nil {
		t.Error("a signature on a TPM that another program holds")
	}
	f.Close()
	if err := login(c, key, 2); err != nil {
		t.Errorf("after the device was free again: %v", err)
	}
	d.leavesNothing(t)
}
