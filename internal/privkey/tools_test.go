package privkey

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tpm-agent/tpm-agent/internal/test/needs"
)

// run runs a program, and skips the test if it is not installed.
func run(t *testing.T, dir, program string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	cmd.Stdin = strings.NewReader("")
	cmd.Env = append(os.Environ(), "HOME="+dir, "PUTTYDIR="+dir) // puttygen ignores HOME
	needs.Program(t, program)
	out, err := cmd.CombinedOutput()
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

// TestSSHKeygen makes keys with the installed ssh-keygen in all its formats, with
// its own amount of work for the passphrase.
func TestSSHKeygen(t *testing.T) {
	t.Parallel()
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
				if k.Encrypted != (passphrase != "") || (k.Comment == "ä comment") != (format == "RFC4716" && passphrase == "") {
					t.Errorf("%v as %s: %+v", args, format, k)
				}
			}
		}
	}
}

// TestOpenSSL makes and encrypts keys with the installed openssl, with its own
// amount of work for the passphrase and with more.
func TestOpenSSL(t *testing.T) {
	t.Parallel()
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
		checkNumbers(t, plain)
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
			if err != nil || !k.Encrypted || !bytes.Equal(blobOf(t, k.Private), blobOf(t, plain.Private)) {
				t.Errorf("%v: %v", args, err)
			}
			_, err = parseWith(data, "wrong")
			wantError(t, err, ErrPassphrase)
		}
	}
}

// TestConversions runs the commands that the refusals name, word for word, and
// adds only the passphrase, for which the programs would ask at a terminal.
func TestConversions(t *testing.T) {
	t.Parallel()
	tested := 0
	for _, name := range append(names(t, true), "p256-openssh-aes256-ctr", "p256-pbes2") {
		// The last two are refused because no work is allowed.
		_, err := parseUpTo(golden(t, name), &asker{}, effort{})
		var u *UnsupportedError
		if !errors.As(err, &u) {
			t.Fatalf("%s: %v", name, err)
		}
		if command, ok := strings.CutPrefix(u.Ways[0], wayConvert); ok && name != "refused-ppk-ed25519" {
			tested++
			t.Run(name, func(t *testing.T) { checkConversion(t, name, command) })
		}
	}
	if tested != 20 {
		t.Errorf("%d conversions tested", tested)
	}
}

func checkConversion(t *testing.T, name, command string) {
	t.Parallel()
	dir := t.TempDir()
	err := errors.Join(
		os.WriteFile(filepath.Join(dir, "old"), golden(t, name), 0o600),
		os.WriteFile(filepath.Join(dir, "passphrase"), []byte(secret), 0o600),
	)
	if err != nil {
		t.Fatal(err)
	}
	program := strings.Fields(command)[0]
	if i := strings.Index(command, "&& "); i >= 0 {
		program = strings.Fields(command[i+3:])[0]
	}
	needs.Program(t, program)
	command = strings.NewReplacer("FILE", "old", "NEW", "new").Replace(command)
	run(t, dir, "sh", "-c", "umask 022; "+withPassphrase(command))
	if info, err := os.Stat(filepath.Join(dir, "new")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%s: other users can read the copy: %v, %v", command, info, err)
	}
	k, err := parseWith(read(t, filepath.Join(dir, "new")), secret)
	if err != nil {
		t.Fatal(err)
	}
	switch name {
	case "refused-explicit": // has no .pub
		checkNumbers(t, k)
	case "refused-sshcom":
		checkKey(t, k, golden(t, "rsa.pub"))
	default:
		checkKey(t, k, golden(t, "p256.pub"))
	}
}

// TestAddEd25519 adds an Ed25519 key to an agent, as the refusal says.
func TestAddEd25519(t *testing.T) {
	t.Parallel()
	_, err := parseLight(golden(t, "refused-ed25519"))
	var u *UnsupportedError
	if !errors.As(err, &u) {
		t.Fatal(err)
	}
	_, command, _ := strings.Cut(u.Ways[0], ": ")
	dir := t.TempDir()
	err = errors.Join(
		os.WriteFile(filepath.Join(dir, "old"), golden(t, "refused-ed25519"), 0o600),
		os.WriteFile(filepath.Join(dir, "askpass"), []byte("#!/bin/sh\necho '"+secret+"'\n"), 0o700),
	)
	if err != nil {
		t.Fatal(err)
	}
	command = strings.ReplaceAll(command, "FILE", "old")
	needs.Programs(t, "ssh-agent", "ssh-add")
	out := run(t, dir, "env", "SSH_ASKPASS=./askpass", "SSH_ASKPASS_REQUIRE=force", "ssh-agent", "sh", "-c", command+" && ssh-add -l")
	if !bytes.Contains(out, []byte("(ED25519)")) {
		t.Errorf("%s: %s", command, out)
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
