package privkey

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// run runs a program of those that people have (Debian packages openssh-client,
// openssl, putty-tools).
func run(t *testing.T, dir, program string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	cmd.Stdin = strings.NewReader("")
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatalf("%s is missing (Debian packages openssh-client, openssl, putty-tools)", program)
	}
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return out
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestSSHKeygen makes keys with this system's ssh-keygen, with its own amount
// of work for the passphrase, in all its formats.
func TestSSHKeygen(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{{"ecdsa", "256"}, {"ecdsa", "521"}, {"rsa", "2048"}} {
		path := filepath.Join(dir, strings.Join(args, "-"))
		run(t, dir, "ssh-keygen", "-q", "-t", args[0], "-b", args[1], "-N", "", "-C", "ä comment", "-f", path)
		public := read(t, path+".pub")
		for _, format := range []string{"RFC4716", "PEM", "PKCS8"} {
			for _, passphrase := range []string{secret, ""} {
				copied := filepath.Join(dir, "copy")
				if err := os.WriteFile(copied, read(t, path), 0o600); err != nil {
					t.Fatal(err)
				}
				run(t, dir, "ssh-keygen", "-q", "-p", "-P", "", "-N", passphrase, "-m", format, "-f", copied)
				k, err := parseWith(read(t, copied), passphrase)
				if err != nil {
					t.Fatalf("%v as %s with passphrase %q: %v", args, format, passphrase, err)
				}
				checkKey(t, k, public)
				if k.Encrypted != (passphrase != "") || (k.Comment == "ä comment") != (format == "RFC4716") {
					t.Errorf("%v as %s: %+v", args, format, k)
				}
			}
		}
	}
}

// TestOpenSSL makes and encrypts keys with this system's openssl, with its own
// amount of work for the passphrase and with more.
func TestOpenSSL(t *testing.T) {
	dir := t.TempDir()
	for name, genpkey := range map[string][]string{
		"ec":  {"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"},
		"rsa": {"-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"},
	} {
		run(t, dir, "openssl", append([]string{"genpkey", "-out", name}, genpkey...)...)
		plain, err := Parse(read(t, filepath.Join(dir, name)), nil)
		if err != nil {
			t.Fatal(err)
		}
		checkWhole(t, plain)
		for _, args := range [][]string{
			{"pkcs8", "-topk8"},
			{"pkcs8", "-topk8", "-outform", "DER"},
			{"pkcs8", "-topk8", "-scrypt"},
			{"pkcs8", "-topk8", "-v2", "aes-256-cbc", "-v2prf", "hmacWithSHA512", "-iter", "200000"},
			{"pkcs8", "-topk8", "-v2", "des3"},
			{"pkey", "-aes-192-cbc"},
			{"pkey", "-traditional", "-aes-256-cbc"},
			{"pkey", "-traditional", "-des3"},
			{name, "-aes128"},
		} {
			args = append(args, "-in", name, "-out", "sealed", "-passout", "pass:"+secret)
			run(t, dir, "openssl", args...)
			data := read(t, filepath.Join(dir, "sealed"))
			k, err := parseWith(data, secret)
			if err != nil || !k.Encrypted || !bytes.Equal(publicBlob(k.Private), publicBlob(plain.Private)) {
				t.Errorf("%v: %v", args, err)
			}
			_, err = parseWith(data, "wrong")
			wantError(t, err, ErrPassphrase)
		}
	}
}

// TestWays does what the refusals say, word for word, and adds the passphrase,
// for which the programs would ask a terminal.
func TestWays(t *testing.T) {
	tested := 0
	for _, name := range append(names(t, true), "p256-openssh-aes256-ctr", "p256-pbes2") {
		// The two that are no refused ones are too much work for this effort.
		_, err := parse(golden(t, name), nil, effort{})
		var u *UnsupportedError
		if !errors.As(err, &u) {
			t.Fatalf("%s: %v", name, err)
		}
		if command, ok := strings.CutPrefix(u.Ways[0], wayConvert); ok {
			tested++
			t.Run(name, func(t *testing.T) { checkWay(t, name, command) })
		}
	}
	if tested != 14 {
		t.Errorf("%d ways tested", tested)
	}
}

func checkWay(t *testing.T, name, command string) {
	dir := t.TempDir()
	err := errors.Join(
		os.WriteFile(filepath.Join(dir, "old"), golden(t, name), 0o600),
		os.WriteFile(filepath.Join(dir, "passphrase"), []byte(secret), 0o600),
	)
	if err != nil {
		t.Fatal(err)
	}
	command = strings.NewReplacer("FILE", "old", "NEW", "new").Replace(command)
	run(t, dir, "sh", "-c", "umask 022; "+withPassphrase(command))
	if info, err := os.Stat(filepath.Join(dir, "new")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%s: others may read the copy: %v, %v", command, info.Mode(), err)
	}
	k, err := parseWith(read(t, filepath.Join(dir, "new")), secret)
	if err != nil {
		t.Fatal(err)
	}
	switch name {
	case "refused-explicit": // a key of its own
		checkWhole(t, k)
	case "refused-sshcom":
		checkKey(t, k, golden(t, "rsa.pub"))
	default:
		checkKey(t, k, golden(t, "p256.pub"))
	}
}

// TestWayOfEd25519 adds an Ed25519 key to an agent, as the refusal says.
func TestWayOfEd25519(t *testing.T) {
	for _, name := range []string{"refused-ed25519", "refused-ppk-ed25519", "refused-ed25519-pkcs8"} {
		_, err := parseLight(golden(t, name))
		var u *UnsupportedError
		if !errors.As(err, &u) {
			t.Fatalf("%s: %v", name, err)
		}
		command, _ := strings.CutPrefix(u.Ways[0], wayAdd)
		if name == "refused-ed25519-pkcs8" {
			// This system's OpenSSH may be older.
			if !strings.Contains(command, "OpenSSH 9.6") {
				t.Errorf("%s: %s", name, command)
			}
			continue
		}
		dir := t.TempDir()
		err = errors.Join(
			os.WriteFile(filepath.Join(dir, "old"), golden(t, name), 0o600),
			os.WriteFile(filepath.Join(dir, "passphrase"), []byte(secret), 0o600),
			os.WriteFile(filepath.Join(dir, "askpass"), []byte("#!/bin/sh\ncat passphrase\n"), 0o700),
		)
		if err != nil {
			t.Fatal(err)
		}
		command = strings.NewReplacer("FILE", "old", "-o NEW", "-o new --old-passphrase passphrase --new-passphrase passphrase", "NEW", "new").Replace(command)
		out := run(t, dir, "env", "HOME="+dir, "SSH_ASKPASS=./askpass", "SSH_ASKPASS_REQUIRE=force", "ssh-agent", "sh", "-c", command+" && ssh-add -l")
		if !bytes.Contains(out, []byte("(ED25519)")) {
			t.Errorf("%s: %s", command, out)
		}
	}
}

func withPassphrase(command string) string {
	switch {
	case strings.HasPrefix(command, "openssl p"):
		return command + " -passin 'pass:" + secret + "' -passout 'pass:" + secret + "'"
	case strings.HasPrefix(command, "puttygen"):
		return command + " --old-passphrase passphrase --new-passphrase passphrase"
	case strings.Contains(command, "ssh-keygen -p"):
		return command + " -P '" + secret + "' -N '" + secret + "'"
	}
	return command
}
