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

	"github.com/tpm-agent/tpm-agent/internal/test/needs"
	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
	"github.com/tpm-agent/tpm-agent/internal/wire"

	client "golang.org/x/crypto/ssh/agent"
)

// bothHave returns the identities of both agents, in order.
func bothHave() (ids []Identity, added []client.AddedKey) {
	add := func(id Identity) {
		k := client.AddedKey{PrivateKey: id.Key.(*softKey).Signer, Comment: id.Comment}
		k.Certificate, _ = id.Public.(*ssh.Certificate)
		ids, added = append(ids, id), append(added, k)
	}
	add(plain("p256", sshtest.P256()))
	add(plain("rsa", sshtest.RSA2048()))
	add(certified(plain("p256", sshtest.P256()), 0, ssh.CertTimeInfinity))
	add(certified(plain("rsa", sshtest.RSA2048()), 0, ssh.CertTimeInfinity))
	add(plain("p521", sshtest.P521()))
	return ids, added
}

// both starts the two agents with the same keys.
func both(t *testing.T, ids []Identity, added []client.AddedKey) (theirs, ours *net.UnixConn) {
	t.Helper()
	path := sshtest.SshAgent(t)
	adder := client.NewClient(sshtest.DialUnix(t, path))
	for _, k := range added {
		if err := adder.Add(k); err != nil {
			t.Fatal(err)
		}
	}
	return sshtest.DialUnix(t, path), serve(t, Config{Sources: []Source{fixed(ids...)}}).dial(t)
}

// TestLikeOpenSSH checks that ssh-agent and this agent give the same answers
// to the same requests.
func TestLikeOpenSSH(t *testing.T) {
	t.Parallel()
	ids, added := bothHave()
	blob := make([][]byte, len(ids))
	for i, id := range ids {
		blob[i] = id.Public.Marshal()
	}
	p256, rsaKey, p256Cert, rsaCert, p521 := blob[0], blob[1], blob[2], blob[3], blob[4]
	unknown := sshtest.PublicOf(sshtest.P384()).Marshal()
	data := []byte("some data to sign")
	junk := func(m []byte) []byte { return append(bytes.Clone(m), "junk"...) }
	lying := func(m []byte, length uint32) []byte {
		m = bytes.Clone(m)
		binary.BigEndian.PutUint32(m[1:], length)
		return m
	}
	tests := map[string][][]byte{
		"list":                       {sshtest.ListThem},
		"list with junk":             {junk(sshtest.ListThem)},
		"sign ecdsa":                 {sshtest.SignMessage(p256, data, 0)},
		"sign p521":                  {sshtest.SignMessage(p521, data, 0)},
		"sign ecdsa, flags as rsa":   {sshtest.SignMessage(p256, data, 2), sshtest.SignMessage(p256, data, 4), sshtest.SignMessage(p256, data, 6)},
		"sign ecdsa, unknown flags":  {sshtest.SignMessage(p256, data, 1), sshtest.SignMessage(p256, data, 1<<31)},
		"sign rsa 256":               {sshtest.SignMessage(rsaKey, data, 2)},
		"sign rsa 512":               {sshtest.SignMessage(rsaKey, data, 4)},
		"sign rsa both":              {sshtest.SignMessage(rsaKey, data, 6)},
		"sign rsa, unknown flags":    {sshtest.SignMessage(rsaKey, data, 2|1|8|1<<31), sshtest.SignMessage(rsaKey, data, 4|1|8)},
		"sign ecdsa certificate":     {sshtest.SignMessage(p256Cert, data, 0)},
		"sign rsa certificate":       {sshtest.SignMessage(rsaCert, data, 2), sshtest.SignMessage(rsaCert, data, 4)},
		"sign nothing":               {sshtest.SignMessage(rsaKey, nil, 2)},
		"sign much":                  {sshtest.SignMessage(rsaKey, make([]byte, 200<<10), 2)},
		"sign unknown key":           {sshtest.SignMessage(unknown, data, 0)},
		"sign no key":                {sshtest.SignMessage(nil, data, 0)},
		"sign damaged key":           {sshtest.SignMessage(p256[:len(p256)-1], data, 0)},
		"sign key with junk":         {sshtest.SignMessage(junk(p256), data, 0)},
		"sign with junk":             {junk(sshtest.SignMessage(p256, data, 0)), junk(sshtest.SignMessage(rsaKey, data, 2))},
		"sign, lying lengths":        {lying(sshtest.SignMessage(p256, data, 0), 1<<32-1), lying(sshtest.SignMessage(p256, data, 0), 0), lying(sshtest.SignMessage(p256, data, 0), 200)},
		"sign nothing at all":        {{wire.MsgSignRequest}},
		"remove":                     {sshtest.RemoveMessage(p256), sshtest.ListThem, sshtest.SignMessage(p256, data, 0), sshtest.SignMessage(p256Cert, data, 0)},
		"remove twice":               {sshtest.RemoveMessage(p256), sshtest.RemoveMessage(p256), sshtest.ListThem},
		"remove certificate":         {sshtest.RemoveMessage(p256Cert), sshtest.ListThem, sshtest.SignMessage(p256, data, 0), sshtest.SignMessage(p256Cert, data, 0)},
		"remove unknown":             {sshtest.RemoveMessage(unknown), sshtest.ListThem},
		"remove damaged":             {sshtest.RemoveMessage(p256[1:]), sshtest.RemoveMessage(nil), {wire.MsgRemoveIdentity}, sshtest.ListThem},
		"remove with junk":           {junk(sshtest.RemoveMessage(rsaKey)), sshtest.ListThem},
		"remove, lying lengths":      {lying(sshtest.RemoveMessage(p256), 1<<32-1), lying(sshtest.RemoveMessage(p256), 3), sshtest.ListThem},
		"remove all":                 {{wire.MsgRemoveAllIdentities}, sshtest.ListThem, sshtest.SignMessage(p256, data, 0), sshtest.RemoveMessage(p256)},
		"remove all with junk":       {junk([]byte{wire.MsgRemoveAllIdentities}), sshtest.ListThem},
		"remove all twice":           {{wire.MsgRemoveAllIdentities}, {wire.MsgRemoveAllIdentities}, sshtest.ListThem},
		"remove all, then version 1": {{wire.MsgRemoveAllIdentities}, {msgRemoveAllRSA1}, sshtest.ListThem},
		"remove all of version 1":    {{msgRemoveAllRSA1}, sshtest.ListThem},
		"list of version 1":          {{1}},
		"others of version 1":        {{2}, {3}, {4}, {7}, {8}, {10}, {15}, {16}, {24}},
		"answers as requests":        {{5}, {6}, {12}, {14}, {28}, {29}},
		"unassigned numbers":         {{0}, {30}, {100}, {240}, {255}, append([]byte{200}, data...)},
		"unknown extension":          {append([]byte{wire.MsgExtension}, wire.AppendString(nil, "none@example.com")...)},
		"extension without name":     {{wire.MsgExtension}},
		"add garbage":                {append([]byte{wire.MsgAddIdentity}, wire.AppendString(nil, "ssh-none")...)},
		"largest":                    {sshtest.SignMessage(rsaKey, make([]byte, wire.MaxMessage-len(sshtest.SignMessage(rsaKey, nil, 2))), 2), sshtest.ListThem},
	}
	for name, messages := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			theirs, ours := both(t, ids, added)
			for i, m := range messages {
				sameAnswer(t, i, m, sshtest.Exchange(t, theirs, m), sshtest.Exchange(t, ours, m))
			}
		})
	}
}

// sameAnswer checks that two answers are equal. Of two ECDSA signatures,
// which always differ, ours must be valid.
func sameAnswer(t *testing.T, i int, request, theirs, ours []byte) {
	t.Helper()
	if theirs[0] != wire.MsgSignResponse || ours[0] != wire.MsgSignResponse {
		if !bytes.Equal(theirs, ours) {
			t.Errorf("request %d: ssh-agent answers %x, this agent %x", i, theirs, ours)
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
	want, err := sshtest.SignatureIn(theirs)
	if err != nil {
		t.Fatal(err)
	}
	got, err := sshtest.SignatureIn(ours)
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
		t.Errorf("request %d: the format of ssh-agent is %s, ours %s", i, want.Format, got.Format)
	}
	if pub.Type() == ssh.KeyAlgoRSA && !bytes.Equal(got.Blob, want.Blob) {
		t.Errorf("request %d: ssh-agent's signature is %x, ours %x", i, want.Blob, got.Blob)
	}
}

// TestTruncatedLikeOpenSSH checks that ssh-agent and this agent give the
// same answers to requests that were cut at each byte, in a whole frame.
func TestTruncatedLikeOpenSSH(t *testing.T) {
	t.Parallel()
	ids, added := bothHave()
	theirs, ours := both(t, ids, added)
	blob := ids[0].Public.Marshal()
	cert := ids[3].Public.Marshal()
	for _, m := range [][]byte{
		sshtest.SignMessage(blob, []byte("data"), 0),
		sshtest.SignMessage(cert, []byte("data"), 2),
		sshtest.RemoveMessage(blob),
	} {
		for n := 1; n < len(m); n++ {
			sameAnswer(t, n, m[:n], sshtest.Exchange(t, theirs, m[:n]), sshtest.Exchange(t, ours, m[:n]))
		}
	}
	sameAnswer(t, 0, sshtest.ListThem, sshtest.Exchange(t, theirs, sshtest.ListThem), sshtest.Exchange(t, ours, sshtest.ListThem))
}

// TestTooLongLikeOpenSSH checks that both agents close the connection if a
// message has more than 256 KiB. TestLikeOpenSSH has one of exactly that
// size.
func TestTooLongLikeOpenSSH(t *testing.T) {
	t.Parallel()
	ids, added := bothHave()
	theirs, ours := both(t, ids, added)
	for _, nc := range []io.ReadWriter{theirs, ours} {
		sshtest.Exchange(t, nc, sshtest.ListThem)
		nc.Write(binary.BigEndian.AppendUint32(nil, wire.MaxMessage+1))
		nc.Write([]byte{wire.MsgRequestIdentities})
		sshtest.IsClosed(t, nc)
	}
}

// TestSSHAdd checks the agent with ssh-add.
func TestSSHAdd(t *testing.T) {
	t.Parallel()
	needs.Programs(t, "ssh-add")
	ids, _ := bothHave()
	s := serve(t, Config{Sources: []Source{fixed(ids...)}})
	pub := filepath.Join(t.TempDir(), "k.pub")
	if err := os.WriteFile(pub, ssh.MarshalAuthorizedKey(ids[0].Public), 0o600); err != nil {
		t.Fatal(err)
	}
	sshAdd := func(want string, args ...string) {
		t.Helper()
		cmd := exec.Command("ssh-add", args...)
		cmd.Env = []string{"SSH_AUTH_SOCK=" + s.path, "SSH_ASKPASS_REQUIRE=never"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // without a terminal, where it would ask for the PIN of a card
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
