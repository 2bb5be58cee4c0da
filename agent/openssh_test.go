package agent

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"
	client "golang.org/x/crypto/ssh/agent"
)

// sshAgent starts OpenSSH's agent and returns its socket.
func sshAgent(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	cmd := exec.Command("ssh-agent", "-D", "-a", path)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	if err := cmd.Start(); err != nil {
		t.Skipf("needs ssh-agent: %v", err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	soon(t, "ssh-agent listens", func() bool {
		nc, err := net.Dial("unix", path)
		if err == nil {
			nc.Close()
		}
		return err == nil
	})
	return path
}

// The identities of both agents, in this order.
func bothHave() (ids []Identity, added []client.AddedKey) {
	add := func(id Identity) {
		k := client.AddedKey{PrivateKey: id.Key.(*softKey).Signer, Comment: id.Comment}
		k.Certificate, _ = id.Public.(*ssh.Certificate)
		ids, added = append(ids, id), append(added, k)
	}
	add(plain("p256", p256()))
	add(plain("rsa", rsa2k()))
	add(certified(plain("p256", p256()), 0, ssh.CertTimeInfinity))
	add(certified(plain("rsa", rsa2k()), 0, ssh.CertTimeInfinity))
	add(plain("p521", p521()))
	return ids, added
}

// both starts the two agents with the same keys.
func both(t *testing.T, ids []Identity, added []client.AddedKey) (theirs, ours *net.UnixConn) {
	t.Helper()
	path := sshAgent(t)
	adder := client.NewClient(dialUnix(t, path))
	for _, k := range added {
		if err := adder.Add(k); err != nil {
			t.Fatal(err)
		}
	}
	return dialUnix(t, path), serve(t, Config{Source: fixed(ids...)}).dial(t)
}

// TestLikeOpenSSH sends the same bytes to ssh-agent and to us.
func TestLikeOpenSSH(t *testing.T) {
	ids, added := bothHave()
	blob := make([][]byte, len(ids))
	for i, id := range ids {
		blob[i] = id.Public.Marshal()
	}
	p256, rsaKey, p256Cert, rsaCert, p521 := blob[0], blob[1], blob[2], blob[3], blob[4]
	unknown := publicOf(p384()).Marshal()
	data := []byte("some data to sign")
	junk := func(m []byte) []byte { return append(bytes.Clone(m), "junk"...) }
	lying := func(m []byte, length uint32) []byte {
		m = bytes.Clone(m)
		binary.BigEndian.PutUint32(m[1:], length)
		return m
	}
	tests := map[string][][]byte{
		"list":                       {listThem},
		"list with junk":             {junk(listThem)},
		"sign ecdsa":                 {signMessage(p256, data, 0)},
		"sign p521":                  {signMessage(p521, data, 0)},
		"sign ecdsa, flags as rsa":   {signMessage(p256, data, 2), signMessage(p256, data, 4), signMessage(p256, data, 6)},
		"sign ecdsa, unknown flags":  {signMessage(p256, data, 1), signMessage(p256, data, 1<<31)},
		"sign rsa 256":               {signMessage(rsaKey, data, 2)},
		"sign rsa 512":               {signMessage(rsaKey, data, 4)},
		"sign rsa both":              {signMessage(rsaKey, data, 6)},
		"sign rsa, unknown flags":    {signMessage(rsaKey, data, 2|1|8|1<<31), signMessage(rsaKey, data, 4|1|8)},
		"sign ecdsa certificate":     {signMessage(p256Cert, data, 0)},
		"sign rsa certificate":       {signMessage(rsaCert, data, 2), signMessage(rsaCert, data, 4)},
		"sign nothing":               {signMessage(rsaKey, nil, 2)},
		"sign much":                  {signMessage(rsaKey, make([]byte, 200<<10), 2)},
		"sign unknown key":           {signMessage(unknown, data, 0)},
		"sign no key":                {signMessage(nil, data, 0)},
		"sign damaged key":           {signMessage(p256[:len(p256)-1], data, 0)},
		"sign key with junk":         {signMessage(junk(p256), data, 0)},
		"sign with junk":             {junk(signMessage(p256, data, 0)), junk(signMessage(rsaKey, data, 2))},
		"sign, lying lengths":        {lying(signMessage(p256, data, 0), 1<<32-1), lying(signMessage(p256, data, 0), 0), lying(signMessage(p256, data, 0), 200)},
		"sign nothing at all":        {{msgSignRequest}},
		"remove":                     {removeMessage(p256), listThem, signMessage(p256, data, 0), signMessage(p256Cert, data, 0)},
		"remove twice":               {removeMessage(p256), removeMessage(p256), listThem},
		"remove certificate":         {removeMessage(p256Cert), listThem, signMessage(p256, data, 0), signMessage(p256Cert, data, 0)},
		"remove unknown":             {removeMessage(unknown), listThem},
		"remove damaged":             {removeMessage(p256[1:]), removeMessage(nil), {msgRemoveIdentity}, listThem},
		"remove with junk":           {junk(removeMessage(rsaKey)), listThem},
		"remove, lying lengths":      {lying(removeMessage(p256), 1<<32-1), lying(removeMessage(p256), 3), listThem},
		"remove all":                 {{msgRemoveAllIdentities}, listThem, signMessage(p256, data, 0), removeMessage(p256)},
		"remove all with junk":       {junk([]byte{msgRemoveAllIdentities}), listThem},
		"remove all twice":           {{msgRemoveAllIdentities}, {msgRemoveAllIdentities}, listThem},
		"remove all, then version 1": {{msgRemoveAllIdentities}, {msgRemoveAllRSA1}, listThem},
		"remove all of version 1":    {{msgRemoveAllRSA1}, listThem},
		"list of version 1":          {{1}},
		"others of version 1":        {{2}, {3}, {4}, {7}, {8}, {10}, {15}, {16}, {24}},
		"answers as requests":        {{5}, {6}, {12}, {14}, {28}, {29}},
		"numbers nobody has":         {{0}, {30}, {100}, {240}, {255}, append([]byte{200}, data...)},
		"unknown extension":          {append([]byte{msgExtension}, appendString(nil, "none@example.com")...)},
		"extension without name":     {{msgExtension}},
		"add garbage":                {append([]byte{msgAddIdentity}, appendString(nil, "ssh-none")...)},
		"largest":                    {signMessage(rsaKey, make([]byte, maxMessage-len(signMessage(rsaKey, nil, 2))), 2), listThem},
	}
	for name, messages := range tests {
		t.Run(name, func(t *testing.T) {
			theirs, ours := both(t, ids, added)
			for i, m := range messages {
				sameAnswer(t, i, m, ask(t, theirs, m), ask(t, ours, m))
			}
		})
	}
}

// sameAnswer wants equal bytes, but for ECDSA, where no two signatures are
// alike: there the rest must be equal, and ours right.
func sameAnswer(t *testing.T, i int, request, theirs, ours []byte) {
	t.Helper()
	if theirs[0] != msgSignResponse || ours[0] != msgSignResponse {
		if !bytes.Equal(theirs, ours) {
			t.Errorf("request %d: ssh-agent answers %x, we %x", i, theirs, ours)
		}
		return
	}
	var m signRequest
	if err := ssh.Unmarshal(request, &m); err != nil {
		t.Fatal(err)
	}
	pub, err := ssh.ParsePublicKey(m.Blob)
	if err != nil {
		t.Fatal(err)
	}
	want, err := signatureIn(theirs)
	if err != nil {
		t.Fatal(err)
	}
	got, err := signatureIn(ours)
	if err != nil {
		t.Fatal(err)
	}
	if cert, ok := pub.(*ssh.Certificate); ok {
		pub = cert.Key
	}
	if err := pub.Verify(m.Data, got); err != nil {
		t.Errorf("request %d: %v", i, err)
	}
	if got.Format != want.Format {
		t.Errorf("request %d: ssh-agent's format is %s, ours %s", i, want.Format, got.Format)
	}
	if pub.Type() == ssh.KeyAlgoRSA && !bytes.Equal(got.Blob, want.Blob) {
		t.Errorf("request %d: ssh-agent's signature is %x, ours %x", i, want.Blob, got.Blob)
	}
}

// TestTruncatedLikeOpenSSH cuts each message at each byte, within a frame that
// is whole.
func TestTruncatedLikeOpenSSH(t *testing.T) {
	ids, added := bothHave()
	theirs, ours := both(t, ids, added)
	blob := ids[0].Public.Marshal()
	cert := ids[3].Public.Marshal()
	for _, m := range [][]byte{
		signMessage(blob, []byte("data"), 0),
		signMessage(cert, []byte("data"), 2),
		removeMessage(blob),
	} {
		for n := 1; n < len(m); n++ {
			sameAnswer(t, n, m[:n], ask(t, theirs, m[:n]), ask(t, ours, m[:n]))
		}
	}
	sameAnswer(t, 0, listThem, ask(t, theirs, listThem), ask(t, ours, listThem))
}

// TestTooLongLikeOpenSSH: 256 KiB is served by both (TestLikeOpenSSH has it),
// one byte more closes the connection without an answer.
func TestTooLongLikeOpenSSH(t *testing.T) {
	ids, added := bothHave()
	theirs, ours := both(t, ids, added)
	for _, nc := range []io.ReadWriter{theirs, ours} {
		ask(t, nc, listThem)
		nc.Write(binary.BigEndian.AppendUint32(nil, maxMessage+1))
		nc.Write([]byte{msgRequestIdentities})
		isClosed(t, nc)
	}
}

// TestSSHAdd uses the agent as a user does.
func TestSSHAdd(t *testing.T) {
	if _, err := exec.LookPath("ssh-add"); err != nil {
		t.Skip(err)
	}
	ids, _ := bothHave()
	s := serve(t, Config{Source: fixed(ids...)})
	pub := filepath.Join(t.TempDir(), "k.pub")
	if err := os.WriteFile(pub, ssh.MarshalAuthorizedKey(ids[0].Public), 0o600); err != nil {
		t.Fatal(err)
	}
	sshAdd := func(want string, args ...string) {
		t.Helper()
		cmd := exec.Command("ssh-add", args...)
		cmd.Env = []string{"SSH_AUTH_SOCK=" + s.path, "SSH_ASKPASS_REQUIRE=never"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no terminal: it would ask there for the PIN of a card
		out, err := cmd.CombinedOutput()
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("ssh-add %q: %s, %v", args, out, err)
		}
	}
	sshAdd("p521@test (ECDSA)", "-l")
	sshAdd("", "-T", pub)
	sshAdd("Identity removed", "-d", pub)
	sshAdd("agent refused operation", "-T", pub)
	s.Reload()
	sshAdd("p256@test", "-L")
	sshAdd("All identities removed.", "-D")
	sshAdd("The agent has no identities.", "-l")
	sshAdd("agent refused operation", "-s", "/nonexistent/pkcs11.so")
}
